"""What an abrupt end leaves is put right at the next start: nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from mlxterp.autointerpret.contract import digest, state_dir
from mlxterp.autointerpret.log import ExperimentLog
from mlxterp_agent.crash_points import POINTS
from mlxterp_agent.events import Event, Repaired, Violated
from mlxterp_agent.exit_codes import CONTRACT, FINISHED
from mlxterp_agent.integrity.verify import verify
from mlxterp_agent.platform import FakeClock
from mlxterp_agent.run_config import Options
from mlxterp_agent.storage.git import Committer
from mlxterp_agent.storage.history import read_history
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.storage.log_index import LogIndex
from mlxterp_agent.storage.recovery import Repairs, reconcile
from mlxterp_agent.storage.results_log import ResultsLog
from mlxterp_agent.storage.state_dir import open_state
from mlxterp_agent.supervisor.loop import run
from tests.agent.fakes import (
    SOURCES,
    WITHOUT_JAIL,
    Proposals,
    entries,
    finished_run,
    git,
    supervise,
    supervise_apart,
    verdicts,
)

KILLED = -9
NAMES = ("alpha", "dull")
NEVER_FINISHED = ("after-intent", "after-run")


def trailers(project: Path) -> list[str]:
    """The experiment ids in the commits of the current branch, oldest first."""
    form = "--format=%(trailers:key=Autointerp-Experiment,valueonly,separator=%x20)"
    return [line for line in git(project, "log", "--reverse", form).splitlines() if line]


def everything_agrees(project: Path) -> bool:
    from mlxterp_agent.storage.state_dir import State

    return all(check.result == "ok" for check in verify(project, State(state_dir(project))))


QUICK = ("after-log",)
"""Points of a kill that the default group tries; the slow group tries all others."""


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            point, marks=[] if point in ("after-log", "after-journal-committed") else pytest.mark.slow
        )
        for point in POINTS
    ],
)
def test_a_kill_at_any_point_loses_no_line_and_doubles_none(project, fault):
    process = supervise_apart(project, NAMES, fault=fault)
    process.communicate(timeout=60)

    ended, _, _ = supervise(project, NAMES)

    found = Counter(
        entry.conclusion for entry in entries(project) if entry.record["verdict"] != "interrupted"
    )
    assert process.returncode == KILLED
    assert ended.exit_code == FINISHED
    assert found == {"alpha was found": 1, "dull was found": 1}
    assert verdicts(project).count("interrupted") == (1 if fault in NEVER_FINISHED else 0)
    assert len({entry.record["uid"] for entry in entries(project)}) == len(entries(project))
    kept = [entry.experiment_id for entry in entries(project) if entry.record["tier"] == "lead"]
    assert sorted(trailers(project)) == kept
    assert everything_agrees(project)


def test_a_run_that_was_killed_counts_against_the_budget(project):
    supervise_apart(project, ["alpha"], fault="after-run").communicate(timeout=60)

    ended, _, _ = supervise(project, ["alpha", "beta"], options=Options(max_experiments=2))

    assert verdicts(project) == ["interrupted", "lead"]
    assert "budget of 2" in ended.reason


def test_a_second_start_changes_nothing(project):
    supervise_apart(project, NAMES, fault="after-log").communicate(timeout=60)
    supervise(project, NAMES)
    log, head = (project / "results.jsonl").read_bytes(), git(project, "rev-parse", "HEAD")

    _, events, _ = supervise(project, NAMES)

    assert (project / "results.jsonl").read_bytes() == log
    assert git(project, "rev-parse", "HEAD") == head
    assert not any(isinstance(event, Repaired) for event in events)


def test_a_torn_last_line_is_set_aside_and_its_result_logged_again(project):
    supervise(project, ["alpha", "beta"])
    log = project / "results.jsonl"
    log.write_bytes(log.read_bytes()[:-40])

    ended, _, _ = supervise(project, [])

    assert ended.exit_code == FINISHED
    assert verdicts(project) == ["lead", "lead"]
    assert (project / "results.jsonl.torn").exists()
    assert everything_agrees(project)


def test_lines_that_were_lost_come_back_from_the_journal(project):
    supervise(project, ["alpha", "beta"])
    log = project / "results.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole.splitlines(keepends=True)[0])

    ended, events, _ = supervise(project, [])

    assert ended.exit_code == FINISHED
    assert log.read_bytes() == whole
    assert any("lost 1 lines" in event.what for event in events if isinstance(event, Repaired))


def test_a_deleted_log_comes_back_whole(project):
    supervise(project, ["alpha", "beta"])
    whole = (project / "results.jsonl").read_bytes()
    (project / "results.jsonl").unlink()

    supervise(project, [])

    assert (project / "results.jsonl").read_bytes() == whole


def test_a_changed_line_stops_the_run_names_it_and_is_put_back(project):
    supervise(project, ["alpha", "beta"])
    log = project / "results.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole.replace(b"beta was found", b"BETA WAS FOUND"))

    ended, _, _ = supervise(project, ["gamma"])
    again, _, _ = supervise(project, ["gamma"])

    assert ended.exit_code == CONTRACT
    assert "line 2" in ended.reason
    assert any(b"BETA" in kept.read_bytes() for kept in (state_dir(project) / "quarantine").iterdir())
    assert again.exit_code == FINISHED
    assert (project / "results.jsonl").read_bytes().startswith(whole)
    assert verdicts(project) == ["lead", "lead", "lead"]


def test_a_forged_supervised_line_stops_the_run(project):
    supervise(project, ["alpha"])
    log = project / "results.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + whole.replace(b'"uid": "', b'"uid": "forged'))

    ended, _, _ = supervise(project, [])

    assert ended.exit_code == CONTRACT
    assert "line 2" in ended.reason
    assert log.read_bytes() == whole


def test_a_missing_folder_of_a_kept_entry_is_made_again_with_the_same_bytes(project):
    supervise(project, ["alpha"])
    folder = project / "findings" / "0001-alpha-was-found"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)

    supervise(project, [])

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_without_its_repository_every_kept_entry_is_committed_anew(project):
    supervise(project, ["alpha", "dull", "beta"])
    shutil.rmtree(project / ".git")

    supervise(project, [])

    assert trailers(project) == ["0001", "0003"]
    assert git(project, "show", "refs/heads/main:experiment.py").endswith(
        'log("beta", {"a": 4.0, "b": 5.0, "c": 6.5})'
    )


def test_a_project_that_was_moved_keeps_its_log_and_goes_on(project, tmp_path):
    supervise(project, ["alpha"])
    moved = tmp_path / "moved"
    shutil.move(project, moved)

    ended, _, _ = supervise(moved, ["beta"])

    assert ended.exit_code == FINISHED
    assert verdicts(moved) == ["lead", "lead"]
    assert ExperimentLog(moved / "results.jsonl").verify() == []
    assert [entry.record["run"] for entry in entries(moved)] == ["0001", "0002"]


def test_a_run_that_was_interrupted_and_never_logged_is_closed_under_its_own_number(project):
    supervise_apart(project, ["alpha"], fault="after-intent").communicate(timeout=60)

    supervise(project, [])

    (entry,) = entries(project)
    events = Journal(state_dir(project) / "journal.jsonl").events()
    (intent,) = [event for event in events if event["event"] == "intent"]
    assert entry.record["verdict"] == "interrupted"
    assert entry.record["uid"] == f"{intent['uid']}.1"
    assert entry.record["execution"]["seconds"] is None


def test_the_events_of_a_repair_are_told(project):
    supervise_apart(project, ["alpha"], fault="after-journal-result").communicate(timeout=60)

    events: list[Event] = supervise(project, [])[1]

    assert [event.what for event in events if isinstance(event, Repaired)] == [
        "0001, which was decided but not logged, was logged",
        "0001, which was kept but not committed, was committed",
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project after two kept experiments and one that was not kept, to be copied."""
    project, _, _ = finished_run(tmp_path_factory.mktemp("finished"), ["alpha", "dull", "beta"])
    return project


def copy_of(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The project at another place with its journal, as if it had been made there; and the journal."""
    project = tmp_path / "project"
    shutil.copytree(finished, project)
    state = state_dir(project)
    (former,) = (path.parent for path in (finished.parent / "state").rglob("journal.jsonl"))
    shutil.copytree(former, state)
    return project, state / "journal.jsonl"


JOURNAL_LINES = 15


@pytest.mark.parametrize(
    "forget", [pytest.param(True, id="whole"), pytest.param(False, id="from-the-stored")]
)
@pytest.mark.parametrize("number", range(JOURNAL_LINES))
def test_a_damaged_line_of_the_journal_never_harms_the_log(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, forget: bool
):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    project, journal = copy_of(finished, tmp_path)
    log = (project / "results.jsonl").read_bytes()
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == JOURNAL_LINES
    lines[number] = lines[number].replace(b'"n"', b'"m"', 1)
    journal.write_bytes(b"".join(lines))
    if forget:
        journal.with_name("history.json").unlink()

    repairs, found = repaired(project)

    assert repairs.broken is None
    assert (project / "results.jsonl").read_bytes() == log
    assert found == ["0001", "0003"]
    assert not any("interrupted" in what for what in repairs.done)


def repaired(project: Path) -> tuple[Repairs, list[str]]:
    """What a start repairs before anything runs, and the ids of the kept lines."""
    state = open_state(project)
    journal = Journal(state.journal_path)
    journal.open()
    history = read_history(journal)
    index = LogIndex.open(state.index_path, project / "results.jsonl")
    results = ResultsLog(
        project,
        journal,
        Committer(project),
        lambda _: None,
        history=history,
        index=index,
        setup_sha=digest((project / "setup.py").read_bytes()),
    )
    repairs = reconcile(results, state, FakeClock())
    return repairs, sorted(index.kept_ids())


def test_a_journal_whose_last_lines_are_damaged_keeps_the_line_that_they_were_about(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    project, journal = copy_of(finished, tmp_path)
    log = (project / "results.jsonl").read_bytes()
    lines = journal.read_bytes().splitlines(keepends=True)
    newest = max(n for n, line in enumerate(lines) if b'"event": "logged"' in line)
    for number in range(newest - 1, len(lines)):
        lines[number] = b"damage\n"
    journal.write_bytes(b"".join(lines))

    repairs, _ = repaired(project)

    assert repairs.broken is None
    assert (project / "results.jsonl").read_bytes() == log


FORGES_JOURNAL = """
import glob, json, os
for path in glob.glob(os.environ["HOME_OF_STATES"] + "/*/journal.jsonl"):
    with open(path, "a") as file:
        for name in ("intent", "result"):
            file.write(json.dumps({"event": name, "n": 99, "session": "x", "elapsed": 0.0}) + chr(10))
log("honest", {"a": 5.1, "b": 5.2, "c": 5.3})
"""


def test_what_an_experiment_appends_to_the_journal_is_a_violation_and_never_a_line(
    project, tmp_path, monkeypatch
):
    source = FORGES_JOURNAL.replace('os.environ["HOME_OF_STATES"]', repr(str(tmp_path / "state")))
    monkeypatch.setitem(SOURCES, "forges-journal", source)

    supervise(project, ["alpha"])
    _, events, _ = supervise(project, ["forges-journal"], options=WITHOUT_JAIL)
    supervise(project, [])

    assert verdicts(project) == ["lead", "invalid:contract"]
    assert any("appended to the journal" in e.what for e in events if isinstance(e, Violated))
    assert everything_agrees(project)


def test_a_byte_of_the_log_that_changes_between_two_runs_is_noticed_and_put_back(project):
    events: list[Event] = []
    log = project / "results.jsonl"
    before: list[bytes] = []

    def change(name: str, _: Path) -> None:
        if name == "beta":
            before.append(log.read_bytes())
            log.write_bytes(before[0].replace(b"alpha was found", b"omega was found"))

    run(project, Proposals(["alpha", "beta"], before=change), Options(), events.append)

    assert any("are not what they were" in e.what for e in events if isinstance(e, Violated))
    assert log.read_bytes().startswith(before[0])
    assert everything_agrees(project)


def test_a_line_logged_by_hand_with_an_id_that_is_taken_is_moved_away_and_reported(project):
    supervise(project, ["alpha"])
    log = project / "results.jsonl"
    whole = log.read_bytes()
    line = json.loads(whole)
    del line["record"]
    log.write_bytes(whole + json.dumps(line).encode() + b"\n")

    ended, events, _ = supervise(project, [])

    assert ended.exit_code == FINISHED
    assert log.read_bytes() == whole
    assert any("an id that is taken" in event.what for event in events if isinstance(event, Repaired))
