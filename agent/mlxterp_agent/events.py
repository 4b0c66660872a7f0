"""What happens during a run, as values: the supervisor emits them, and knows nothing of screens.

How they are shown is in `display/`. Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent.researchers.base import BudgetState


@dataclass(frozen=True)
class Started:
    """A supervisor took the directory.

    Attributes:
        entries: how many lines the log holds already: more than none means a resumed run.
        tally: how many of them ended with each verdict.
        kept: the newest that were kept, oldest first.
    """

    project: str
    question: str
    model: str
    researcher: str
    entries: int = 0
    tally: Mapping[str, int] = field(default_factory=dict)
    kept: tuple[ExperimentEntry, ...] = ()


@dataclass(frozen=True)
class Repaired:
    """Something that an earlier end left open was repaired at the start."""

    what: str


@dataclass(frozen=True)
class Progress:
    """Something long happens before the first experiment, such as fetching a model."""

    text: str
    done: float | None = None
    total: float | None = None


@dataclass(frozen=True)
class SetupReady:
    """The sealed setup.py is imported: experiments start without paying for the model.

    `evidence` says how many independent clusters there are, and what can be decided with them.
    """

    model: str
    seconds: float
    blas: str | None = None
    evidence: str = ""


@dataclass(frozen=True)
class Turn:
    """What the researcher is doing now, in one line."""

    text: str


@dataclass(frozen=True)
class Running:
    """An experiment starts: its number, the digest of its bytes, the seconds it may take, its own claim."""

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
    """The contract was violated: what changed, and what was restored."""

    what: str


@dataclass(frozen=True)
class Waiting:
    """The supervisor waits for something, or continues without it."""

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
