"""The protocol of a researcher, and the values that it exchanges with the supervisor.

Each researcher has its own module: a script, Claude Code, an API model, or a person with an editor. The
supervisor alone decides about a proposal.

A researcher works in turns. Within one turn it may write `experiment.py` once and be idle (the scripted
researcher), or write it many times while the supervisor runs each new version (Claude Code): `tell` is
called after every experiment, whether or not the turn has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mlxterp.autointerpret.entry import ExperimentEntry


@dataclass(frozen=True)
class Working:
    """A turn has begun; `doing` describes the researcher's activity in one line, for the live screen.

    `offers` is False while experiment.py may be half written: a researcher that edits it in several
    steps requests its runs itself.
    """

    doing: str = ""
    offers: bool = True


@dataclass(frozen=True)
class Idle:
    """No turn has begun: the next one may."""


@dataclass(frozen=True)
class Done:
    """The researcher has nothing left to propose, for instance because the question is answered.

    `offers` is whether what experiment.py holds now is its last proposal.
    """

    reason: str
    offers: bool = True
    ending: str = "finished"


@dataclass(frozen=True)
class Failed:
    """The researcher cannot continue: no program, a refused key, a service that does not answer.

    `ending` is one of `endings.ENDINGS`, which says what helps.
    """

    reason: str
    ending: str = "researcher"


ResearcherState = Working | Idle | Done | Failed

WORKING = Working()
IDLE = Idle()


@dataclass(frozen=True)
class BudgetState:
    """What has been spent and what is left. None under `*_left` is no limit; None under `usd` or `tokens` is
    unknown."""

    experiments: int = 0
    experiments_left: int | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    usd: float | None = None
    usd_left: float | None = None
    tokens: int | None = None
    tokens_left: int | None = None


class Charge(Protocol):
    """Records a cost of the researcher. `call` identifies its reservation; `details` go to the journal."""

    def __call__(
        self,
        usd: float | None,
        tokens: int | None,
        *,
        call: str | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None: ...


def _charge_nothing(
    usd: float | None,
    tokens: int | None,
    *,
    call: str | None = None,
    details: Mapping[str, object] | None = None,
) -> None:
    """For a situation without a budget."""


class Hold(Protocol):
    """Reserves the worst cost of a call before it is made; `answer_*` is the part of its answer."""

    def __call__(
        self,
        call: str,
        usd: float | None,
        tokens: int | None,
        *,
        answer_usd: float = 0.0,
        answer_tokens: int = 0,
    ) -> None: ...


def _hold_nothing(
    call: str,
    usd: float | None,
    tokens: int | None,
    *,
    answer_usd: float = 0.0,
    answer_tokens: int = 0,
) -> None:
    """For a situation without a budget."""


def _note_nothing(text: str) -> None:
    """For a situation without a screen and a journal."""


@dataclass(frozen=True)
class Situation:
    """What a researcher may know when a turn begins.

    Attributes:
        project: the directory of the investigation.
        entries: every line of the log so far, in order.
        budget: what is left.
        last: the newest entry, or None before the first.
        deadline_left: seconds until the investigation must end; None when nothing limits its time.
        steer: the text of `steer.md`, the guidance a person left for the time between experiments.
        facts: what `setup.py` gave when it was imported: model, metrics, question, size of the dataset.
        charge: called by a researcher that costs money, with dollars and tokens just spent. This and what
            follows is called on the supervisor's thread only.
        hold: reserves the worst cost of a call before it is made; a crash in between spends it.
        budget_now: what is spent and left at this moment.
        note: shows a message on the screen, such as a wait, and writes it to the journal.
    """

    project: Path
    entries: Sequence[ExperimentEntry]
    budget: BudgetState
    last: ExperimentEntry | None
    deadline_left: float | None = None
    steer: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    charge: Charge = _charge_nothing
    hold: Hold = _hold_nothing
    budget_now: Callable[[], BudgetState] = BudgetState
    note: Callable[[str], None] = _note_nothing


@dataclass(frozen=True)
class ExperimentOutcome:
    """The outcome of a proposal, as the researcher gets it.

    Attributes:
        run: the number of the run, or None when nothing ran (the file did not parse, or these bytes ran
        before).
        entries: the lines that the run added to the log.
        text: verdict, reasons, numbers, predictions, budget and output, at most 3 kB.
        guidance: the text of steer.md if it has changed since the researcher last got it; else "".
    """

    run: int | None
    entries: tuple[ExperimentEntry, ...]
    text: str
    guidance: str = ""


class Researcher(Protocol):
    """A researcher. Every method returns at once; none waits for an experiment.

    `begin_turn` starts one turn. `poll` gives its state. `tell` delivers the outcome of an experiment,
    also in the middle of a turn. `close` ends whatever the researcher started, within two seconds.
    """

    @property
    def name(self) -> str:
        """The name in the log: "scripted", "claude-code", "external"."""

    @property
    def model(self) -> str | None:
        """The language model that proposes, or None."""

    @property
    def session(self) -> str | None:
        """The researcher's own id of its conversation, or None."""

    @property
    def answered(self) -> bool:
        """Whether whoever proposes has answered at least once; True where no service is asked."""

    def begin_turn(self, situation: Situation) -> None: ...

    def poll(self) -> ResearcherState: ...

    def tell(self, outcome: ExperimentOutcome) -> None: ...

    def close(self) -> None: ...
