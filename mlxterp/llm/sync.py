"""Running async code from scripts and notebooks, and values that belong to one event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def run(job: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of `job()`, run to its end.

    Where a loop runs already in this thread (a notebook), another thread with its own loop does the work
    and this one waits. Ctrl-C cancels the job, so that its `finally` blocks run, and is raised here.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(job())
    return _in_a_thread(job)


async def together(*jobs: Coroutine[Any, Any, T]) -> list[T]:
    """The results of all jobs, run at once. If one raises, the others are cancelled before it is raised here.

    `asyncio.gather` would let them continue, and spend money. (A TaskGroup needs Python 3.11.)
    """
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class PerLoop(Generic[T]):
    """A value that belongs to one event loop: `make` is called at its first use in each."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._held: tuple[asyncio.AbstractEventLoop, T] | None = None

    def get(self) -> T:
        """The value of the running event loop."""
        loop = asyncio.get_running_loop()
        if self._held is None or self._held[0] is not loop:
            self._held = (loop, self._make())
        return self._held[1]

    def pop(self) -> T | None:
        """Removes the value, and returns it if there is one."""
        held, self._held = self._held, None
        return None if held is None else held[1]


def _in_a_thread(job: Callable[[], Coroutine[Any, Any, T]]) -> T:
    results: list[T] = []
    problems: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def watched() -> T:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        return await job()

    def work() -> None:
        try:
            results.append(asyncio.run(watched()))
        except BaseException as problem:  # noqa: BLE001 - it is raised in the thread that waits
            problems.append(problem)

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(work,), name="mlxterp-llm", daemon=True
    )
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        for loop, task in running:
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if problems:
        raise problems[0]
    return results[0]
