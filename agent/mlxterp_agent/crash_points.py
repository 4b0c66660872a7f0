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
_passed: Counter[str] = Counter()


def _die_at(name: str) -> None:
    _passed[name] += 1
    if name == _NAME and _passed[name] == int(_COUNT or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def _pass(name: str) -> None:
    """No fault is set."""


point = _die_at if _NAME else _pass
