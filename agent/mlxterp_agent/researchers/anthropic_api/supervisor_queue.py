"""Work that the researcher's thread delegates to the supervisor's thread.

The supervisor alone writes the journal and the log. The researcher's thread queues a piece of work and
waits for its result; the supervisor does the queued work each time it polls.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from typing import Any, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The supervisor has closed the queue; the researcher's thread must end."""


class SupervisorQueue:
    """Work for the supervisor, and whether the researcher must end.

    Attributes:
        closed: set when the researcher must end.
    """

    def __init__(self) -> None:
        self.closed = threading.Event()
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()

    def ask(self, do: Callable[[], T], *, always: bool = False) -> T:
        """Called by the researcher: the result of `do`, which the supervisor calls.

        Work that still waits when the queue is closed is dropped, unless `always`.

        Raises:
            Closed: the result is not waited for any longer.
        """
        work: Future[T] = Future()
        self._waiting.put((work, do))
        while True:
            with contextlib.suppress(NotDone):
                return work.result(timeout=0.1)
            if self.closed.is_set():
                if not always:
                    work.cancel()
                raise Closed

    def serve(self) -> None:
        """Called by the supervisor: does everything that waits. Exceptions of the work are raised here."""
        with contextlib.suppress(queue.Empty):
            while True:
                work, do = self._waiting.get_nowait()
                if work.set_running_or_notify_cancel():
                    work.set_result(do())

    def check(self) -> None:
        """Raises Closed when the researcher must end."""
        if self.closed.is_set():
            raise Closed
