"""How a run is shown: on a terminal, as plain lines, as JSON lines; and the notices sent elsewhere.

A printer takes the values of `mlxterp_agent.events`. It decides nothing and reads no file.
"""

from __future__ import annotations

import sys
from typing import Protocol

from mlxterp_agent.events import Event


class Printer(Protocol):
    """Shows events; `close` leaves the terminal as it was."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


def open_printer(*, as_json: bool) -> Printer:
    """The printer for standard output: JSON lines if asked for, a live screen on a terminal, else plain
    lines.

    It ends no investigation when its terminal or pipe is gone: what happens after that is not shown.
    """
    if as_json:
        from mlxterp_agent.display.json_lines import JsonLines

        return _Guarded(JsonLines())
    if sys.stdout.isatty():
        from mlxterp_agent.display.terminal import LiveScreen

        return _Guarded(LiveScreen())
    from mlxterp_agent.display.plain import PlainLines

    return _Guarded(PlainLines())


class _Guarded:
    def __init__(self, printer: Printer) -> None:
        self._printer: Printer | None = printer

    def __call__(self, event: Event) -> None:
        if self._printer is not None:
            try:
                self._printer(event)
            except OSError:
                self._printer = None

    def close(self) -> None:
        if self._printer is not None:
            try:
                self._printer.close()
            except OSError:
                self._printer = None
