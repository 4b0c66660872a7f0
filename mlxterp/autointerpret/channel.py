"""How an experiment under supervision speaks to its supervisor: JSON lines on an inherited pipe.

The environment variable AUTOINTERP_OUTBOX holds `fd:<n>`. While it is set, `ExperimentLog.append` sends the
entry there instead of writing results.jsonl, so that the log has exactly one writer. Nothing here protects
against a forged
frame: what the supervisor believes is decided by what it measures.
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from collections.abc import Mapping
from typing import Any

from mlxterp._files import write_all
from mlxterp.errors import OutboxClosed

OUTBOX_ENV = "AUTOINTERP_OUTBOX"

_ONE_FRAME_AT_A_TIME = threading.Lock()


class Outbox:
    """The writing end of the pipe. `send` writes one frame: an ASCII JSON object and a line feed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def send(self, frame: Mapping[str, Any]) -> None:
        """Writes the whole frame before another thread's; OutboxClosed when nobody can receive it."""
        line = json.dumps(frame, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"
        try:
            kind = os.fstat(self.fd).st_mode
        except OSError as problem:
            raise _closed(self.fd, problem.strerror) from problem
        # A program started by the experiment inherits the variable without the pipe, and the number may by
        # then belong to one of its own files.
        if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
            raise _closed(self.fd, "it is not a pipe")
        try:
            with _ONE_FRAME_AT_A_TIME:
                write_all(self.fd, line)
        except (BrokenPipeError, ConnectionError) as problem:
            raise _closed(self.fd, "nobody reads it any more") from problem
        except OSError as problem:
            raise _closed(self.fd, problem.strerror) from problem


def outbox() -> Outbox | None:
    """The outbox of this process, or None when no supervisor asked for its entries."""
    where = os.environ.get(OUTBOX_ENV)
    if not where:
        return None
    match = re.fullmatch(r"fd:(\d{1,7})", where)
    if match is None:
        raise OutboxClosed(
            f"{OUTBOX_ENV}={where!r} names no pipe. A supervisor sets it to 'fd:<number>'. "
            "Unset it to write results.jsonl directly."
        )
    return Outbox(int(match[1]))


def _closed(fd: int, why: str | None) -> OutboxClosed:
    return OutboxClosed(
        f"the entry was not logged: {OUTBOX_ENV} names file descriptor {fd}, and "
        f"{why or 'it cannot be used'}. Call ExperimentLog.append in the process that the supervisor "
        "started, and leave its file descriptors open. "
        f"To write results.jsonl without a supervisor, unset {OUTBOX_ENV}."
    )
