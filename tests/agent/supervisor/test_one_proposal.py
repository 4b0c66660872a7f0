"""One proposal is one run, limits stay where the command set them, and time is counted whatever ends it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from datetime import datetime
from pathlib import Path

import pytest

from mlxterp.autointerpret.contract import CONFIG, load_project, state_dir
from mlxterp_agent.events import Repaired, Violated, Waiting
from mlxterp_agent.exit_codes import FINISHED
from mlxterp_agent.platform import FakeClock, boot_id
from mlxterp_agent.run_config import Options, next_time
from mlxterp_agent.storage.heartbeat import Heartbeat, uncounted_seconds
from mlxterp_agent.storage.history import read_history
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.storage.state_dir import open_state, sealed_config
from mlxterp_agent.supervisor.single_run import run_once
from tests.agent.fakes import SOURCES, WITHOUT_JAIL, make_project, source, supervise, verdicts

EDITS_ITSELF = """
from pathlib import Path
path = Path("experiment.py").resolve()
path.write_text(path.read_text() + "# again")
log("edited", {"a": 5.1, "b": 5.2, "c": 5.3})
"""


def test_an_experiment_that_edits_its_file_runs_once(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SOURCES, "edits-itself", EDITS_ITSELF)
    (project / "experiment.py").write_text(source("edits-itself"))

    answer = run_once(project, Options(max_experiments=24, allow_unsandboxed=True), lambda _: None)

    assert answer.exit_code == FINISHED
    assert len(verdicts(project)) == 1
    assert (project / "experiment.py").read_text().endswith("# again")


def test_a_researcher_that_has_finished_has_one_last_proposal(project, monkeypatch):
    from mlxterp_agent.researchers.base import Done
    from mlxterp_agent.supervisor.loop import run
    from tests.agent.fakes import Proposals

    monkeypatch.setitem(SOURCES, "edits-itself", EDITS_ITSELF)

    class WritesAndEnds(Proposals):
        def begin_turn(self, situation) -> None:
            super().begin_turn(situation)
            self._state = Done("written")

    run(project, WritesAndEnds(["edits-itself"]), WITHOUT_JAIL, lambda _: None)

    assert len(verdicts(project)) == 1


def test_rewordings_of_one_result_in_one_run_are_kept_once(project, monkeypatch):
    text = "for n in range(100):\n    log(f'wording {n}', {'a': 5.1, 'b': 5.2, 'c': 5.3})"
    monkeypatch.setitem(SOURCES, "rewords", text)

    supervise(project, ["rewords"])

    assert verdicts(project) == ["lead"] + ["invalid:no_op"] * 63


def raise_the_limit(project: Path) -> None:
    config = json.loads((project / CONFIG).read_text())
    (project / CONFIG).write_text(json.dumps({**config, "max_experiments": 1_000_000}))


def test_a_limit_that_was_raised_in_the_file_does_not_count(project: Path):
    supervise(project, ["alpha"])
    before = (project / CONFIG).read_bytes()
    raise_the_limit(project)

    limit = sealed_config(load_project(project)).max_experiments
    _, events, _ = supervise(project, ["beta"])

    assert limit == 100
    assert (project / CONFIG).read_bytes() == before
    assert any(CONFIG in event.what for event in events if isinstance(event, Repaired))


def test_an_experiment_that_raises_its_limit_breaks_the_contract(project, monkeypatch):
    text = """
import json, pathlib
path = pathlib.Path("experiment.py").resolve().parent / ".autointerp/config.json"
path.write_text(path.read_text().replace("100", "1000000"))
log("greedy", {"a": 5.1, "b": 5.2, "c": 5.3})
"""
    monkeypatch.setitem(SOURCES, "greedy", text)
    before = (project / CONFIG).read_bytes()

    _, events, _ = supervise(project, ["greedy"], options=WITHOUT_JAIL)

    assert verdicts(project) == ["invalid:contract"]
    assert (project / CONFIG).read_bytes() == before
    assert any("config.json was changed" in event.what for event in events if isinstance(event, Violated))


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("now", "hours"),
    [
        pytest.param(datetime(2026, 10, 24, 23, 0), 9.0, id="the clocks go back in between"),
        pytest.param(datetime(2026, 3, 28, 23, 0), 7.0, id="the clocks go forward in between"),
        pytest.param(datetime(2026, 7, 1, 23, 0), 8.0, id="they do not change"),
        pytest.param(datetime(2026, 7, 1, 7, 0), 24.0, id="it is that time now"),
    ],
)
def test_until_is_a_time_on_the_wall_also_when_the_clocks_change(berlin, now: datetime, hours: float):
    assert next_time("07:00", now=now).timestamp() - now.timestamp() == hours * 3600


def killed_after(project: Path, clock: FakeClock, seconds: float) -> None:
    """A supervisor that writes its start, lives for so long without another event, and is killed."""
    state = open_state(project)
    journal = Journal(state.journal_path, clock=clock)
    history = read_history(journal)
    began = clock.elapsed()
    clock.advance(0.5)
    lost = uncounted_seconds(state, history, clock, began=began)
    journal.append("start", config={}, uncounted_s=lost)
    heartbeat = Heartbeat(state.heartbeat_path, clock)
    for _ in range(int(seconds)):
        clock.advance(1.0)
        heartbeat.beat()


def test_a_loop_of_crashes_is_not_free(project: Path):
    clock = FakeClock()
    for _ in range(10):
        killed_after(project, clock, 20)
        clock.advance(1000)
    killed_after(project, clock, 0)

    history = read_history(Journal(state_dir(project) / "journal.jsonl", clock=clock))

    assert history.seconds == pytest.approx(10 * 20 + 11 * 0.5)


def test_a_heartbeat_of_another_boot_counts_nothing(project: Path):
    clock = FakeClock()
    killed_after(project, clock, 20)
    beat = open_state(project).heartbeat_path
    beat.write_text(beat.read_text().replace(boot_id(), "another"))
    clock.advance(1000)
    killed_after(project, clock, 0)

    history = read_history(Journal(state_dir(project) / "journal.jsonl", clock=clock))

    assert history.seconds == pytest.approx(1.0)


def test_a_setup_that_was_resealed_lets_the_same_experiment_run_again(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    project = make_project(tmp_path / "project")
    supervise(project, ["alpha"])
    with (project / "setup.py").open("a") as setup:
        setup.write("corrected = True\n")

    from mlxterp_agent.integrity.verify import verify
    from mlxterp_agent.storage.state_dir import State
    from mlxterp_agent.supervisor.loop import run
    from tests.agent.fakes import Proposals

    run(project, Proposals(["alpha"], again=True), Options(reseal=True), lambda _: None)

    assert len(verdicts(project)) == 2
    checks = verify(project, State(state_dir(project)))
    assert [check.text for check in checks if check.result == "problem"] == []
    assert os.path.exists(project / "findings")


def test_calls_that_a_kill_left_open_count_as_spent_and_are_named_at_the_next_start(project: Path):
    with contextlib.closing(Journal(open_state(project).journal_path)) as journal:
        journal.open()
        journal.append("start", config={})
        journal.append("hold", call="lost", usd=0.6, tokens=600)

    _, events, _ = supervise(project, [])

    (named,) = [e.text for e in events if isinstance(e, Waiting) and "left open" in e.text]
    assert named.startswith("1 calls that a kill left open count as spent, $0.6000")
