"""Independent jobs spread over an executor, their results in the order of the jobs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


def shares_memory(executor: Executor) -> bool:
    """Whether its workers see this process's objects, so that nothing has to be made portable."""
    return isinstance(executor, ThreadPoolExecutor)


def results_in_order(
    executor: Executor, function: Callable[[J], R], jobs: Sequence[J]
) -> Generator[R, None, None]:
    """The result of each job, in order. Closing the generator cancels the jobs that have not begun."""
    waiting = [executor.submit(function, job) for job in jobs]
    try:
        for each in waiting:
            yield each.result()
    finally:
        for each in waiting:
            each.cancel()
