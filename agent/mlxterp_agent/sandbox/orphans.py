"""Processes whose warden was killed: on Linux they become children of the supervisor, which ends them.

An experiment without a jail can kill its warden. Its own group is known by its number; what has left the
group is not, and would outlive the run. So the command makes itself a subreaper, as a warden does, and ends
those of its children that it has not started itself. Elsewhere there is no such thing (`Descendants` looks).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time

import psutil

_SUBREAPER, _IS_SUBREAPER = 36, 37
_SECONDS = 1.0

_started: set[int] = set()


def become_subreaper() -> None:
    """From now on what loses its parent below this process becomes a child of it. Only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def note_started(pid: int) -> float:
    """This child is the supervisor's own. Gives when it began, on the clock of `end_orphans`."""
    _started.add(pid)
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


def end_orphans(since: float) -> int:
    """Ends the children of this process that it has not started, and what they leave; how many they were.

    Args:
        since: only those that began later, as `note_started` gives it.
    """
    if sys.platform != "linux" or not _is_subreaper():
        return 0
    ended: set[int] = set()
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        found = _orphans(since)
        if not found:
            break
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    ended.add(pid)
        time.sleep(0.01)
    return len(ended)


def _orphans(since: float) -> list[int]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if child.pid not in _started and child.create_time() >= since:
                found.append(child.pid)
    return found


def _is_subreaper() -> bool:
    value = ctypes.c_int(0)
    ctypes.CDLL(None).prctl(_IS_SUBREAPER, ctypes.byref(value), 0, 0, 0)
    return bool(value.value)
