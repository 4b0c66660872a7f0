"""Sees to it that the contract holds: finds what was changed, has it put back, counts.

How a change is found and undone is `snapshot.py` and, for the log, `results_log.py`. Here lives when it is
looked for (between runs and around each one), what counts as a violation then, and how many there were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mlxterp_agent.events import Emit, Violated
from mlxterp_agent.exit_codes import CONTRACT
from mlxterp_agent.integrity import snapshot as integrity
from mlxterp_agent.integrity.snapshot import Marks, Violation
from mlxterp_agent.judge.evidence import forged
from mlxterp_agent.sandbox.runner import Outcome
from mlxterp_agent.storage.journal import Event
from mlxterp_agent.storage.results_log import Ledger
from mlxterp_agent.storage.state_dir import Sealed, State

ALLOWED = 1
"""Violations after which a run goes on. One more, and it pauses."""

_BETWEEN_RUNS = ("setup", "seal", "journal", "findings")


class Guard:
    """Watches over the files of one project during one supervised run.

    Attributes:
        violations: how many there were, also in earlier runs, since a run last ended because of them.
    """

    def __init__(
        self, project: Path, state: State, sealed: Sealed, ledger: Ledger, emit: Emit, violations: int
    ) -> None:
        self._project = project
        self._state = state
        self._sealed = sealed
        self._ledger = ledger
        self._emit = emit
        self._marks: Marks = self.marks()
        self.violations = violations

    @property
    def too_many(self) -> bool:
        """Whether the run must pause until a person has looked."""
        return self.violations > ALLOWED

    def marks(self, *frozen: Path) -> Marks:
        """What must stay as it is, as it is now."""
        return integrity.snapshot(self._project, self._state, also=frozen)

    def remember(self) -> None:
        """Everything is as the supervisor left it: what differs from now on was somebody else."""
        self._marks = self.marks()

    def between_runs(self) -> list[str]:
        """Puts back what changed since the last run, and says what. People may commit and log by hand
        meanwhile."""
        found = [each for each in integrity.compare(self._marks, self.marks()) if each.what in _BETWEEN_RUNS]
        log = self._ledger.changed_under_us()
        if log is not None:
            found.append(Violation("log", log))
        return self._restored(found) if found else []

    def after(self, before: Marks, frozen: Path, outcome: Outcome) -> list[str]:
        """What the run did to the contract, in words; what can be put back is put back."""
        changed = integrity.compare(before, self.marks(frozen))
        words = self._restored(changed) if changed else []
        did = [f"forged report: {frame}" for frame in forged(outcome.bad_frames)]
        if outcome.escaped:
            did.append(f"{outcome.escaped} processes left the experiment's group and were ended")
        if did and not changed:
            self._count(did)
        return [*words, *did]

    def _restored(self, found: Sequence[Violation]) -> list[str]:
        words = [violation.detail for violation in found]
        log = self._ledger.shadow()
        done = integrity.restore(self._project, self._state, self._sealed, log, found)
        self._count([*words, *done])
        return words

    def _count(self, words: Sequence[str]) -> None:
        self.violations += 1
        self._ledger.journal.append("restored", what=list(words))
        self._emit(Violated("; ".join(words)))


def since_the_pause(events: Iterable[Event]) -> int:
    """Violations count across crashes and restarts, until a run ended because of them: then a person has
    looked."""
    count = 0
    for event in events:
        if event["event"] == "restored":
            count += 1
        elif event["event"] == "stop" and event["exit_code"] == CONTRACT:
            count = 0
    return count
