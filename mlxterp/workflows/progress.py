"""How far a workflow is: the values its `progress` callable gets, and what `verbose=True` prints on stderr.

No other place of the library writes there. Does not live here: when progress is reported (the workflows).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from rich.console import Console


@dataclass(frozen=True)
class StepProgress:
    """How far a workflow is.

    Attributes:
        workflow, step: their names.
        done, total: of what the step counts: rows, edges. Both 0 when it begins, equal when it is finished.
        words: the same as a person reads it.
    """

    workflow: str
    step: str
    done: int
    total: int
    words: str

    def __str__(self) -> str:
        return f"{self.step}: {self.words}"


Progress: TypeAlias = Callable[[StepProgress], None]


class ProgressReporter:
    """Reports how far a workflow is, and counts what it ran.

    Args:
        progress: the caller's callable; without one, progress is printed if `verbose`.
    """

    def __init__(self, workflow: str, progress: Progress | None, *, verbose: bool = False) -> None:
        self._workflow = workflow
        self._progress = printer() if progress is None and verbose else progress
        self.ran: dict[str, int] = {}

    def report(self, step: str, words: str, done: int = 0, total: int = 0) -> None:
        """Passes on how far a step is."""
        if self._progress is not None:
            self._progress(StepProgress(self._workflow, step, done, total, words))

    def counter(self, step: str, unit: str) -> Callable[[int, int], None]:
        """A callable for an analysis that reports (done, in all)."""

        def count(done: int, total: int) -> None:
            self.ran[f"{step} {unit}"] = total
            self.report(step, f"{done:,} of {total:,} {unit}", done, total)

        return count


def printer(console: Console | None = None) -> Progress:
    """A progress callable: on a terminal one line per step, which changes; elsewhere one per tenth of it."""
    shown = Console(file=sys.stderr, highlight=False) if console is None else console
    last: list[str] = []
    tenths: dict[str, int] = {}

    def print_progress(progress: StepProgress) -> None:
        line = f"{progress.workflow}  {progress}"
        finished = progress.done == progress.total
        if shown.is_terminal:
            padded = line.ljust(len(last[-1]) if last else 0)
            ends = finished and progress.total > 0
            shown.print(padded, end="\n" if ends else "\r", markup=False, soft_wrap=True)
            last[:] = [] if ends else [line]
            return
        tenth = 10 * progress.done // progress.total if progress.total else -1
        if tenth == -1 or tenth > tenths.get(progress.step, 0):
            tenths[progress.step] = max(tenth, 0)
            shown.print(line, markup=False, soft_wrap=True)

    return print_progress
