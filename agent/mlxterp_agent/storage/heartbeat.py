"""How long a supervisor lived: a small file that it writes every second, so that time that ended in a kill
counts like any other.

It is not flushed to the disk: after a power cut the clock of the next boot begins anew, and only the
journal's events count.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from mlxterp_agent.platform import Clock, boot_id, read_or_none
from mlxterp_agent.storage.history import History
from mlxterp_agent.storage.state_dir import State

_EVERY = 1.0


class Heartbeat:
    """Writes the time at most once a second."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._boot = boot_id()
        self._at = float("-inf")

    def beat(self) -> None:
        """The supervisor lives."""
        now = self._clock.elapsed()
        if now - self._at < _EVERY:
            return
        self._at = now
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            fd = os.open(self._path, flags, 0o600)
            try:
                os.write(fd, json.dumps({"boot": self._boot, "elapsed": now}).encode("ascii"))
            finally:
                os.close(fd)


def last_beat(state: State) -> float | None:
    """When a supervisor last lived, on the clock `elapsed`; None if that was in no session of this boot."""
    try:
        beat = json.loads(read_or_none(state.heartbeat_path) or b"")
        return float(beat["elapsed"]) if beat["boot"] == boot_id() else None
    except (ValueError, KeyError, TypeError):
        return None


def uncounted_seconds(state: State, history: History, clock: Clock, *, began: float) -> float:
    """Time under supervision that no event covers: from the beginning of this supervisor to now, and from the
    last event of one that was killed to its last heartbeat."""
    seconds = max(0.0, clock.elapsed() - began)
    if history.stop is not None or not history.session.name:
        return seconds
    last = last_beat(state)
    if last is None or not history.session.last < last <= began:
        return seconds
    return seconds + last - history.session.last
