"""Between the researcher's thread and the supervisor's: what one asks of the other.

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
    """One queue of work for the supervisor, and one word that everything is over.

    Attributes:
        closed: set when the researcher must end.
    """

    def __init__(self) -> None:
        self.closed = threading.Event()
        self._waiting: queue.SimpleQueue[_Work[Any]] = queue.SimpleQueue()

    def ask(self, do: Callable[[], T], *, in_any_case: bool = False) -> T:
        """Called by the researcher: has the supervisor do this, and gives what came of it.

        What still waits when everything is over is not done any more, unless `in_any_case`.
        """
        work = _Work(do)
        self._waiting.put(work)
        while not work.done.wait(0.1):
            if self.closed.is_set():
                work.given_up = not in_any_case
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
        """Raises Closed when it is over."""
        if self.closed.is_set():
            raise Closed
