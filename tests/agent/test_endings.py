"""How runs end: each end has its exit code and a next step that works, and all of them are in one table."""

from __future__ import annotations

import re
import shlex
import typing
from pathlib import Path

import click
import pytest
import typer

from mlxterp_agent import exit_codes
from mlxterp_agent.cli import app
from mlxterp_agent.endings import ENDINGS, end, go_on, refused
from mlxterp_agent.exit_codes import Ended
from mlxterp_agent.researchers.base import (
    IDLE,
    Done,
    ExperimentOutcome,
    Failed,
    ResearcherState,
    Situation,
    Working,
)
from mlxterp_agent.run_config import Options
from mlxterp_agent.storage.budget import Budget, Limits, Spent
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.supervisor.loop import run
from tests.agent.fakes import supervise

OPTIONS = Options(max_experiments=7, seconds=1.5 * 3600, usd=2.5, tokens=1000)


@pytest.mark.parametrize("name", ENDINGS)
def test_the_next_step_of_every_end_is_a_command_that_there_is(name):
    line = go_on(end(name, "why"), Path("/a b/project"), OPTIONS)

    commands = [
        part[part.index("autointerp") :] for part in re.split(r"[;,(]| then ", line) if "autointerp" in part
    ]
    assert commands
    assert "{" not in line
    for each in commands:
        words = shlex.split(re.sub(r"\).*| with .*| names it.*| shows it.*|, .*", "", each))
        command = typing.cast(click.Group, typer.main.get_command(app)).commands[words[1]]
        options = {option for param in command.params for option in param.opts}
        assert "/a b/project" in words
        assert [word for word in words if word.startswith("--") and word not in options] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("experiments", "autointerp start '/a b' --max-experiments 14"),
        ("hours", "autointerp start '/a b' --hours 3"),
        ("usd", "autointerp start '/a b' --max-usd 5"),
        ("tokens", "autointerp start '/a b' --max-tokens 2000"),
        ("stop", "rm '/a b'/STOP && autointerp start '/a b'"),
        ("interrupted", "autointerp start '/a b'"),
    ],
)
def test_a_limit_that_was_reached_is_doubled_and_a_path_is_quoted(name, said):
    assert go_on(end(name, "why"), Path("/a b"), OPTIONS) == said


def test_every_exit_code_of_an_end_is_one_that_the_help_explains():
    assert {each.exit_code for each in ENDINGS.values()} <= set(exit_codes.MEANING)


@pytest.mark.parametrize(
    ("limits", "ending"),
    [
        (Limits(experiments=3), "experiments"),
        (Limits(seconds=60.0), "hours"),
        (Limits(until=1.0), "until"),
        (Limits(usd=1.0), "usd"),
        (Limits(tokens=1000), "tokens"),
        (Limits(streak=2), "streak"),
    ],
)
def test_each_limit_ends_a_run_in_its_own_way(tmp_path, monkeypatch, limits, ending):
    from mlxterp_agent.platform import SystemClock
    from mlxterp_agent.storage.history import read_history

    journal = Journal(tmp_path / "journal.jsonl")
    monkeypatch.setattr(Budget, "spent", lambda _: Spent(9, 900.0, 9.0, 9000, 9))
    reached = Budget(limits, SystemClock(), journal, read_history(journal)).reached()

    assert reached is not None
    assert reached.ending == ending
    pattern = re.sub(r"\bN\b", r"[\\d.,]+", re.escape(ENDINGS[ending].says).replace(r"\ ", " "))
    assert re.match(pattern, reached.reason)


@pytest.mark.parametrize(
    ("status", "ending"),
    [(401, "key"), (402, "account"), (403, "key"), (404, "model"), (400, "researcher"), (None, "researcher")],
)
def test_what_a_service_refuses_is_told_apart(status, ending):
    assert refused(status) == ending
    assert ENDINGS[ending].exit_code == exit_codes.RESEARCHER


class Silent:
    """A researcher of a service that never answers."""

    name = "silent"
    model: str | None = "some-model"
    session: str | None = None
    answered = False

    def __init__(self, *, then: ResearcherState | None = None, charges: bool = False) -> None:
        self._state: ResearcherState = IDLE
        self._then = then
        self._charges = charges
        self._polls = 0
        self._situation: Situation | None = None

    def begin_turn(self, situation: Situation) -> None:
        self._state = self._then or Working("waits 30 s for the service (no connection)", offers=False)
        self._situation = situation

    def poll(self) -> ResearcherState:
        self._polls += 1
        if self._charges and self._polls == 4 and self._situation is not None:
            self._situation.charge(1.0, 10)
        return self._state

    def tell(self, told: ExperimentOutcome) -> None:
        """It hears nothing."""

    def close(self) -> None:
        """Nothing was started."""


def ended_by(project: Path, researcher: Silent, options: Options | None = None) -> Ended:
    return run(project, researcher, options or Options(), lambda _: None)


def test_a_run_that_never_got_an_answer_does_not_end_well(project):
    ended = ended_by(project, Silent(charges=True), Options(usd=0.5))

    assert ended.exit_code == exit_codes.RESEARCHER
    assert ended.ending == "service"
    assert "the service never answered: waits 30 s for the service (no connection)" in ended.reason


def test_a_researcher_that_says_done_without_an_answer_does_not_end_well(project):
    ended = ended_by(project, Silent(then=Done("the time is up before", ending="service_for_now")))

    assert (ended.ending, ended.exit_code) == ("service", exit_codes.RESEARCHER)


@pytest.mark.parametrize(
    "ending", ["key", "account", "model", "service", "crash", "old_client", "researcher"]
)
def test_a_failure_keeps_its_kind(project, ending):
    ended = ended_by(project, Silent(then=Failed("why", ending)))

    assert ended == ("why", exit_codes.RESEARCHER, ending)


@pytest.mark.parametrize(
    ("names", "options", "ending"),
    [
        (["alpha"], Options(max_experiments=1), "experiments"),
        (["alpha"], None, "finished"),
        (["crash", "dull", "crash2"], Options(streak=2), "streak"),
    ],
)
def test_a_run_ends_by_what_is_reached_first(project, names, options, ending):
    ended, _, _ = supervise(project, names, options=options)

    assert ended.ending == ending


def test_a_file_stop_ends_a_run(project):
    (project / "STOP").touch()

    ended, _, _ = supervise(project, ["alpha"])

    assert (ended.ending, ended.exit_code) == ("stop", exit_codes.FINISHED)
