"""What an experiment must not change: noticed by content, put back, and the evidence kept."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxterp_agent.integrity.guard import (
    Violation,
    compare,
    restore,
    snapshot,
)
from mlxterp_agent.storage.git import Committer
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.storage.state_dir import (
    Sealed,
    State,
    open_state,
    seal,
)

LOG = b'{"experiment_id": "0001"}\n'


class Bench:
    """An investigation with one line in its log, and its marks as they were before an experiment."""

    def __init__(self, root: Path) -> None:
        self.project = root / "project"
        self.project.mkdir()
        (self.project / "setup.py").write_bytes(b"model = 1\n")
        (self.project / "results.jsonl").write_bytes(LOG)
        (self.project / "findings").mkdir()
        self.frozen = root / "experiment.py"
        self.frozen.write_text("x = 1\n")
        self.committer = Committer(self.project)
        self.committer.ensure_repo(["setup.py", "results.jsonl"])
        self.state: State = open_state(self.project)
        self.sealed: Sealed = seal(self.state, self.project)
        self.journal = Journal(self.state.journal_path)
        self.journal.append("start")
        self.before = self.marks()

    def marks(self):
        return snapshot(self.project, self.state, [self.frozen])

    def violations(self) -> list[Violation]:
        return compare(self.before, self.marks())

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=u", "-c", "user.email=u@example.org", *arguments]
        return subprocess.run(
            command, cwd=self.project, check=True, capture_output=True, text=True
        ).stdout.strip()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    return Bench(tmp_path)


def same_size_and_times(path: Path) -> None:
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove(path: Path) -> None:
    path.unlink()


def link_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("evidence")


def test_an_experiment_that_only_writes_its_own_files_violates_nothing(bench: Bench):
    (bench.project / "experiment.py").write_text("x = 2\n")
    (bench.project / "notes").mkdir()
    (bench.project / "findings" / "draft.txt").write_text("mine")
    bench.journal.append("clock")

    assert bench.violations() == []


@pytest.mark.parametrize("spoil", [same_size_and_times, remove, link_away, make_directory])
@pytest.mark.parametrize(("name", "what"), [("setup.py", "setup"), ("results.jsonl", "log")])
def test_a_spoiled_file_is_noticed_put_back_and_kept_as_evidence(
    bench: Bench, spoil: Callable[[Path], None], name: str, what: str
):
    spoil(bench.project / name)
    violations = bench.violations()

    said = restore(bench.project, bench.state, bench.sealed, LOG, violations)

    assert [violation.what for violation in violations] == [what]
    assert bench.violations() == []
    assert name in said[0]
    evidence = next(bench.state.quarantine_dir.iterdir()) / name
    assert os.path.lexists(evidence) == (spoil is not remove)


def test_a_forged_line_in_the_log_is_cut_off_again(bench: Bench):
    with (bench.project / "results.jsonl").open("ab") as log:
        log.write(b'{"experiment_id": "0002", "informative": true}\n')
    violations = bench.violations()

    restore(bench.project, bench.state, bench.sealed, LOG, violations)

    assert violations[0].detail.startswith("results.jsonl was changed: it was 26 bytes")
    assert (bench.project / "results.jsonl").read_bytes() == LOG


def test_a_changed_seal_is_noticed_and_written_anew_from_memory(bench: Bench):
    bench.sealed.setup.chmod(0o600)
    bench.sealed.setup.write_text("model = 'forged'\n")
    violations = bench.violations()

    restore(bench.project, bench.state, bench.sealed, LOG, violations)

    assert [violation.what for violation in violations] == ["seal"]
    assert bench.sealed.setup.read_bytes() == bench.sealed.setup_bytes


def test_a_changed_frozen_copy_is_noticed(bench: Bench):
    bench.frozen.write_text("x = 2\n")

    assert [violation.what for violation in bench.violations()] == ["snapshot"]


@pytest.mark.parametrize("how", ["removed", "replaced", "cut"])
def test_a_journal_that_lost_something_is_noticed(bench: Bench, how: str):
    path = bench.state.journal_path
    if how == "replaced":
        shutil.copy(path, path.with_name("copy"))
        path.with_name("copy").rename(path)
    elif how == "removed":
        path.unlink()
    else:
        os.truncate(path, 5)

    assert [violation.what for violation in bench.violations()] == ["journal"]


def test_findings_that_lead_elsewhere_make_way_for_a_directory(bench: Bench, tmp_path: Path):
    (bench.project / "findings").rmdir()
    (bench.project / "findings").symlink_to(tmp_path)
    violations = bench.violations()

    restore(bench.project, bench.state, bench.sealed, LOG, violations)

    assert [violation.what for violation in violations] == ["findings"]
    assert (bench.project / "findings").is_dir()
    assert not (bench.project / "findings").is_symlink()
    assert tmp_path.is_dir()


def test_a_person_who_commits_meanwhile_violates_nothing(bench: Bench):
    (bench.project / "notes.txt").write_text("mine")
    bench.git("add", "notes.txt")
    bench.git("commit", "--quiet", "-m", "mine")
    bench.git("branch", "another")

    assert bench.violations() == []


def test_packing_the_refs_changes_nothing(bench: Bench):
    bench.git("pack-refs", "--all")

    assert bench.violations() == []


def test_a_rewritten_or_removed_branch_is_noticed_with_the_commit_it_had(bench: Bench):
    head = bench.git("rev-parse", "HEAD")
    bench.git("branch", "second")
    bench.before = bench.marks()
    bench.git("commit", "--quiet", "--amend", "-m", "rewritten")
    bench.git("branch", "-D", "second")

    details = [violation.detail for violation in bench.violations() if violation.what == "git"]

    assert [detail.split(" (")[0].split(" from ")[0] for detail in details] == [
        "branch main was rewritten",
        "branch second was removed",
    ]
    assert all(head[:12] in detail for detail in details)


@pytest.mark.parametrize("name", ["config", "hooks/pre-commit", "info/attributes"])
def test_what_is_planted_in_gits_directory_is_noticed_copied_and_left(bench: Bench, name: str):
    path = bench.project / ".git" / name
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write("# planted\n")
    violations = bench.violations()

    restore(bench.project, bench.state, bench.sealed, LOG, violations)

    assert [(violation.what, name in violation.detail) for violation in violations] == [("git", True)]
    assert "# planted" in path.read_text()
    assert "# planted" in (next(bench.state.quarantine_dir.iterdir()) / "git" / name).read_text()


def test_a_repository_that_is_gone_is_noticed(bench: Bench):
    shutil.rmtree(bench.project / ".git")

    assert {violation.what for violation in bench.violations()} == {"git"}


def test_restoring_touches_nothing_that_belongs_to_others(bench: Bench):
    (bench.project / "notes.txt").write_text("mine")
    (bench.project / "setup.py").write_text("forged")

    restore(bench.project, bench.state, bench.sealed, LOG, bench.violations())

    assert (bench.project / "notes.txt").read_text() == "mine"
    assert (bench.project / "setup.py").read_bytes() == b"model = 1\n"


def test_without_violations_there_is_nothing_to_say_or_keep(bench: Bench):
    assert restore(bench.project, bench.state, bench.sealed, LOG, []) == []
    assert list(bench.state.quarantine_dir.iterdir()) == []
