"""Noticing that experiment.py changed, and reading it without running it."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from watchdog.observers import Observer

from mlxterp_agent.supervisor import watcher as watcher_module
from mlxterp_agent.supervisor.watcher import ExperimentFile, FileWatcher, read_experiment


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "experiment.py").write_text("x = 1\n")
    return tmp_path


def rewrite(project: Path, text: str) -> None:
    (project / "experiment.py").write_text(text)


def replace(project: Path, text: str) -> None:
    beside = project / ".experiment.py.swp"
    beside.write_text(text)
    beside.rename(project / "experiment.py")


def fake_times(project: Path, text: str) -> None:
    path = project / "experiment.py"
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("save", [rewrite, replace, fake_times])
def test_the_bell_rings_however_the_file_is_saved(project: Path, save):
    with FileWatcher(project) as watcher:
        save(project, "y = 22\n")

        assert watcher.wait(5)


def test_the_bell_rings_for_a_stop_file(project: Path):
    with FileWatcher(project) as watcher:
        (project / "STOP").touch()

        assert watcher.wait(5)


def test_reading_the_file_and_writing_others_does_not_ring(project: Path):
    with FileWatcher(project) as watcher:
        read_experiment(project)
        (project / "results.jsonl").write_text("{}\n")

        assert not watcher.wait(0.2)


def test_settling_waits_for_the_last_step_of_a_save(project: Path):
    with FileWatcher(project) as watcher:
        rewrite(project, "y = ")
        rewrite(project, "y = 2\n")
        assert watcher.wait(5)
        watcher.settle(quiet=0.05)

        assert not watcher.wait(0.1)


def test_when_the_system_watches_no_more_files_they_are_polled(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    def exhausted(self: object) -> None:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr(Observer, "start", exhausted)

    with FileWatcher(project) as watcher:
        assert (
            watcher.polling
            == "the system watches no more files (inotify watch limit reached); they are polled instead"
        )
        assert not watcher.wait(0.01)
        replace(project, "y = 22\n")
        assert watcher.wait(5)
        assert not watcher.wait(0.01)


def test_a_file_that_parses_is_a_candidate_with_its_digest(project: Path):
    first = read_experiment(project)
    fake_times(project, "x = 2\n")
    second = read_experiment(project)

    assert (first.error, second.error) == (None, None)
    assert first.source == b"x = 1\n"
    assert first.sha != second.sha


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"x = (\n", "experiment.py, line 1: '(' was never closed"),
        (b"x = 1\ny = = 2\n", "experiment.py, line 2: invalid syntax"),
        (b"", "experiment.py has nothing to run yet"),
        (b"# soon\n", "experiment.py has nothing to run yet"),
        (b"x = 1\ny = '\xff'\n", "experiment.py, line 2: byte 12 is not UTF-8"),
        (b"#" * 300_000, "experiment.py is 300,000 bytes long, and at most 262,144 are read"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(project: Path, content: bytes, error: str):
    (project / "experiment.py").write_bytes(content)

    assert read_experiment(project).error == error


@pytest.mark.parametrize("content", [b"x = 1\0\n", b"(" * 10_000, b"-" * 100_000 + b"1", b"x = '\\d'\n"])
def test_hostile_source_is_never_more_than_an_error(project: Path, content: bytes):
    (project / "experiment.py").write_bytes(content)

    error = read_experiment(project).error

    assert error is None or (error.startswith("experiment.py") and "\n" not in error)


def test_a_missing_file_a_link_and_a_pipe_are_not_read(project: Path):
    path = project / "experiment.py"
    path.unlink()
    assert read_experiment(project).error == "experiment.py is missing"

    path.symlink_to("/etc/passwd")
    assert (
        read_experiment(project).error == "experiment.py is a symbolic link, and it must be a file of its own"
    )

    path.unlink()
    os.mkfifo(path)
    assert read_experiment(project).error == "experiment.py is not a regular file"


def test_a_byte_order_mark_is_no_error(project: Path):
    (project / "experiment.py").write_bytes(b"\xef\xbb\xbfx = 1\n")

    assert read_experiment(project).error is None


def test_an_experiment_that_did_not_change_is_not_parsed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "experiment.py"
    path.write_text("x = 1\n")
    experiment = ExperimentFile(tmp_path)
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    reads: list[Path] = []
    monkeypatch.setattr(
        watcher_module,
        "read_experiment",
        lambda project: (reads.append(project), read_experiment(project))[1],
    )

    first = experiment.read()
    again = [experiment.read() for _ in range(10)]
    path.write_text("x = 2\n")

    assert again == [first] * 10
    assert len(reads) == 1
    assert experiment.read().source == b"x = 2\n"


def test_a_file_that_was_just_written_is_read_until_it_is_a_moment_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "experiment.py"
    path.write_text("x = 1\n")
    written = path.stat()
    experiment = ExperimentFile(tmp_path)
    monkeypatch.setattr(time, "time_ns", lambda: written.st_ctime_ns + 1000)
    experiment.read()
    monkeypatch.setattr(os, "lstat", lambda *a, **k: written)

    path.write_text("x = 2\n")

    assert experiment.read().source == b"x = 2\n"
