"""Removes one safety line of the supervisor at a time and counts how often its tests notice.

`python -m tests.mutate_supervisor`, optionally with numbers of lines from the list below. Each runs in a
copy of the packages, with the tests that are named beside it; survivors are printed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
AGENT = "agent/mlxterp_agent"
STORAGE = f"{AGENT}/storage"
TESTS = "tests/agent/storage"


class Line(NamedTuple):
    """A safety line, what takes its place, and the tests that must notice."""

    file: str
    text: str
    instead: str
    tests: str


def _lines(file: str, tests: str, *pairs: tuple[str, str]) -> list[Line]:
    return [Line(file, text, instead, tests) for text, instead in pairs]


LINES = [
    *_lines(
        f"{STORAGE}/journal.py",
        f"{TESTS}/test_journal.py",
        ('if not hmac.compare_digest(mac, _mac(self._key, body).encode("ascii")):', "if False:"),
        ('new = event is not None and event["n"] > end.n', "new = event is not None"),
        ("        os.ftruncate(fd, self.end.at)\n", ""),
        ("write_atomically(path, facts, mode=0o600)", "write_atomically(path, facts)"),
        ("if grown < 0 or not self._unchanged():", "if grown < 0:"),
        ("                os.ftruncate(self._fd, size)\n", ""),
        ("if not is_disk_full(problem) or not self._spend_reserve():", "if True:"),
        ("        self._same_file(fd)\n        lines", "        lines"),
        ("            if taken:\n", "            if False:\n"),
        ("            self._write_again(data, problem)", "            pass"),
        ('if size and os.pread(fd, 1, size - 1) != b"\\n":', "if False:"),
    ),
    *_lines(
        f"{STORAGE}/recovery.py",
        f"{TESTS}/test_recovery.py",
        ('elif results.index.place_of(f"{uid}.1") is not None:', "elif False:"),
        ("elif entry.record is None and not (", "elif entry.record is None or not ("),
        ('if results.index.place_of(line.record["uid"]) is None:', "if False:"),
        ("        results.publish(logged, experiment, may_be_there=True)\n", ""),
        ("    torn = results.log.repair()\n", '    torn = b""\n'),
    ),
    *_lines(
        f"{STORAGE}/results_log.py",
        f"{TESTS}/test_recovery.py",
        ("if digest(raw[: known.at]) != known.sha256:", "if False:"),
        ("        self.commit_pending()\n\n    def commit_pending", "\n    def commit_pending"),
    ),
    *_lines(
        f"{STORAGE}/git_driver.py",
        f"{TESTS}/test_git.py",
        ('    "core.hooksPath=/dev/null",\n', ""),
        ('    "core.fsmonitor=false",\n', ""),
    ),
    *_lines(
        f"{STORAGE}/git.py",
        f"{TESTS}/test_git.py",
        ('"--no-filters", ', ""),
        ('"HEAD", commit, head)', '"HEAD", commit)'),
        ("                    self._push_to_disk(commit, blobs, self._branch())\n", ""),
    ),
    *_lines(
        f"{STORAGE}/git.py",
        f"{TESTS}/test_git_trouble.py",
        ("if time.time() - lock.lstat().st_mtime > _STALE:", "if False:"),
        ("if _NOT_DAMAGE.search(why) or dirs is None", "if dirs is None"),
        ("            moved = _restore_head(dirs, aside)\n", "            moved = False\n"),
    ),
    *_lines(
        f"{STORAGE}/project_files.py",
        f"{TESTS}/test_project_files.py",
        ("os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC\n", "os.O_RDONLY | os.O_CLOEXEC\n"),
        ("    if not stat.S_ISREG(mode):\n        _move_aside", "    if False:\n        _move_aside"),
    ),
    *_lines(
        f"{AGENT}/integrity/guard.py",
        f"{TESTS}/test_recovery.py",
        ("self.marks(frozen)), *self._interference()]", "self.marks(frozen))]"),
    ),
    *_lines(
        f"{AGENT}/integrity/guard.py",
        "tests/agent/supervisor/test_one_proposal.py",
        ('        project / CONFIG: "config",\n', ""),
    ),
    *_lines(
        f"{STORAGE}/state_dir.py",
        "tests/agent/supervisor/test_one_proposal.py",
        ('if (_kept(project / CONFIG) or b"") == sealed.config_bytes:', "if True:"),
    ),
    *_lines(
        f"{STORAGE}/state_dir.py",
        f"{TESTS}/test_state_dir.py",
        ("if kept is not None and kept != current:", "if False:"),
        ("            if not _flock(fd):", "            if False:"),
    ),
    *_lines(
        f"{STORAGE}/history.py",
        "tests/agent/supervisor/test_one_proposal.py",
        ('self.session.extra += event.get("uncounted_s", 0.0)', "pass"),
    ),
    *_lines(
        f"{STORAGE}/heartbeat.py",
        "tests/agent/supervisor/test_one_proposal.py",
        (' if beat["boot"] == boot_id() else None', ""),
    ),
    *_lines(
        f"{STORAGE}/budget.py",
        f"{TESTS}/test_budget.py",
        ("usd = usd if held.usd is None else (usd or 0.0) + held.usd", "usd = usd"),
        ("if left is None:\n            return time_box", "if True:\n            return time_box"),
        ("history.session.first <= held.at <= alive_until", "held.at <= alive_until"),
    ),
    *_lines(
        f"{STORAGE}/log_index.py",
        f"{TESTS}/test_log_index.py",
        (" and self._sha.hexdigest() == sha\n", "\n"),
    ),
    *_lines(
        "mlxterp/autointerpret/log_file.py",
        "tests/autointerpret",
        ("        os.ftruncate(fd, self._known.size)\n", ""),
        ("            if there is not None:\n", "            if False:\n"),
        ('if record.get("at") == at and record["seal"] == sha256:', 'if record["seal"] == sha256:'),
    ),
    *_lines(
        "mlxterp/_files.py",
        "tests/agent/test_platform.py",
        ("            sync(fd)\n        finally", "            pass\n        finally"),
        ("        raise\n    sync_directory(path.parent)\n", "        raise\n"),
    ),
    *_lines(
        f"{AGENT}/platform.py",
        "tests/agent/test_platform.py",
        (" and not _SECRET_VALUE.search(value)", ""),
    ),
    *_lines(
        f"{AGENT}/run_config.py",
        "tests/agent/supervisor/test_one_proposal.py",
        ("then + timedelta(days=1)", "then + timedelta(days=1, seconds=60)"),
    ),
    *_lines(
        f"{AGENT}/researchers/external.py",
        "tests/agent/supervisor/test_one_proposal.py",
        (", offers=False)", ")"),
    ),
    *_lines(
        f"{AGENT}/supervisor/loop.py",
        "tests/agent/supervisor/test_one_proposal.py",
        ("        if self._last_was_run:\n", "        if False:\n"),
    ),
    *_lines(
        f"{AGENT}/judge/evidence.py",
        "tests/agent/supervisor/test_one_proposal.py",
        ("others = known if twin is None else", "others = known if True else"),
    ),
    *_lines(
        f"{AGENT}/key_broker.py",
        "tests/agent/test_key_broker.py",
        ("if not hmac.compare_digest(given.encode(), self.token.encode()):", "if False:"),
        ('if request.headers.get("host") != self.host:', "if False:"),
        ('if request.command != "POST" or request.path.partition("?")[0] not in PATHS:', "if False:"),
        ("if self._limit is not None and self.used.usd >= self._limit:", "if False:"),
        ("            full = len(self._open) >= AT_ONCE\n", "            full = False\n"),
        ('                said = said.replace(value.encode(), b"(key)")\n', "                pass\n"),
        ("if 300 <= answer.status < 400:", "if False:"),
    ),
    *_lines(
        f"{AGENT}/platform.py",
        "tests/agent/test_keys.py",
        (
            '        if value := os.environ.pop(name, ""):\n',
            '        if value := os.environ.get(name, ""):\n',
        ),
        ("    _forbid_dumps()\n        return\n", "    return\n"),
    ),
    *_lines(
        f"{AGENT}/sandbox/orphans.py",
        "tests/agent/sandbox/test_orphans.py",
        ("if child.pid not in _started and", "if"),
    ),
    *_lines(
        f"{AGENT}/sandbox/child.py",
        "tests/agent/sandbox/test_orphans.py",
        ("            self.orphans = end_orphans(self._began_at)\n", ""),
    ),
    *_lines(
        f"{AGENT}/sandbox/warden.py",
        "tests/agent/sandbox/test_runner.py -k garbage_on_the_pipes",
        ('.decode("ascii", "replace")', '.decode("ascii")'),
    ),
    *_lines(
        f"{STORAGE}/log_index.py",
        f"{TESTS}/test_log_index.py",
        (
            "            self._make_anew()\n            return self._database",
            "            return self._database",
        ),
    ),
]


def is_noticed(line: Line) -> bool:
    """Whether the tests fail without this line."""
    with tempfile.TemporaryDirectory() as place:
        copy_of_packages(Path(place))
        path = Path(place, line.file)
        source = path.read_text()
        if source.count(line.text) != 1:
            raise SystemExit(f"{line.file} has this {source.count(line.text)} times, not once: {line.text!r}")
        path.write_text(source.replace(line.text, line.instead))
        return run_tests(Path(place), line.tests) == 1


def copy_of_packages(place: Path) -> None:
    """Copies what the tests import: nothing of the checkout itself is on the path of a run."""
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("agent", "mlxterp", "templates", "scaffolds", "tests"):
        shutil.copytree(ROOT / folder, place / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", place)


def run_tests(place: Path, tests: str) -> int:
    """Pytest's exit code: 0 for passed, 1 for failed."""
    command = ["-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    environment = {**os.environ, "PYTHONPATH": f"{place}/agent:{place}", "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [sys.executable, *command], cwd=place, env=environment, capture_output=True, check=False
    )
    return ran.returncode


def main() -> None:
    chosen = [int(each) for each in sys.argv[1:]] or list(range(len(LINES)))
    with tempfile.TemporaryDirectory() as place:
        copy_of_packages(Path(place))
        for tests in dict.fromkeys(LINES[number].tests for number in chosen):
            if (code := run_tests(Path(place), tests)) != 0:
                raise SystemExit(f"{tests} ends with code {code} although nothing was removed")
            sys.stdout.write(f"    passes  {tests}\n")
            sys.stdout.flush()
    survived = 0
    for number in chosen:
        noticed = is_noticed(LINES[number])
        survived += not noticed
        said = "noticed " if noticed else "SURVIVED"
        first = LINES[number].text.strip().splitlines()[0]
        sys.stdout.write(f"{number:3} {said} {LINES[number].file}: {first}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - survived} of {len(chosen)} noticed\n")
    sys.exit(bool(survived))


if __name__ == "__main__":
    main()
