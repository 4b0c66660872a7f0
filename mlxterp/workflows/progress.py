"""How far a workflow is: the values its `progress` callable gets, and what `verbose=True` prints on stderr.

What analyses show by themselves is in `mlxterp.progress`. Does not live here: when progress is reported
(the workflows).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from rich.console import Console

from mlxterp.progress import AFTER_SECONDS, is_watched


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
ProgressOption: TypeAlias = Progress | bool | None


class ProgressReporter:
    """Reports how far a workflow is, and counts what it ran.

    Args:
        progress: the caller's callable, or False; without one, progress is printed if `verbose`, and else
            after two seconds where somebody watches (`mlxterp.progress.is_watched`).
    """

    def __init__(self, workflow: str, progress: ProgressOption, *, verbose: bool = False) -> None:
        self._workflow = workflow
        self._progress: Progress | None = None
        if callable(progress):
            self._progress = progress
        elif verbose:
            self._progress = printer()
        elif progress is not False and is_watched():
            self._progress = after_seconds(printer())
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


def after_seconds(show: Progress, clock: Callable[[], float] = time.monotonic) -> Progress:
    """The same callable, silent for its first two seconds."""
    began = clock()

    def late(progress: StepProgress) -> None:
        if clock() - began >= AFTER_SECONDS:
            show(progress)

    return late


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
