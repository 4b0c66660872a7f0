"""`autointerp replay`: a stored claim measured once more, in clean processes, from the sealed setup.py.

The declaration, the pairs and the seeds are those of the judgement in the journal; nothing of the agent's
code runs. Says whether the numbers are the same, up to what a run repeats to; the numbers themselves only
once the investigation is closed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlxterp.autointerpret.contract import SETUP, digest, load_project
from mlxterp.errors import ProjectError
from mlxterp.statistics.ratio import effect_of
from mlxterp_agent.exit_codes import UsageError
from mlxterp_agent.judge.closing import unopened
from mlxterp_agent.judge.decision import same_numbers
from mlxterp_agent.judge.held_out import read_items, salt_of
from mlxterp_agent.judge.judge import Judge, Stop
from mlxterp_agent.platform import Clock, SystemClock, read_or_none
from mlxterp_agent.sandbox.jail import Isolation
from mlxterp_agent.sandbox.measuring import MeasurementFailed, Measurer, Place
from mlxterp_agent.sandbox.runner import Runner
from mlxterp_agent.storage.journal import Event, Journal
from mlxterp_agent.storage.log_index import LogIndex
from mlxterp_agent.storage.state_dir import State, open_state
from mlxterp_agent.text import one_line


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What replaying one entry gave.

    Attributes:
        result: "cannot" where it could not be measured again; `why` says why.
        before, now: R as judged and as replayed; None unless the investigation is closed.
    """

    entry_id: str
    claim: str
    verdict: str
    result: Literal["same", "different", "cannot"] = "cannot"
    why: str = ""
    before: float | None = None
    now: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields, for `--json`."""
        return {("id" if name == "entry_id" else name): value for name, value in asdict(self).items()}

    @property
    def text(self) -> str:
        """One line for a person."""
        numbers = "" if self.before is None else f" (effect {self.before:.4g}, now {self.now:.4g})"
        why = f": {self.why}" if self.why else ""
        claim = one_line(self.claim, 80)
        return f"{self.entry_id}  {self.verdict:12}  {self.result}{why}{numbers}  {claim}"


def replay(
    directory: Path, ids: Sequence[str], *, isolation: Isolation, stop: Stop, clock: Clock | None = None
) -> list[Replay]:
    """Replays these entries, or all that were judged if `ids` is empty.

    Raises:
        UsageError: an id that is not in the log, or was never measured on held-out pairs.
        ProjectError: nothing was judged here, setup.py is not the sealed one or cannot be imported.
    """
    project = load_project(directory)
    state = open_state(project.path)
    clock = clock or SystemClock()
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(contextlib.closing(Journal(state.journal_path, clock=clock)))
        judged = _judged(journal)
        index = stack.enter_context(
            contextlib.closing(LogIndex.read_only(state.index_path, project.log_path))
        )
        chosen = _chosen(index, judged, ids)
        if not chosen:
            raise ProjectError(
                f"{project.path}: no declared claim was measured on held-out pairs here, so there is nothing "
                "to replay. `autointerp log` lists what ran."
            )
        sealed = read_or_none(state.sealed_dir / SETUP)
        if sealed is None:
            raise ProjectError(
                f"{project.path} has no sealed {SETUP} on this machine, and claims are replayed with it. "
                "`autointerp start` seals it."
            )
        judge = _judge(project.path, state, journal, clock, isolation, digest(sealed), stop)
        return [_replay(judge, *each, stop) for each in chosen]


def _judged(journal: Journal) -> dict[str, tuple[Event, dict[str, Any]]]:
    """Judgements with numbers and what they declared, by the uid of the experiment's first line."""
    declared: dict[int, dict[str, Any]] = {}
    found: dict[str, tuple[Event, dict[str, Any]]] = {}
    for event, _ in journal.read():
        match event["event"]:
            case "register":
                declared[event["run"]] = event["hypothesis"]
            case "judgement" if event["numbers"] is not None:
                found[f"{event['uid']}.1"] = (event, declared[event["run"]])
    return found


def _chosen(
    index: LogIndex, judged: dict[str, tuple[Event, dict[str, Any]]], ids: Sequence[str]
) -> list[tuple[str, str, Event, dict[str, Any]]]:
    by_id: dict[str, tuple[str, str, Event, dict[str, Any]]] = {}
    for uid, (event, declared) in judged.items():
        number = index.number_with(uid)
        if number is not None:
            entry = index.entries[number]
            verdict = str((entry.record or {}).get("verdict"))
            by_id[entry.experiment_id] = (entry.experiment_id, verdict, event, declared)
    for each in ids:
        if each not in by_id:
            there = ", ".join(by_id) or "none"
            what = "was not measured on held-out pairs" if index.has_id(each) else "is not in the log"
            raise UsageError(f"replay {each}: that entry {what}. Those that can be replayed: {there}.")
    return [by_id[each] for each in ids] if ids else list(by_id.values())


def _judge(
    project: Path,
    state: State,
    journal: Journal,
    clock: Clock,
    isolation: Isolation,
    setup_sha: str,
    stop: Stop,
) -> Judge:
    sealed = state.sealed_dir / SETUP
    runner = Runner(project, sealed, state, isolation=isolation, grace=1.0, clock=clock)
    with contextlib.closing(runner):
        report = runner.check_setup(stop=stop, progress=lambda _: None)
    if not report.ok:
        why = one_line(report.jail_error or report.error or "it was interrupted", 300)
        raise ProjectError(f"the sealed {SETUP} of {project} cannot be imported now: {why}.")
    judge = Judge(
        measurer=Measurer(Place(project=project, state=state, setup=sealed, isolation=isolation)),
        journal=journal,
        clock=clock,
        setup_sha=setup_sha,
        salt=salt_of(state),
        items=read_items(state),
    )
    judge.divide(report.facts)
    return judge


def _replay(
    judge: Judge, entry_id: str, verdict: str, event: Event, declared: dict[str, Any], stop: Stop
) -> Replay:
    found = Replay(entry_id=entry_id, claim=str(declared["claim"]), verdict=verdict)
    if event["setup"] != judge.setup_sha:
        return replace(found, why="it was judged with another setup.py")
    try:
        rows = judge.measure_again(declared, event, stop)
    except MeasurementFailed as problem:
        return replace(found, why=f"{problem.kind}: {one_line(str(problem), 200)}")
    numbers, now = event["numbers"], rows.cells()
    change, gap = (np.array(numbers[name], dtype=float) for name in ("change", "gap"))
    same = same_numbers((change, gap), (now.change, now.gap))
    found = replace(found, result="same" if same else "different")
    if event["uid"] in unopened(judge.journal):
        return found
    return replace(found, before=float(numbers["effect"]), now=float(effect_of(now.change, now.gap)))
