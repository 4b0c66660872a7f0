"""What `verbose=True` does: how far a workflow is, on stderr. No other place of the library writes there.

Lives here: printing. Does not live here: what is printed (`api.py`).
"""

from __future__ import annotations

import sys

from rich.console import Console

from mlxterp.workflows.request import Progress, StepProgress


def printer(console: Console | None = None) -> Progress:
    """A progress callable: on a terminal one line per step, which changes; elsewhere one per tenth of it."""
    shown = Console(file=sys.stderr, highlight=False) if console is None else console
    last: list[str] = []
    tenths: dict[str, int] = {}

    def tell(progress: StepProgress) -> None:
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

    return tell


def progress_of(progress: Progress | None, *, verbose: bool) -> Progress | None:
    """The caller's progress callable; without one, the printer if `verbose`."""
    return printer() if progress is None and verbose else progress
