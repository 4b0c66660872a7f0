"""Ctrl-C, SIGTERM and a closed terminal, as a word to look at rather than an exception anywhere."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

_ASKED_FOR = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WORDS = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP: the terminal was closed",
}


class Signals:
    """While it is entered, these signals end nothing by themselves: `received` says which one came first.

    What is under way (an append, a commit) ends properly; whoever waits looks at `received` ten times a
    second. A second Ctrl-C does the same as the first.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        for each in _ASKED_FOR:
            self._before[each] = signal.signal(each, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def reason(self) -> str | None:
        """Why to stop, in words; None while nothing came."""
        return None if self.received is None else f"interrupted by {self.received}"

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.received = self.received or _WORDS[signal.Signals(number)]
