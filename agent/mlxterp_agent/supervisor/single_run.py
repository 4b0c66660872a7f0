"""`autointerp run`: one experiment, fully supervised, or the verdict of the supervisor that already works
there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mlxterp.autointerpret.contract import SETUP, digest, load_project, scaffold_experiment
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.hypothesis import read_hypothesis
from mlxterp.autointerpret.prediction import read_predictions
from mlxterp.errors import DeclarationError
from mlxterp_agent.events import Emit, Event, Progress, Repaired, Violated
from mlxterp_agent.exit_codes import FINISHED, INVALID, NOTHING_RAN, PROJECT, Locked
from mlxterp_agent.outcome import outcome_text, printed_by, repeat_text
from mlxterp_agent.platform import read_or_none
from mlxterp_agent.researchers.external import Once
from mlxterp_agent.run_config import Options
from mlxterp_agent.storage.budget import budget_state
from mlxterp_agent.storage.record import digests_of, verdict_of
from mlxterp_agent.supervisor.guidance import Guidance, guidance_of
from mlxterp_agent.supervisor.loop import run
from mlxterp_agent.supervisor.project_view import read_project
from mlxterp_agent.supervisor.watcher import SCAFFOLD_TEXT, Candidate, read_experiment

_POLL = 0.25
_PATIENCE = 60.0


class Answer(NamedTuple):
    """What `autointerp run` prints, the lines of the log that it is about, its exit code; and the guidance
    of steer.md if it has changed."""

    text: str
    entries: tuple[ExperimentEntry, ...]
    exit_code: int
    guidance: str = ""


def run_once(directory: Path, options: Options, emit: Emit) -> Answer:
    """Runs what experiment.py holds now. While another supervisor works here, waits for its verdict on these
    bytes.

    Args:
        emit: shows what takes long before the experiment starts, and what was repaired.

    Raises:
        Locked: the other supervisor did not decide these bytes within the time box and a minute.
    """
    candidate = read_experiment(load_project(directory).path)
    if (known := _known_at_once(directory, candidate)) is not None:
        return known
    until, waits = time.monotonic() + options.time_per_experiment + _PATIENCE, False
    while True:
        try:
            return _run(directory, options, emit)
        except Locked as other:
            if time.monotonic() > until:
                raise
            if candidate.sha == scaffold_experiment(directory):
                return Answer(f"not run: {SCAFFOLD_TEXT}", (), PROJECT)
            if not waits:
                who = "" if other.pid is None else f", process {other.pid}"
                emit(Progress(f"waiting for the verdict of the supervisor that works here{who}"))
                waits = True
        time.sleep(_POLL)
        answer = _decided(directory, candidate.sha)
        if answer is not None:
            return answer


def wait_beside(directory: Path, longest: float, stopped: Callable[[], bool]) -> Answer | None:
    """The verdict of the supervisor that works here on what experiment.py holds now; None if none works here,
    or it went away. For a process that is there already: nothing is started, the supervisor's warm child runs
    the file.

    Args:
        longest: seconds to wait; after that None.
        stopped: asked four times a second; True ends the wait.
    """
    if read_project(directory).holder is None:
        return None
    candidate = read_experiment(load_project(directory).path)
    if candidate.sha == scaffold_experiment(directory):
        return Answer(f"not run: {SCAFFOLD_TEXT}", (), PROJECT)
    if (known := _known_at_once(directory, candidate)) is not None:
        return known
    until = time.monotonic() + longest + _PATIENCE
    while time.monotonic() < until and not stopped():
        time.sleep(_POLL)
        answer = _decided(directory, candidate.sha)
        if answer is not None:
            return answer
        if read_project(directory).holder is None:
            return _decided(directory, candidate.sha)
    return None


def _known_at_once(directory: Path, candidate: Candidate) -> Answer | None:
    """What needs no run: a file that cannot run, a declaration that cannot stand, bytes that ran before."""
    if candidate.error is not None:
        return Answer(f"not run: {candidate.error}", (), PROJECT)
    try:
        read_hypothesis(candidate.source)
        read_predictions(candidate.source)
    except DeclarationError as problem:
        # A supervisor refuses it without a line in the log, so there would be nothing to wait for.
        return Answer(f"not run: {problem}", (), PROJECT)
    return _decided(directory, candidate.sha, before=True)


def _run(directory: Path, options: Options, emit: Emit) -> Answer:
    researcher, violated = Once(), list[str]()

    def listen(event: Event) -> None:
        if isinstance(event, Violated):
            violated.append(f"contract violated: {event.what}")
        elif isinstance(event, Progress | Repaired):
            emit(event)

    ended = run(directory, researcher, options, listen, closes=False)
    outcome = researcher.outcome
    if outcome is None:
        return Answer(f"not run: {ended.reason}", (), ended.exit_code or NOTHING_RAN)
    exit_code = PROJECT if outcome.run is None and not outcome.entries else _code_of(outcome.entries)
    text = "\n".join([outcome.text, *violated])
    return Answer(text, outcome.entries, ended.exit_code or exit_code, outcome.guidance)


def _code_of(entries: Sequence[ExperimentEntry]) -> int:
    """The exit code of an experiment that ran, by its verdicts."""
    invalid = any(verdict_of(each).startswith(("invalid", "interrupted")) for each in entries)
    return INVALID if invalid else FINISHED


def _stands(entry: ExperimentEntry, setup: str) -> bool:
    """Whether a line says something of the same bytes now: they ran to an end, with this setup.py."""
    status = ((entry.record or {}).get("execution") or {}).get("status")
    return digests_of(entry).get("setup") == setup and status not in ("interrupted", "refused")


def _decided(directory: Path, sha: str, *, before: bool = False) -> Answer | None:
    """The lines on these bytes, once they are in the log: from the other supervisor, or from `before`."""
    seen = read_project(directory)
    entries = seen.lines_of(sha)
    if before:
        setup = digest(read_or_none(seen.project.path / SETUP) or b"")
        entries = tuple(entry for entry in entries if _stands(entry, setup))
    if not entries:
        return None
    budget = budget_state(seen.spent, (seen.options or Options()).limits(), None)
    path = seen.project.path
    if before:
        guidance = Guidance(path, seen.state.root, jailed=True).if_changed()
        return Answer(repeat_text(entries, budget, path), entries, _code_of(entries), guidance)
    run_id = (entries[0].record or {}).get("run")
    text = outcome_text(entries, budget, printed=printed_by(path, run_id))
    return Answer(text, entries, _code_of(entries), guidance_of(seen.state.root, run_id))
