"""Work that the researcher's thread has the supervisor's thread do.

The supervisor alone writes the journal and the log. The researcher's thread hands it a piece of work and
waits until it is done; the supervisor does what is waiting each time it polls.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The supervisor wants nothing more; the thread unwinds."""


class _Work(Generic[T]):
    def __init__(self, do: Callable[[], T]) -> None:
        self._do = do
        self.given_up = False
        self.done = threading.Event()
        self.result: list[T] = []

    def run(self) -> None:
        self.result.append(self._do())
        self.done.set()


class SupervisorQueue:
    """Work for the supervisor, and whether the researcher must end.

    Attributes:
        closed: set when the researcher must end.
    """

    def __init__(self) -> None:
        self.closed = threading.Event()
        self._waiting: queue.SimpleQueue[_Work[Any]] = queue.SimpleQueue()

    def ask(self, do: Callable[[], T], *, always: bool = False) -> T:
        """Called by the researcher: has the supervisor do this, and gives its result.

        Work that still waits when the queue is closed is dropped, unless it is to be done `always`.

        Raises:
            Closed: the result is not waited for any longer.
        """
        work = _Work(do)
        self._waiting.put(work)
        while not work.done.wait(0.1):
            if self.closed.is_set():
                work.given_up = not always
                raise Closed
        return work.result[0]

    def serve(self) -> None:
        """Called by the supervisor: does everything that waits. What fails, fails on its side."""
        while True:
            try:
                work = self._waiting.get_nowait()
            except queue.Empty:
                return
            if not work.given_up:
                work.run()

    def check(self) -> None:
        """Raises Closed when the researcher must end."""
        if self.closed.is_set():
            raise Closed
