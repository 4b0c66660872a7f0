"""experiment.py is edited from outside: by a person, or by an agent that was opened in the directory by hand.

Covers: waiting for edits as long as the budget lasts (`External`), and one proposal only (`Once`, behind
`autointerp run`). Neither writes a file, begins a turn or starts a process.
"""

from __future__ import annotations

from mlxterp_agent.researchers.base import (
    WORKING,
    Done,
    ExperimentOutcome,
    ResearcherState,
    Situation,
)


class External:
    """Always working: an external editor needs no turn, and is never done."""

    name = "external"
    model: str | None = None
    session: str | None = None
    answered = True

    def begin_turn(self, situation: Situation) -> None:
        """An external researcher reads STATE.md and the log."""

    def poll(self) -> ResearcherState:
        return WORKING

    def tell(self, outcome: ExperimentOutcome) -> None:
        """The verdict reaches an external researcher through the log and STATE.md."""

    def close(self) -> None: ...


class Once:
    """One proposal: the present experiment.py. Done as soon as it has an outcome."""

    name = "external"
    model: str | None = None
    session: str | None = None
    answered = True

    def __init__(self) -> None:
        self.outcome: ExperimentOutcome | None = None

    def begin_turn(self, situation: Situation) -> None:
        """The proposal is already on disk."""

    def poll(self) -> ResearcherState:
        return WORKING if self.outcome is None else Done("one experiment was asked for", offers=False)

    def tell(self, outcome: ExperimentOutcome) -> None:
        self.outcome = outcome

    def close(self) -> None: ...
