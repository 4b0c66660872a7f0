"""How far an ACDC search is, and how long the rest takes.

What lives here: the numbers. What doesn't: the search (`acdc_search.py`), showing them (the caller's).
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class AcdcProgress:
    """How far a search is.

    Attributes:
        done, edges: decided, and in all.
        kept: how many of those decided were kept.
        seconds: since this call began.
        seconds_left: at the pace of the last quarter of the time; None before anything was decided.
    """

    done: int
    edges: int
    kept: int
    seconds: float
    seconds_left: float | None

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", about {self.seconds_left:.0f} s left"
        return f"{self.done:,} of {self.edges:,} edges, {self.kept} kept, {self.seconds:.0f} s{left}"


class Clock:
    """How long the rest takes, at the pace of the last quarter of the time so far."""

    def __init__(self, done: int) -> None:
        self._marks = [(time.perf_counter(), done)]

    def progress(self, done: int, edges: int, kept: int) -> AcdcProgress:
        now = time.perf_counter()
        self._marks.append((now, done))
        begin = self._marks[0][0]
        recent = next(mark for mark in self._marks if mark[0] >= begin + 0.75 * (now - begin))
        since, before = recent if recent[1] < done else self._marks[0]
        pace = (now - since) / (done - before) if done > before else None
        left = None if pace is None else pace * (edges - done)
        return AcdcProgress(done, edges, kept, now - begin, left)
