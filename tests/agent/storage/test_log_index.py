"""The index of the log says what the log says, and a start, a status and a line do not read the log again."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from mlxterp.autointerpret.contract import state_dir
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.log import ExperimentLog
from mlxterp.autointerpret.log_file import LogFile
from mlxterp_agent.exit_codes import FINISHED
from mlxterp_agent.state_md import overview_of, overview_of_index, state_text
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.storage.log_index import LineFacts, LogIndex
from mlxterp_agent.supervisor.project_view import read_project
from tests.agent.fakes import entries, finished_run, supervise, verdicts


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project after experiments of several verdicts."""
    return finished_run(tmp_path_factory.mktemp("finished"), ["alpha", "dull", "two", "crash", "declared"])[0]


def log_by_hand(project: Path, count: int) -> None:
    log = ExperimentLog(project / "results.jsonl")
    for number in range(count):
        log.append(ExperimentEntry(f"h{number}", "counting", {"x": number}, False, "c", None))


def test_the_index_agrees_with_the_lines(finished: Path, tmp_path: Path):
    log = finished / "results.jsonl"
    every = ExperimentLog(log).entries()

    index = LogIndex.open(tmp_path / "index", log)
    seal = index.catch_up()

    assert seal == ExperimentLog(log).seal()
    assert list(index.entries) == every
    assert index.entries[1:3] == every[1:3]
    assert index.entries[-1] == every[-1]
    assert sum(index.tally().values()) == len(every)
    assert overview_of_index(index) == overview_of(every)
    for number, entry in enumerate(every):
        assert index.number_of(entry.experiment_id) == number
        assert index.number_with(entry.record["uid"]) == number


@pytest.mark.parametrize("how", ["changed", "shorter", "longer", "removed", "garbage"])
def test_an_index_that_does_not_fit_is_made_anew(tmp_path: Path, how: str):
    log = tmp_path / "results.jsonl"
    log_by_hand(tmp_path, 3)
    index = LogIndex.open(tmp_path / "index", log)
    index.catch_up()
    index.close()
    if how == "changed":
        log.write_bytes(log.read_bytes().replace(b"h1", b"hx"))
    elif how == "shorter":
        log.write_bytes(log.read_bytes().splitlines(keepends=True)[0])
    elif how == "longer":
        log_by_hand(tmp_path, 2)
    elif how == "removed":
        (tmp_path / "index").unlink()
    else:
        (tmp_path / "index").write_bytes(b"garbage" * 1000)

    index = LogIndex.open(tmp_path / "index", log)
    index.catch_up()

    assert list(index.entries) == ExperimentLog(log).entries()
    assert index.seal == ExperimentLog(log).seal()


@pytest.mark.parametrize("when", ["between two starts", "while it is used"])
def test_an_index_whose_tables_another_program_changed_is_made_anew(tmp_path: Path, when: str):
    log = tmp_path / "results.jsonl"
    log_by_hand(tmp_path, 3)
    index = LogIndex.open(tmp_path / "index", log)
    index.catch_up()
    if when == "between two starts":
        index.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "index")) as other, other:
        other.executescript("DROP TABLE line; CREATE TABLE line (number INTEGER);")

    if when == "between two starts":
        index = LogIndex.open(tmp_path / "index", log)
        index.catch_up()

    assert index.tally() == {"by hand": 3}
    assert [entry.hypothesis for entry in index.entries] == ["h0", "h1", "h2"]
    log_by_hand(tmp_path, 1)
    index.add(log.read_bytes().splitlines(keepends=True)[-1:])
    assert index.tally() == {"by hand": 4}
    assert index.seal == ExperimentLog(log).seal()


def test_a_start_parses_only_the_lines_that_are_new(project: Path, monkeypatch: pytest.MonkeyPatch):
    log_by_hand(project, 20)
    supervise(project, ["alpha"])
    log_by_hand(project, 1)
    parsed: list[int] = []
    of = LineFacts.of
    monkeypatch.setattr(LineFacts, "of", staticmethod(lambda raw, at: (parsed.append(at), of(raw, at))[1]))

    ended, _, _ = supervise(project, [])

    assert ended.exit_code == FINISHED
    assert len(parsed) == 1


def test_no_line_reads_the_log_or_the_journal_again(project: Path, monkeypatch: pytest.MonkeyPatch):
    log_by_hand(project, 20)
    read, journal_read = LogFile.read, Journal.read
    reads: list[object] = []
    monkeypatch.setattr(LogFile, "read", lambda self, *a, **k: (reads.append(a), read(self, *a, **k))[1])
    monkeypatch.setattr(
        Journal, "read", lambda self, *a: (reads.append("journal"), journal_read(self, *a))[1]
    )

    supervise(project, ["dull"])
    one = len(reads)
    reads.clear()
    supervise(project, ["crash", "crash-at-once", "silent"])
    three = len(reads)

    assert verdicts_of_supervised(project) == ["note"] * 1 + ["invalid:execution"] * 2 + ["note"]
    assert three <= one


def verdicts_of_supervised(project: Path) -> list[str]:
    return [entry.record["verdict"] for entry in entries(project) if entry.record]


def test_status_says_the_same_without_an_index(project: Path):
    supervise(project, ["alpha", "dull", "two"])
    with_index = read_project(project)
    known = (dict(with_index.tally), with_index.kept_count, list(with_index.entries))
    (state_dir(project) / "log_index.sqlite").unlink()

    without = read_project(project)

    assert (dict(without.tally), without.kept_count, list(without.entries)) == known
    assert not (state_dir(project) / "log_index.sqlite").exists()
    assert verdicts(project) == ["lead", "note", "lead", "lead"]


def test_a_copied_project_takes_its_log_and_its_budget_along(project: Path, tmp_path: Path):
    import shutil

    from mlxterp_agent.events import Repaired

    supervise(project, ["alpha", "beta", "dull"])
    copy = tmp_path / "elsewhere"
    shutil.copytree(project, copy)

    _, events, _ = supervise(copy, ["alpha"])

    seen = read_project(copy)
    assert len(seen.entries) == 3
    assert seen.spent.experiments == 3
    assert seen.spent.seconds >= read_project(project).entries[-1].record["spent"]["seconds"]
    assert any("were taken over" in event.what for event in events if isinstance(event, Repaired))


def test_the_text_of_the_state_is_that_of_all_lines(finished: Path, tmp_path: Path):
    index = LogIndex.in_memory(finished / "results.jsonl")
    index.catch_up()
    budget = read_project(finished).budget()

    shown = state_text(question="q", model="m", log=overview_of_index(index), budget=budget)

    assert shown == state_text(question="q", model="m", log=overview_of(list(index.entries)), budget=budget)
