"""One line for each thing that happens, for a pipe or a log file."""

from __future__ import annotations

import sys
from typing import TextIO

from mlxterp.text import percent
from mlxterp_agent.events import (
    Committed,
    Decided,
    Event,
    Progress,
    Repaired,
    Running,
    SetupReady,
    Spending,
    Started,
    Stopped,
    Turn,
    Violated,
    Waiting,
)
from mlxterp_agent.storage.record import verdict_of
from mlxterp_agent.text import duration, one_line, plain


class PlainLines:
    """One line for each thing that happens, without colour or cursor movement."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._last: str | None = None
        self._share = -1.0

    def __call__(self, event: Event) -> None:
        text = self._text(event)
        if text is None or text == self._last or not self._is_a_step(event):
            return
        self._last = text
        print(text, file=self._out, flush=True)

    def close(self) -> None:
        """Nothing to take down."""

    def _is_a_step(self, event: Event) -> bool:
        """Of a progress that has a share, every tenth is shown."""
        if not isinstance(event, Progress) or event.done is None or not event.total:
            return True
        share = event.done / event.total
        if 0 <= share < self._share + 0.1 and share < 1:
            return False
        self._share = share if share < 1 else -1.0
        return True

    def _text(self, event: Event) -> str | None:
        match event:
            case Started():
                held = f", resuming after {event.entries} entries" if event.entries else ""
                return f"investigating {event.project}: {one_line(event.question)} [{event.researcher}{held}]"
            case Repaired():
                return f"repaired: {plain(event.what)}"
            case Progress():
                share = (
                    f" {percent(event.done / event.total)}" if event.done is not None and event.total else ""
                )
                return f"{one_line(event.text)}{share}"
            case SetupReady():
                blas = f", BLAS {one_line(event.blas)}" if event.blas else ""
                evidence = f"\n{one_line(event.evidence, 300)}" if event.evidence else ""
                return (
                    f"setup.py is ready: {one_line(event.model)}{blas} ({duration(event.seconds)}){evidence}"
                )
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
