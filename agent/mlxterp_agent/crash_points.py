"""Named points at which a test can end the supervisor as abruptly as a power cut would.

`AUTOINTERP_FAULT=after-journal-result` kills this process with SIGKILL when it first passes that point,
`AUTOINTERP_FAULT=after-log:3` at the third passing. Unset, `point` does nothing.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

POINTS = (
    "after-intent",
    "after-run",
    "after-journal-result",
    "after-log",
    "after-journal-logged",
    "after-finding",
    "after-commit",
    "after-attempt",
    "after-journal-committed",
)

AFTER_JUDGEMENT = "after-judgement"
"""Passed only where a claim was declared."""

_NAME, _, _COUNT = os.environ.get("AUTOINTERP_FAULT", "").partition(":")
_left: Counter[str] = Counter({_NAME: int(_COUNT or 1)} if _NAME else {})


def arm(name: str, passing: int = 1) -> None:
    """Has this process killed at the given passing of a point, as the environment variable does."""
    _left[name] = passing


def point(name: str) -> None:
    """A point at which a test may end this process."""
    if name in _left:
        _left[name] -= 1
        if _left[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
