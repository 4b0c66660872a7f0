"""What an experiment plants where the supervisor writes is never followed or waited for, and ends nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxterp_agent.events import Repaired
from mlxterp_agent.exit_codes import FINISHED
from mlxterp_agent.storage.project_files import (
    clear_for_file,
    clear_for_folder,
    create_in_project,
    make_folder,
    write_in_project,
)
from mlxterp_agent.supervisor.report_process import write_report
from tests.agent.fakes import finished_run, make_project, supervise, verdicts


def link_to_file(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "secret.txt")


def link_to_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def link_to_nothing(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "new.txt")


def link_to_itself(path: Path, outside: Path) -> None:
    path.symlink_to(path)


def fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, outside: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("kept")


PLANTED = (link_to_file, link_to_folder, link_to_nothing, link_to_itself, fifo, folder)
Plant = Callable[[Path, Path], None]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "secret.txt").write_text("precious")
    return place


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "project"
    made.mkdir()
    return made


def untouched(outside: Path) -> bool:
    return os.listdir(outside) == ["secret.txt"] and (outside / "secret.txt").read_text() == "precious"


@pytest.mark.parametrize("plant", PLANTED)
def test_what_stands_where_a_file_belongs_is_moved_aside_and_reported(
    place: Path, outside: Path, plant: Plant
):
    (place / "findings").mkdir()
    plant(place / "findings" / "a.md", outside)
    said: list[str] = []

    write_in_project(place, "findings/a.md", b"ours", notice=said.append)

    assert (place / "findings" / "a.md").read_bytes() == b"ours"
    assert not (place / "findings" / "a.md").is_symlink()
    assert untouched(outside)
    assert len(said) == 1
    (kept,) = os.listdir(place / ".autointerp" / "aside")
    assert kept in said[0]


@pytest.mark.parametrize("plant", [*PLANTED[:-1], lambda path, outside: path.write_text("a file")])
@pytest.mark.parametrize("at", ["findings", "findings/0001-x", ".autointerp", ".autointerp/runs"])
def test_what_stands_where_a_directory_belongs_is_moved_aside(
    place: Path, outside: Path, plant: Plant, at: str
):
    (place / at).parent.mkdir(exist_ok=True)
    plant(place / at, outside)
    said: list[str] = []

    write_in_project(place, f"{at}/deep/file.md", b"ours", notice=said.append)

    assert (place / at / "deep" / "file.md").read_bytes() == b"ours"
    assert not (place / at).is_symlink()
    assert untouched(outside)
    assert len(said) == 1


def test_a_file_that_is_there_is_replaced_in_one_step_and_nothing_else_stays(place: Path):
    write_in_project(place, "STATE.md", b"one", flush=False)
    before = (place / "STATE.md").stat().st_ino

    write_in_project(place, "STATE.md", b"two", flush=False)

    assert os.listdir(place) == ["STATE.md"]
    assert (place / "STATE.md").read_bytes() == b"two"
    assert (place / "STATE.md").stat().st_ino != before


def test_a_hard_link_to_a_file_outside_is_not_written_through(place: Path, outside: Path):
    os.link(outside / "secret.txt", place / "STATE.md")

    write_in_project(place, "STATE.md", b"ours")

    assert untouched(outside)


def test_a_stream_of_a_run_goes_to_a_new_file(place: Path, outside: Path):
    (place / "stdout.txt").symlink_to(outside / "secret.txt")

    with open(create_in_project(place, "stdout.txt"), "wb") as file:
        file.write(b"printed")

    assert (place / "stdout.txt").read_bytes() == b"printed"
    assert untouched(outside)


@pytest.mark.parametrize("plant", PLANTED)
def test_a_place_is_cleared_for_another_function(place: Path, outside: Path, plant: Plant):
    plant(place / "report.html", outside)
    if plant is not folder:
        plant(place / "report_files", outside)

    clear_for_file(place, "report.html")
    clear_for_folder(place, "report_files")

    assert not os.path.lexists(place / "report.html")
    assert not (place / "report_files").is_symlink()
    assert make_folder(place, "report_files").is_dir()
    assert untouched(outside)


WRITTEN = (
    "STATE.md",
    "findings",
    "results.jsonl",
    "results.jsonl.torn",
    "report.html",
    "report.md",
    "report_files",
    ".autointerp/runs",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("finished"), ["alpha"])[0]


@pytest.mark.parametrize("plant", [link_to_folder, fifo, pytest.param(link_to_file, marks=pytest.mark.slow)])
def test_the_night_goes_on_with_something_planted_at_every_name(
    finished: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, plant: Plant
):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(finished.parent / "state"))
    known = len(verdicts(finished))
    log = (finished / "results.jsonl").read_bytes()
    for name in WRITTEN:
        path = finished / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        plant(path, outside)
    (finished / ".STATE.md.tmp").unlink(missing_ok=True)
    plant(finished / ".STATE.md.tmp", outside)

    fresh = {link_to_folder: "beta", fifo: "gamma", link_to_file: "two"}[plant]
    ended, events, _ = supervise(finished, [fresh])
    write_report(finished)
    (finished / ".STATE.md.tmp").unlink()

    assert ended.exit_code == FINISHED
    assert (finished / "results.jsonl").read_bytes().startswith(log)
    assert len(verdicts(finished)) > known
    assert untouched(outside)
    assert (finished / "findings").is_dir()
    assert (finished / "report.html").stat().st_size > 1000
    moved = [event.what for event in events if isinstance(event, Repaired) and "moved" in event.what]
    assert {what.partition(" ")[0] for what in moved} >= {"results.jsonl", "results.jsonl.torn", "findings"}


def test_a_pipe_in_the_place_of_the_configuration_is_not_waited_for(tmp_path: Path):
    from mlxterp.autointerpret.contract import read_config
    from mlxterp.errors import ProjectError

    project = make_project(tmp_path / "project")
    (project / ".autointerp" / "config.json").unlink()
    os.mkfifo(project / ".autointerp" / "config.json")

    with pytest.raises(ProjectError, match="Put a regular file there"):
        read_config(project)
