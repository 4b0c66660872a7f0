"""Lock and seal of a project, in the user state directory."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mlxterp.errors import ProjectError
from mlxterp_agent.exit_codes import Locked, SetupChanged, StateUnavailable
from mlxterp_agent.storage.state_dir import (
    ProjectLock,
    State,
    holder,
    open_state,
    seal,
)

HOLD = """
import subprocess, sys
from pathlib import Path
from mlxterp_agent.storage.state_dir import ProjectLock, open_state
lock = ProjectLock(open_state(Path(sys.argv[1])))
lock.acquire()
orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
print("held", flush=True)
input()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    made = tmp_path / "project"
    made.mkdir()
    (made / "setup.py").write_text("model = 1\n")
    (made / "program.md").write_text("Why?\n")
    return made


@pytest.fixture
def state(project: Path) -> State:
    return open_state(project)


def test_the_state_of_a_project_is_private_and_outside_of_it(project: Path, state: State):
    assert project not in state.root.parents
    assert {stat.S_IMODE(path.stat().st_mode) for path in (state.root, state.sealed_dir, state.tmp_dir)} == {
        0o700
    }


def test_a_link_to_a_project_leads_to_the_same_state(project: Path, state: State):
    link = project.parent / "link"
    link.symlink_to(project)

    assert open_state(link) == state


def test_a_state_directory_that_cannot_be_made_is_named(project: Path, monkeypatch: pytest.MonkeyPatch):
    occupied = project.parent / "occupied"
    occupied.write_text("a file")
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(occupied))

    with pytest.raises(StateUnavailable, match="AUTOINTERP_STATE_DIR"):
        open_state(project)


def test_a_second_supervisor_is_refused_with_the_name_of_the_first(project: Path, state: State):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(project)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"

        with pytest.raises(Locked, match=f"process {first.pid} works on it") as caught:
            ProjectLock(state).acquire()

        known = holder(state)
        first.kill()

    assert caught.value.pid == first.pid
    assert known is not None
    assert known.pid == first.pid


def test_a_killed_supervisor_leaves_no_lock_though_its_children_live_and_its_number_is_in_the_file(
    project: Path, state: State
):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(project)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()
        first.kill()
        first.wait()

        assert holder(state) is None
        with ProjectLock(state):
            known = holder(state)

    assert known is not None
    assert known.pid == os.getpid()


def test_asking_who_holds_the_lock_does_not_take_it(state: State):
    assert holder(state) is None

    with ProjectLock(state):
        assert holder(state) is not None

    assert holder(state) is None


def test_the_first_start_seals_setup_and_later_starts_find_it_unchanged(project: Path, state: State):
    first = seal(state, project)

    assert first.setup.read_bytes() == b"model = 1\n"
    assert seal(state, project) == first


def test_a_changed_setup_is_refused_and_the_seal_stays(project: Path, state: State):
    sealed = seal(state, project)
    (project / "setup.py").write_text("model = 2\n")

    with pytest.raises(SetupChanged, match="cp '"):
        seal(state, project)

    assert sealed.setup.read_bytes() == b"model = 1\n"


def test_sealing_anew_takes_what_is_there(project: Path, state: State):
    seal(state, project)
    (project / "setup.py").write_text("model = 2\n")

    assert seal(state, project, reseal=True).setup_bytes == b"model = 2\n"
    assert seal(state, project).setup_bytes == b"model = 2\n"


def test_the_program_may_change_between_starts(project: Path, state: State):
    before = seal(state, project).program_sha
    (project / "program.md").write_text("How?\n")

    assert seal(state, project).program_sha != before


@pytest.mark.parametrize(
    ("spoil", "words"), [("missing", "is missing"), ("link", "symbolic link"), ("pipe", "regular")]
)
def test_a_setup_that_is_no_file_is_refused(project: Path, state: State, spoil: str, words: str):
    setup = project / "setup.py"
    setup.unlink()
    if spoil == "link":
        setup.symlink_to(project / "program.md")
    elif spoil == "pipe":
        os.mkfifo(setup)

    with pytest.raises(ProjectError, match=words):
        seal(state, project)
