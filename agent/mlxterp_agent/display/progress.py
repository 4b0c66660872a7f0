"""How far a long command is: one line that is rewritten on a terminal, else a line for each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from mlxterp_agent.text import one_line

_WIDTH = 78


@contextmanager
def counted_progress(stream: TextIO) -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function of (what is done, how much of it, how much in all)."""
    terminal, last = stream.isatty(), ""

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        if terminal:
            line = one_line(f"{what} {done}/{total}", _WIDTH)
            stream.write(f"\r{line:{_WIDTH}}")
        elif what != last:
            stream.write(f"{one_line(what, _WIDTH)} ({total})\n")
        last = what
        stream.flush()

    try:
        yield show
    finally:
        if terminal and last:
            stream.write(f"\r{'':{_WIDTH}}\r")
            stream.flush()
