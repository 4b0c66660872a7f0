"""Held-out numbers stay in the journal until the investigation is closed, and can then be replayed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlxterp.autointerpret.contract import state_dir
from mlxterp_agent import exit_codes
from mlxterp_agent.exit_codes import UsageError
from mlxterp_agent.judge import closing
from mlxterp_agent.judge.replay import replay
from mlxterp_agent.run_config import Options
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.storage.log_index import LogIndex
from mlxterp_agent.supervisor.loop import run
from mlxterp_agent.supervisor.prepare import choose_isolation
from mlxterp_agent.supervisor.single_run import run_once
from tests.agent.fakes import Proposals, entries, git
from tests.agent.judge.claims import declaring, toy_project

pytestmark = pytest.mark.slow  # each claim starts several processes that load the toy


def _ask(project: Path, source: str) -> str:
    (project / "experiment.py").write_text(source)
    return run_once(project, Options(), lambda event: None).text


def _judgement(project: Path) -> dict:
    """The newest judgement in the journal."""
    return _event(project, "judgement")


def _event(project: Path, kind: str) -> dict:
    """The newest event of this kind in the journal."""
    events = Journal(state_dir(project) / "journal.jsonl").events()
    return [each for each in events if each["event"] == kind][-1]


def _replay(project: Path, *ids: str):
    isolation = choose_isolation(allow_unsandboxed=False)
    return replay(project, ids, isolation=isolation, stop=lambda: None)


def _written_by(project: Path) -> str:
    """Everything in the project that an agent can read, the git history included."""
    texts = [path.read_text("utf-8", "replace") for path in project.rglob("*") if path.is_file()]
    return "\n".join([*texts, git(project, "log", "--all", "-p")])


def _numbers(judgement: dict) -> set[str]:
    """Held-out numbers with enough digits to be recognised."""
    numbers = judgement["numbers"]
    values = [*numbers["change"], *numbers["gap"], numbers["effect"], numbers["low"], numbers["high"]]
    return {digits[:8] for value in values if len(digits := re.sub(r"^-?0?", "", repr(abs(value)))) >= 8}


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """An investigation with one judged claim: what it showed before and after it was closed."""
    root = tmp_path_factory.mktemp("closed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOINTERP_STATE_DIR", str(root / "state"))
        project = toy_project(root / "toy", n=32)
        answer = _ask(project, declaring("L1.H1"))
        before = _written_by(project) + answer
        hidden = _replay(project, "0001")
        log = (project / "results.jsonl").read_bytes()
        ended = run(project, Proposals([]), Options(), [].append)
        assert ended.exit_code == exit_codes.FINISHED
        yield project, before, hidden, log


def test_no_held_out_number_is_anywhere_that_an_agent_reads_until_closing(closed):
    project, before, *_ = closed
    numbers = _numbers(_judgement(project))

    assert numbers
    assert not [each for each in numbers if each in before]


def test_closing_appends_one_line_that_names_the_findings_and_rewrites_none(closed):
    project, _, _, log = closed
    raw = (project / "results.jsonl").read_bytes()
    judged = _judgement(project)

    assert raw.startswith(log)
    assert raw.count(b"\n") == log.count(b"\n") + 1
    last = entries(project)[-1]
    assert last.record["verdict"] == "closing"
    assert not last.informative
    shown = last.result["held_out"]["0001"]
    assert shown["effect"] == pytest.approx(judged["numbers"]["effect"])
    assert shown["clusters"] == judged["clusters"]
    assert shown["sha256"] == entries(project)[0].record["measured"]["confirm"]["sha256"]
    gate = _event(project, "gate")["numbers"]
    assert shown["gate"]["model"]["preference"] == gate["model"]["preference"] >= 0.8
    assert (shown["gate"]["model"]["passed"], shown["gate"]["twin"]["passed"]) == (True, False)
    assert "results.jsonl" in git(project, "show", "--name-only", "--format=", "HEAD").split()
    index = LogIndex.in_memory(project / "results.jsonl")
    index.catch_up()
    assert index.tally() == {"supported": 1}


def test_a_second_end_closes_nothing_again(closed):
    project, *_ = closed
    before = (project / "results.jsonl").read_bytes()

    run(project, Proposals([]), Options(), [].append)

    assert (project / "results.jsonl").read_bytes() == before


def test_a_replay_says_same_and_shows_numbers_only_once_closed(closed):
    project, _, hidden, _ = closed
    (before,), (after,) = hidden, _replay(project)

    assert (before.result, before.before, before.now) == ("same", None, None)
    assert (after.entry_id, after.verdict, after.result) == ("0001", "supported", "same")
    assert after.now == pytest.approx(after.before, abs=1e-6)
    assert "same" in after.text


def test_an_entry_without_a_measurement_cannot_be_replayed_and_those_that_can_are_named(closed):
    project, *_ = closed

    with pytest.raises(UsageError, match=r"replay 0007: that entry is not in the log.*: 0001"):
        _replay(project, "0007")


def test_what_was_opened_is_spent(closed):
    project, *_ = closed

    answer = _ask(project, declaring("L1.H0"))

    assert "inconclusive" in answer
    assert "held-out pairs are spent" in answer


def test_a_crash_between_opening_and_the_line_is_repaired_by_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    project = toy_project(tmp_path / "toy")
    _ask(project, declaring("L1.H1"))

    class Crash(BaseException):
        """Ends the run at this point, as a kill would."""

    def crash(self, line):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(closing.ResultsLog, "log_line", crash)
        with pytest.raises(Crash):
            run(project, Proposals([]), Options(), [].append)
    assert [entry.record["verdict"] for entry in entries(project)] == ["supported"]

    run(project, Proposals([]), Options(), [].append)

    verdicts = [entry.record["verdict"] for entry in entries(project)]
    assert verdicts == ["supported", "closing"]
