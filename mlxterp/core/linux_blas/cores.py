"""How many cores this process may use, and how many of them nothing else uses right now.

Linux only: read from the process's affinity, its control group and `/proc`. Who acts on it is `blas.py`.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


def allowed() -> int:
    """The cores this process may use: its affinity, and a container's CPU quota (cgroup v2) rounded up."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):  # no such group: no quota
        return affinity
    return affinity if quota == "max" else max(1, min(affinity, math.ceil(int(quota) / int(period))))


def idle(proc: Path = Path("/proc")) -> int:
    """The cores that could compute for this process now, at least 1: those that other processes leave.

    One look costs some µs where nothing else runs, else 0.2 to 0.3 ms. What is running changes within
    milliseconds, so this is a sample, not an average.
    """
    try:
        running = int((proc / "loadavg").read_text(encoding="ascii").split()[3].split("/")[0])
        if running <= 1:  # this thread itself
            return allowed()
        own = sum(_is_running(thread) for thread in (proc / "self" / "task").iterdir())
    except (OSError, ValueError, IndexError):  # no such file here: nothing is known of others
        return allowed()
    others = max(0, running - own)
    return max(1, min(allowed(), (os.cpu_count() or 1) - others))


def _is_running(thread: Path) -> bool:
    try:
        stat = (thread / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # the thread has just ended
        return False
    return stat.rpartition(")")[2].split()[0] == "R"
