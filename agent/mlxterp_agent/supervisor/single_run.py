"""`autointerp run`: one experiment, fully supervised, or the verdict of the supervisor that already works
there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from mlxterp.autointerpret.contract import load_project
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.hypothesis import read_hypothesis
from mlxterp.errors import DeclarationError
from mlxterp_agent.events import Emit, Event, Progress, Repaired, Violated
from mlxterp_agent.exit_codes import FINISHED, PROJECT, Locked
from mlxterp_agent.messages import outcome_text
from mlxterp_agent.researchers.external import Once
from mlxterp_agent.run_config import Options
from mlxterp_agent.storage.budget import budget_state
from mlxterp_agent.supervisor.loop import run
from mlxterp_agent.supervisor.project_view import read_project
from mlxterp_agent.supervisor.watcher import read_experiment

_POLL = 0.25
_PATIENCE = 60.0


class Answer(NamedTuple):
    """What `autointerp run` prints, the lines of the log that it is about, and its exit code."""

    text: str
    entries: tuple[ExperimentEntry, ...]
    exit_code: int


def run_once(directory: Path, options: Options, emit: Emit) -> Answer:
    """Runs what experiment.py holds now. While another supervisor works here, waits for its verdict on these
    bytes.

    Args:
        emit: shows what takes long before the experiment starts, and what was repaired.

    Raises:
        Locked: the other supervisor did not decide these bytes within the time box and a minute.
    """
    candidate = read_experiment(load_project(directory).path)
    if candidate.error is not None:
        return Answer(f"not run: {candidate.error}", (), PROJECT)
    try:
        read_hypothesis(candidate.source)
    except DeclarationError as problem:
        # A supervisor refuses it without a line in the log, so there would be nothing to wait for.
        return Answer(f"not run: {problem}", (), PROJECT)
    until, waits = time.monotonic() + options.time_per_experiment + _PATIENCE, False
    while True:
        try:
            return _run(directory, options, emit)
        except Locked as other:
            if time.monotonic() > until:
                raise
            if not waits:
                who = "" if other.pid is None else f", process {other.pid}"
                emit(Progress(f"waiting for the verdict of the supervisor that works here{who}"))
                waits = True
        time.sleep(_POLL)
        answer = _decided(directory, candidate.sha)
        if answer is not None:
            return answer


def _run(directory: Path, options: Options, emit: Emit) -> Answer:
    researcher, violated = Once(), list[str]()

    def listen(event: Event) -> None:
        if isinstance(event, Violated):
            violated.append(f"contract violated: {event.what}")
        elif isinstance(event, Progress | Repaired):
            emit(event)

    ended = run(directory, researcher, options, listen)
    outcome = researcher.outcome
    if outcome is None:
        return Answer(f"not run: {ended.reason}", (), ended.exit_code)
    exit_code = PROJECT if outcome.run is None and not outcome.entries else FINISHED
    return Answer("\n".join([outcome.text, *violated]), outcome.entries, ended.exit_code or exit_code)


def _decided(directory: Path, sha: str) -> Answer | None:
    """The other supervisor's lines on these bytes, once they are in the log."""
    seen = read_project(directory)
    entries = seen.lines_of(sha)
    if not entries:
        return None
    budget = budget_state(seen.spent, (seen.options or Options()).limits(), None)
    return Answer(outcome_text(entries, budget), entries, FINISHED)
