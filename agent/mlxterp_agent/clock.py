"""Three clocks, given as an argument to whatever measures time.

A time box is awake time: a laptop that sleeps through it has not used it up. A budget of hours is elapsed
time, sleep included. Only timestamps and `--until` look at the wall clock, which people and NTP move.
"""

from __future__ import annotations

import sys
import time
from typing import Protocol


class Clock(Protocol):
    """What the machinery asks about time."""

    def monotonic(self) -> float:
        """Seconds that the machine was awake, from an arbitrary start."""

    def elapsed(self) -> float:
        """Seconds that passed, sleep included, from an arbitrary start; starts anew at a reboot."""

    def wall(self) -> float:
        """Seconds since 1970."""


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def elapsed(self) -> float:
        # Python's monotonic clock stops during sleep on both systems.
        if sys.platform == "linux":
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        if sys.platform == "darwin":
            return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class FakeClock:
    """A clock that a test moves by hand."""

    def __init__(self, wall: float = 1_790_000_000.0) -> None:
        self._awake = 0.0
        self._elapsed = 0.0
        self._wall = wall

    def monotonic(self) -> float:
        return self._awake

    def elapsed(self) -> float:
        return self._elapsed

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        """Time passes while the machine is awake."""
        self._awake += seconds
        self.sleep(seconds)

    def sleep(self, seconds: float) -> None:
        """Time passes while the machine sleeps."""
        self._elapsed += seconds
        self._wall += seconds

    def set_wall(self, wall: float) -> None:
        """Somebody sets the wall clock; no time passes."""
        self._wall = wall
