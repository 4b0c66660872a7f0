"""What happens during a run, as values, and the two printers that need no terminal.

The supervisor emits these values and knows nothing of screens. The rich screen is in `terminal.py`; here are
the plain lines (a pipe, a log file) and the JSON lines (a machine). Nothing here decides anything.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent.researchers.base import BudgetState
from mlxterp_agent.text import duration, one_line, plain


@dataclass(frozen=True)
class Started:
    """A supervisor took the directory. `entries` is what the log already holds: more than none means a
    resumed run."""

    project: str
    question: str
    model: str
    researcher: str
    entries: tuple[ExperimentEntry, ...] = ()


@dataclass(frozen=True)
class Repaired:
    """Something that an earlier end left open was put right at the start."""

    what: str


@dataclass(frozen=True)
class Progress:
    """Something long is under way before the first experiment, such as fetching a model."""

    text: str
    done: float | None = None
    total: float | None = None


@dataclass(frozen=True)
class SetupReady:
    """The sealed setup.py is imported: experiments start without paying for the model."""

    model: str
    seconds: float
    blas: str | None = None


@dataclass(frozen=True)
class Turn:
    """What the researcher is doing now, in one line."""

    text: str


@dataclass(frozen=True)
class Running:
    """An experiment starts: its number, the digest of its bytes, the seconds it may take, what it says it is
    about."""

    run: int
    sha: str
    time_box: float
    about: str = ""


@dataclass(frozen=True)
class Decided:
    """One line was added to the log."""

    entry: ExperimentEntry


@dataclass(frozen=True)
class Spending:
    """Where the budget stands."""

    budget: BudgetState


@dataclass(frozen=True)
class Committed:
    """A kept entry is in git."""

    id: str
    sha: str


@dataclass(frozen=True)
class Violated:
    """The contract was violated; what changed, and that it was restored."""

    what: str


@dataclass(frozen=True)
class Waiting:
    """The supervisor waits for something, or goes on without it; in words."""

    text: str


@dataclass(frozen=True)
class Stopped:
    """The run is over."""

    reason: str
    exit_code: int


Event = (
    Started
    | Repaired
    | Progress
    | SetupReady
    | Turn
    | Running
    | Decided
    | Spending
    | Committed
    | Violated
    | Waiting
    | Stopped
)

Emit = Callable[[Event], None]


class Printer(Protocol):
    """What shows events to somebody; `close` leaves the terminal as it was."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


def verdict_of(entry: ExperimentEntry) -> str:
    """The verdict of a line, or "by hand" where no supervisor judged it."""
    return str(entry.record["verdict"]) if entry.record else "by hand"


def tally(entries: list[ExperimentEntry]) -> dict[str, int]:
    """How many lines ended with each verdict, in the order in which they first appear."""
    counts: dict[str, int] = {}
    for entry in entries:
        counts[verdict_of(entry)] = counts.get(verdict_of(entry), 0) + 1
    return counts


class PlainLines:
    """One line for each thing that happens, without colour or cursor movement."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._told: str | None = None
        self._share = -1.0

    def __call__(self, event: Event) -> None:
        text = self._words(event)
        if text is None or text == self._told or not self._is_a_step(event):
            return
        self._told = text
        print(text, file=self._out, flush=True)

    def close(self) -> None:
        """Nothing to take down."""

    def _is_a_step(self, event: Event) -> bool:
        """Of something that is under way, every tenth is told."""
        if not isinstance(event, Progress) or event.done is None or not event.total:
            return True
        share = event.done / event.total
        if 0 <= share < self._share + 0.1 and share < 1:
            return False
        self._share = share if share < 1 else -1.0
        return True

    def _words(self, event: Event) -> str | None:
        match event:
            case Started():
                held = f", resuming after {len(event.entries)} entries" if event.entries else ""
                return f"investigating {event.project}: {one_line(event.question)} [{event.researcher}{held}]"
            case Repaired():
                return f"repaired: {plain(event.what)}"
            case Progress():
                share = f" {event.done / event.total:.0%}" if event.done is not None and event.total else ""
                return f"{one_line(event.text)}{share}"
            case SetupReady():
                blas = f", BLAS {one_line(event.blas)}" if event.blas else ""
                return f"setup.py is ready: {one_line(event.model)}{blas} ({duration(event.seconds)})"
            case Turn():
                return f"researcher: {one_line(event.text)}" if event.text else None
            case Running():
                about = f": {one_line(event.about, 100)}" if event.about else ""
                return f"run {event.run:04d} started, time box {duration(event.time_box)}{about}"
            case Decided():
                entry = event.entry
                return (
                    f"{entry.experiment_id} {verdict_of(entry)} ({duration(entry.duration_seconds or 0.0)}): "
                    f"{one_line(entry.conclusion, 160)}"
                )
            case Committed():
                return f"{event.id} committed as {event.sha[:10]}"
            case Violated():
                return f"contract violated: {plain(event.what)}"
            case Waiting():
                return f"note: {plain(event.text)}"
            case Spending():
                return None
            case Stopped():
                return f"stopped: {plain(event.reason)}"


class JsonLines:
    """One JSON object for each thing that happens; the key `event` names its kind."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout

    def __call__(self, event: Event) -> None:
        line = {"event": type(event).__name__.lower(), **_fields(event)}
        print(json.dumps(line, ensure_ascii=True, allow_nan=False), file=self._out, flush=True)

    def close(self) -> None:
        """Nothing to take down."""


def _fields(event: Event) -> dict[str, object]:
    match event:
        case Started():
            return {**dataclasses.asdict(event), "entries": len(event.entries)}
        case Decided():
            return entry_fields(event.entry)
        case _:
            return dataclasses.asdict(event)


def entry_fields(entry: ExperimentEntry) -> dict[str, object]:
    """A line of the log as one JSON object without its numbers: what a program that watches a run needs."""
    record = entry.record or {}
    return {
        "experiment_id": entry.experiment_id,
        "verdict": verdict_of(entry),
        "tier": record.get("tier"),
        "reasons": record.get("reasons", []),
        "hypothesis": entry.hypothesis,
        "method": entry.method,
        "informative": entry.informative,
        "conclusion": entry.conclusion,
        "duration_seconds": entry.duration_seconds,
        "run": record.get("run"),
    }
