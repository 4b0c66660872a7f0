"""Trouble with git never stops the science: what is kept is logged, and committed once git is well."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxterp_agent.events import Repaired
from mlxterp_agent.exit_codes import FINISHED
from mlxterp_agent.supervisor.project_view import read_project
from tests.agent.fakes import finished_run, git, make_project, supervise, verdicts


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project with one kept experiment in its repository, to be copied."""
    return finished_run(tmp_path_factory.mktemp("finished"), ["alpha"])[0]


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same project at its place, with the state that belongs to it."""
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(finished.parent / "state"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    saved = tmp_path / "saved"
    shutil.copytree(finished.parent, saved, symlinks=True)
    yield finished
    for name in os.listdir(finished):
        path = finished / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(saved / finished.name, finished, dirs_exist_ok=True)
    shutil.rmtree(finished.parent / "state")
    shutil.copytree(saved / "state", finished.parent / "state")


def ids_in_git(project: Path) -> list[str]:
    form = "--format=%(trailers:key=Autointerp-Experiment,valueonly,separator=%x20)"
    return sorted(line for line in git(project, "log", form).splitlines() if line)


def branch(project: Path) -> Path:
    return project / ".git" / "refs" / "heads" / "main"


def lock_branch(project: Path) -> None:
    branch(project).with_name("main.lock").touch()


def lock_head(project: Path) -> None:
    (project / ".git" / "HEAD.lock").touch()


@pytest.mark.parametrize("lock", [lock_branch, lock_head])
def test_a_lock_that_was_left_behind_delays_the_commit_and_not_the_run(
    project: Path, lock: Callable[[Path], None]
):
    lock(project)

    ended, _, _ = supervise(project, ["beta", "dull"])

    assert ended.exit_code == FINISHED
    assert verdicts(project) == ["lead", "lead", "note"]
    assert "0002" in (read_project(project).uncommitted or "")
    assert ids_in_git(project) == ["0001"]
    for path in (project / ".git").rglob("*.lock"):
        path.unlink()
    supervise(project, [])
    assert ids_in_git(project) == ["0001", "0002"]
    assert read_project(project).uncommitted is None


@pytest.mark.parametrize("lock", [lock_branch, lock_head])
def test_a_lock_that_is_a_minute_old_belongs_to_no_living_git_and_is_removed(
    project: Path, lock: Callable[[Path], None]
):
    lock(project)
    for path in (project / ".git").rglob("*.lock"):
        os.utime(path, (time.time() - 90, time.time() - 90))

    supervise(project, ["beta"])

    assert ids_in_git(project) == ["0001", "0002"]


def spoil_head(text: bytes) -> Callable[[Path], None]:
    return lambda project: (project / ".git" / "HEAD").write_bytes(text) and None


def spoil_ref(text: bytes) -> Callable[[Path], None]:
    return lambda project: branch(project).write_bytes(text) and None


def remove_head(project: Path) -> None:
    (project / ".git" / "HEAD").unlink()


def spoil_config(project: Path) -> None:
    (project / ".git" / "config").write_bytes(b"[core\x00")


def empty_objects(project: Path) -> None:
    for path in (project / ".git" / "objects").glob("??/*"):
        path.chmod(0o644)
        path.write_bytes(b"")


def remove_objects(project: Path) -> None:
    shutil.rmtree(project / ".git" / "objects")


def replace_by_a_file(project: Path) -> None:
    shutil.rmtree(project / ".git")
    (project / ".git").write_text("nothing")


DAMAGE = {
    "HEAD is empty": spoil_head(b""),
    "HEAD is garbage": spoil_head(b"\x00\xff garbage"),
    "HEAD names a path outside": spoil_head(b"ref: refs/heads/../../../../etc/passwd\n"),
    "HEAD is gone": remove_head,
    "the branch is empty": spoil_ref(b""),
    "the branch is garbage": spoil_ref(b"zzzz"),
    "the branch names no commit": spoil_ref(b"1" * 40 + b"\n"),
    "the configuration is broken": spoil_config,
    "all objects are empty": empty_objects,
    "the objects are gone": remove_objects,
}


QUICK = ("HEAD is garbage", "the configuration is broken", "all objects are empty")
"""Damage that the default group tries; the slow group tries the rest."""


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, damage in DAMAGE.items()
    ],
)
def test_a_damaged_repository_is_repaired_or_made_anew_from_the_log(
    project: Path, damage: Callable[[Path], None]
):
    damage(project)

    ended, events, _ = supervise(project, ["beta"])

    assert ended.exit_code == FINISHED
    assert verdicts(project) == ["lead", "lead"]
    assert ids_in_git(project) == ["0001", "0002"]
    assert any("kept" in e.what or "again" in e.what for e in events if isinstance(e, Repaired))
    assert git(project, "fsck", "--strict") == ""


def test_damage_during_a_run_is_repaired_while_it_goes_on(project: Path):
    from mlxterp_agent.run_config import Options
    from mlxterp_agent.supervisor.loop import run
    from tests.agent.fakes import Proposals

    def spoil(name: str, where: Path) -> None:
        if name == "beta":
            spoil_head(b"garbage")(where)

    ended = run(project, Proposals(["beta", "gamma"], before=spoil), Options(), lambda _: None)

    assert ended.exit_code == FINISHED
    assert ids_in_git(project) == ["0001", "0002", "0003"]


def test_a_repository_that_git_does_not_know_how_to_read_is_left_alone(project: Path):
    config = project / ".git" / "config"
    config.write_text("[core]\n\trepositoryformatversion = 99\n")

    ended, _, _ = supervise(project, ["beta"])

    assert ended.exit_code == FINISHED
    assert verdicts(project) == ["lead", "lead"]
    assert "repositoryformatversion = 99" in config.read_text()
    assert "0002" in (read_project(project).uncommitted or "")


def test_a_worktree_that_is_linked_to_a_bare_repository_is_committed_to(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    made = make_project(tmp_path / "made")
    bare, project = tmp_path / "bare.git", tmp_path / "linked"
    identity = ["-c", "user.name=u", "-c", "user.email=u@example.org"]
    for command in (
        ["git", "-C", str(made), "init", "-q", "-b", "main"],
        ["git", "-C", str(made), "add", "."],
        ["git", "-C", str(made), *identity, "commit", "-q", "-m", "x"],
        ["git", "clone", "-q", "--bare", str(made), str(bare)],
        ["git", "-C", str(bare), "worktree", "add", "-q", str(project), "-b", "work"],
    ):
        subprocess.run(command, check=True, capture_output=True)

    ended, _, _ = supervise(project, ["alpha"])

    assert ended.exit_code == FINISHED
    assert ids_in_git(project) == ["0001"]
    assert git(project, "branch", "--show-current") == "work"
