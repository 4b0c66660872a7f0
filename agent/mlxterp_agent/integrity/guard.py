"""Finds changes to what an experiment must not touch, undoes them, and counts the violations.

Marks are taken before an experiment runs and compared after. Covers: setup.py and its seal, results.jsonl,
frozen copies, the journal's identity, findings/, the branches, configuration and hooks of git, and without a
jail an agent's instructions. Does not cover: preventing a change, and what a program changes and undoes
between two looks. Content is compared, never times: agents set times.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from mlxterp._files import write_atomically
from mlxterp.autointerpret.contract import CONFIG, FINDINGS, LOG, PROGRAM, SETUP, digest
from mlxterp_agent.events import Violated
from mlxterp_agent.platform import NotRegular, explain_disk_full, read_regular
from mlxterp_agent.storage.git import Committer
from mlxterp_agent.storage.git_driver import git_dirs
from mlxterp_agent.storage.project_files import make_folder, write_in_project
from mlxterp_agent.storage.record import Execution
from mlxterp_agent.storage.results_log import ResultsLog
from mlxterp_agent.storage.state_dir import Sealed, State

What = Literal["setup", "config", "log", "snapshot", "seal", "journal", "findings", "git", "instructions"]

INSTRUCTIONS = (PROGRAM, "CLAUDE.md", "AGENTS.md", ".mcp.json")
"""What an agent is told, and which programs its client starts; so does everything in `.claude`. People edit
these at any time: they count as an experiment's change only if it had no jail."""

_LARGEST_INSTRUCTION = 1_000_000
_GIT_FILES = ("config", "config.worktree", "info/attributes", "info/exclude")


@dataclass(frozen=True)
class Violation:
    """One thing that changed: which, and a sentence that says what it was and is.

    Attributes:
        path: what is put back or set aside, from the project's top, where `what` does not say it.
    """

    what: What
    detail: str
    path: str = ""


@dataclass(frozen=True)
class Marks:
    """Fingerprints of what must not change during a run: each string differs if the thing differs.

    Attributes:
        files: for each path, which protected thing it is, and its digest or kind.
        findings: "a directory", "missing", or what has taken its place.
        finding_names: of the folders of findings.
        instructions: see `INSTRUCTIONS`; content by name.
        heads: branch to commit.
        git: configuration and hooks, by name.
        journal: device, inode and size; it may grow.
    """

    project: Path
    files: Mapping[Path, tuple[What, str]]
    findings: str
    finding_names: frozenset[str]
    instructions: Mapping[str, bytes]
    heads: Mapping[str, str]
    git: Mapping[str, str]
    journal: tuple[int, int, int] | None


def snapshot(project: Path, state: State, also: Sequence[Path] = (), *, log: str | None = None) -> Marks:
    """Takes the marks; a few milliseconds.

    Args:
        also: frozen copies of what runs, which must not change either.
        log: what is known of results.jsonl; by default it is read.
    """
    kinds: dict[Path, What] = {
        project / SETUP: "setup",
        project / CONFIG: "config",
        project / LOG: "log",
        state.sealed_dir / SETUP: "seal",
    }
    kinds |= dict.fromkeys(also, "snapshot")
    return Marks(
        project,
        {
            path: (what, log if what == "log" and log is not None else _mark(path))
            for path, what in kinds.items()
        },
        _kind(project / FINDINGS),
        _finding_names(project),
        _instructions(project),
        _heads(project),
        _git_files(project),
        _identity(state.journal_path),
    )


def compare(before: Marks, after: Marks) -> list[Violation]:
    """What changed, the gravest first. A branch that only grew is no violation: people commit."""
    found = [
        Violation(what, f"{path.name} was changed: it was {then}, and is {after.files[path][1]}")
        for path, (what, then) in before.files.items()
        if after.files[path][1] != then
    ]
    if before.journal is not None and (after.journal is None or _replaced(before.journal, after.journal)):
        found.append(
            Violation("journal", "the journal in the user state directory was removed, replaced or cut")
        )
    if after.findings not in (before.findings, "a directory"):
        found.append(Violation("findings", f"{FINDINGS}/ was {before.findings}, and is {after.findings}"))
    found += [
        Violation("findings", f"{FINDINGS}/{name} was added by no supervisor", f"{FINDINGS}/{name}")
        for name in sorted(after.finding_names - before.finding_names)
    ]
    found += [
        Violation("instructions", f"{name} was changed by an experiment without a jail", name)
        for name in sorted(before.instructions.keys() | after.instructions.keys())
        if before.instructions.get(name) != after.instructions.get(name)
    ]
    found += [Violation("git", detail) for detail in _moved(before, after)]
    for name in sorted(before.git.keys() | after.git.keys()):
        if before.git.get(name) != after.git.get(name):
            how = "removed" if name not in after.git else "changed" if name in before.git else "added"
            found.append(Violation("git", f".git/{name} was {how}"))
    return found


def restore(
    project: Path,
    state: State,
    sealed: Sealed,
    log: bytes,
    violations: Sequence[Violation],
    instructions: Mapping[str, bytes] | None = None,
) -> list[str]:
    """Restores the supervisor's files, and returns a sentence for each thing it did.

    What was found goes to quarantine first. setup.py and its seal come from `sealed`, results.jsonl is `log`,
    a findings/ that is no directory is replaced by one, `instructions` are what they were. Nothing else is
    changed: branches, configuration and hooks of git stay as they are found. Our calls of git ignore hooks
    and configuration, and the violation names the commit that a branch had.
    """
    if not violations:
        return []
    evidence = _new_directory(state.quarantine_dir)
    done: list[str] = []
    with explain_disk_full(evidence):
        for what in dict.fromkeys(violation.what for violation in violations):
            match what:
                case "setup":
                    _set_aside(project / SETUP, evidence)
                    write_in_project(project, SETUP, sealed.setup_bytes)
                    done.append("setup.py was put back from its sealed copy")
                case "config":
                    _set_aside(project / CONFIG, evidence)
                    if sealed.config_bytes:
                        write_in_project(project, CONFIG, sealed.config_bytes)
                    done.append(f"{CONFIG} was put back from its sealed copy")
                case "seal":
                    _replace(sealed.setup, sealed.setup_bytes, evidence / "sealed")
                    done.append("the sealed copy of setup.py was written anew")
                case "log":
                    _set_aside(project / LOG, evidence)
                    write_in_project(project, LOG, log)
                    done.append(f"{LOG} was put back from the journal")
                case "findings":
                    done += _restore_findings(project, violations, evidence)
                case "instructions":
                    for path in (each.path for each in violations if each.what == "instructions"):
                        _set_aside(project / path, evidence / Path(path).parent)
                        if instructions and path in instructions:
                            write_in_project(project, path, instructions[path])
                        done.append(f"{path} is what it was before the run")
                case "git":
                    _copy_git(project, evidence)
                    done.append("git was left as it is; configuration and hooks were copied")
                case "journal":
                    done.append("what was appended to the journal was cut off again; it never counted")
                case "snapshot":
                    done.append("the snapshot cannot be put back; nothing was done")
    return [*done, f"what was found is kept in {evidence}"]


ALLOWED = 1
"""Violations after which a run continues. One more, and it pauses."""

_BETWEEN_RUNS = ("setup", "config", "seal", "journal", "findings")


class Guard:
    """Watches over the files of one project during one supervised run.

    Attributes:
        violations: the number since a run was last stopped for violations, in this run and earlier ones.
    """

    def __init__(self, state: State, sealed: Sealed, results: ResultsLog, *, violations: int) -> None:
        self._project = results.project
        self._state = state
        self._sealed = sealed
        self._results = results
        self._marks: Marks = self.marks()
        self.violations = violations

    @property
    def too_many(self) -> bool:
        """Whether the run must pause until a person has looked."""
        return self.violations > ALLOWED

    def marks(self, *frozen: Path) -> Marks:
        """What must stay as it is, as it is now."""
        return snapshot(self._project, self._state, also=frozen, log=self._results.mark())

    def remember(self) -> None:
        """Makes the present state the baseline: whatever differs from it later, another program changed."""
        self._marks = self.marks()

    def between_runs(self) -> list[str]:
        """Restores what changed since the last run, and names it. People may commit and log by hand
        meanwhile."""
        found = [each for each in compare(self._marks, self.marks()) if each.what in _BETWEEN_RUNS]
        log = self._results.unexpected_change()
        if log is not None:
            found.append(Violation("log", log))
        found += self._interference()
        return self._restore(found) if found else []

    def after(self, before: Marks, frozen: Path, execution: Execution) -> list[str]:
        """What the run did to the contract, a sentence each; what can be restored is restored."""
        changed = [*compare(before, self.marks(frozen)), *self._interference()]
        if execution.isolation != "none":
            changed = [each for each in changed if each.what != "instructions"]
        details = self._restore(changed, before.instructions) if changed else []
        did = [f"forged report: {frame.text}" for frame in execution.bad_frames if frame.forged]
        if execution.escaped:
            did.append(f"{execution.escaped} processes left the experiment's group and were ended")
        if did and not changed:
            self._count(did)
        return [*details, *did]

    def _interference(self) -> list[Violation]:
        what = self._results.journal.interference()
        return [] if what is None else [Violation("journal", what)]

    def _restore(
        self, found: Sequence[Violation], instructions: Mapping[str, bytes] | None = None
    ) -> list[str]:
        details = [violation.detail for violation in found]
        log = self._results.logged_bytes() if any(each.what == "log" for each in found) else b""
        done = restore(self._project, self._state, self._sealed, log, found, instructions)
        self._results.restored()
        self._count([*details, *done])
        return details

    def _count(self, details: Sequence[str]) -> None:
        self.violations += 1
        self._results.journal.append("restored", what=list(details))
        self._results.emit(Violated("; ".join(details)))


def _mark(path: Path) -> str:
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return "missing"
    except NotRegular as problem:
        return str(problem)
    except OSError as problem:
        return f"unreadable ({os.strerror(problem.errno or 0)})"
    return f"{len(data):,} bytes with digest {digest(data)[:16]}"


def _kind(path: Path) -> str:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return "missing"
    if stat.S_ISDIR(mode):
        return "a directory"
    return f"a symbolic link to {os.readlink(path)}" if stat.S_ISLNK(mode) else "not a directory"


def _finding_names(project: Path) -> frozenset[str]:
    with contextlib.suppress(OSError):
        return frozenset(name for name in os.listdir(project / FINDINGS) if name[:4].isdigit())
    return frozenset()


def _instructions(project: Path) -> dict[str, bytes]:
    names = list(INSTRUCTIONS)
    for folder, _, files in os.walk(project / ".claude"):
        names += [Path(folder, name).relative_to(project).as_posix() for name in files]
    found: dict[str, bytes] = {}
    for name in names:
        with contextlib.suppress(OSError, NotRegular):
            found[name] = read_regular(project / name, limit=_LARGEST_INSTRUCTION)
    return found


def _restore_findings(project: Path, violations: Sequence[Violation], evidence: Path) -> list[str]:
    added = [each.path for each in violations if each.what == "findings" and each.path]
    for path in added:
        _set_aside(project / path, evidence)
    if _kind(project / FINDINGS) == "a directory":
        return [f"{path} was set aside" for path in added]
    _set_aside(project / FINDINGS, evidence)
    make_folder(project, FINDINGS)
    return [f"{FINDINGS}/ is a directory again"]


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size


def _replaced(before: tuple[int, int, int], after: tuple[int, int, int]) -> bool:
    return before[:2] != after[:2] or after[2] < before[2]


def _heads(project: Path) -> dict[str, str]:
    """Branch to commit, read from the files: loose refs win over packed ones. Empty without a repository."""
    dirs = git_dirs(project)
    if dirs is None:
        return {}
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (dirs.common / "packed-refs").read_text(encoding="utf-8", errors="replace").splitlines():
            sha, _, name = line.partition(" ")
            if name.startswith("refs/heads/"):
                found[name] = sha
    for path in sorted((dirs.common / "refs" / "heads").rglob("*")):
        with contextlib.suppress(OSError):
            if path.is_file() and path.suffix != ".lock":
                found[path.relative_to(dirs.common).as_posix()] = path.read_text(errors="replace").strip()
    return found


def _git_files(project: Path) -> dict[str, str]:
    dirs = git_dirs(project)
    if dirs is None:
        return {"": "missing"}
    paths = [dirs.common / name for name in _GIT_FILES]
    with contextlib.suppress(OSError):
        paths += sorted((dirs.common / "hooks").iterdir())
    return {path.relative_to(dirs.common).as_posix(): _mark(path) for path in paths if os.path.lexists(path)}


def _moved(before: Marks, after: Marks) -> list[str]:
    """Branches that vanished or lost commits."""
    moved: list[str] = []
    for name, sha in before.heads.items():
        now = after.heads.get(name)
        short = name.removeprefix("refs/heads/")
        if now is None:
            moved.append(f"branch {short} was removed (`git branch {short} {sha[:12]}` brings it back)")
        elif now != sha and not Committer(before.project).descends(now, sha):
            moved.append(
                f"branch {short} was rewritten from {sha[:12]} to {now[:12]}; commits are missing in it"
            )
    return moved


def _new_directory(quarantine: Path) -> Path:
    name = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%f")
    directory = quarantine / name
    directory.mkdir(parents=True)
    return directory


def _replace(path: Path, data: bytes, evidence: Path) -> None:
    if os.path.lexists(path):
        _set_aside(path, evidence)
    write_atomically(path, data)


def _set_aside(path: Path, evidence: Path) -> None:
    evidence.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        shutil.move(path, evidence / path.name)


def _copy_git(project: Path, evidence: Path) -> None:
    dirs = git_dirs(project)
    if dirs is None:
        return
    for name in _git_files(project):
        source, target = dirs.common / name, evidence / "git" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            shutil.copy2(source, target, follow_symlinks=False)
