"""Somebody else edits experiment.py: a person, or an agent that was opened in the directory by hand.

Covers: waiting for edits as long as the budget lasts (`External`), and one proposal only (`Once`, behind
`autointerp run`). Neither writes a file.
"""

from __future__ import annotations

from mlxterp_agent.researchers.base import (
    WORKING,
    Done,
    DriverState,
    ExperimentOutcome,
    Situation,
)


class External:
    """Always at work: whoever edits needs no turn to be begun and is never done."""

    name = "external"
    model: str | None = None
    session: str | None = None

    def __init__(self) -> None:
        self.told: list[ExperimentOutcome] = []

    def begin_turn(self, situation: Situation) -> None:
        """Nothing to begin; an external researcher reads STATE.md and the log."""

    def poll(self) -> DriverState:
        return WORKING

    def tell(self, told: ExperimentOutcome) -> None:
        """The verdict reaches an external researcher through the log and STATE.md."""

    def close(self) -> None:
        """Nothing was started."""


class Once:
    """One proposal: what experiment.py holds now. Done as soon as the supervisor has dealt with it."""

    name = "external"
    model: str | None = None
    session: str | None = None

    def __init__(self) -> None:
        self.told: ExperimentOutcome | None = None

    def begin_turn(self, situation: Situation) -> None:
        """The proposal is already on disk."""

    def poll(self) -> DriverState:
        return WORKING if self.told is None else Done("one experiment was asked for")

    def tell(self, told: ExperimentOutcome) -> None:
        self.told = told

    def close(self) -> None:
        """Nothing was started."""
