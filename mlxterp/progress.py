"""How far a long computation is, shown without being asked for: a bar in terminals and notebooks.

An analysis takes `progress=`: a callable that gets (done, in all), False for silence, and by default a bar on
stderr from the second second on. Where stderr is no terminal and no notebook (a pipe, an experiment under
supervision), nothing is shown. Workflows have several steps and show them in `workflows/progress.py`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Progress: TypeAlias = Callable[[int, int], None]
ProgressOption: TypeAlias = Progress | bool | None

AFTER_SECONDS = 2.0
"""What takes less shows nothing."""

_shown = threading.local()  # whether a bar is open in this thread: an analysis inside another has none


@contextmanager
def reporting(
    option: ProgressOption,
    what: str,
    *,
    console: Console | None = None,
    clock: Callable[[], float] | None = None,
) -> Iterator[Progress | None]:
    """What to call with (done, in all), or None: the caller's callable, or a bar named `what`.

    Args:
        option: what the caller of an analysis gave as `progress=`.
        console, clock: for tests; by default stderr, and `time.monotonic`.
    """
    if callable(option):
        yield option
    elif option is False or getattr(_shown, "open", False) or not (console or is_watched()):
        yield None
    else:
        bar = _Bar(what, console, clock or time.monotonic)
        _shown.open = True
        try:
            yield bar.report
        finally:
            _shown.open = False
            bar.close()


def is_watched() -> bool:
    """Whether stderr is a terminal, or this is a notebook."""
    if sys.stderr is not None and sys.stderr.isatty():
        return True
    return "ipykernel" in sys.modules


class _Bar:
    """A bar that appears at the first report after two seconds, and goes when it is closed."""

    def __init__(self, what: str, console: Console | None, clock: Callable[[], float]) -> None:
        self._what, self._console, self._clock = what, console, clock
        self._began = clock()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def report(self, done: int, total: int) -> None:
        if self._bar is None:
            if self._clock() - self._began < AFTER_SECONDS or done >= total:
                return
            self._open(total)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

    def _open(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        console = self._console or Console(stderr=True)
        self._bar = RichProgress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task(self._what, total=total)
        self._bar.start()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
