"""What a child prints: all of it counted, its beginning in a file, its end in memory.

An experiment may print ten gigabytes. Nothing here grows with that.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

TAIL = 64 * 1024
FILE = 1_000_000


class Capture:
    """One stream of a child. Fed by the pump; `to_file` may come later, what came before is written then.

    Attributes:
        total: bytes so far.
    """

    def __init__(self) -> None:
        self.total = 0
        self._head = bytearray()
        self._tail = bytearray()
        self._file: BinaryIO | None = None

    def feed(self, chunk: bytes) -> None:
        """Takes what the pipe gave."""
        room = max(0, FILE - TAIL - self.total)
        self.total += len(chunk)
        if room and self._file is None:
            self._head += chunk[:room]
        elif room:
            self._write(chunk[:room])
        self._tail += chunk
        if len(self._tail) > 2 * TAIL:
            del self._tail[:-TAIL]

    def to_file(self, path: Path) -> None:
        """From now on the beginning of the stream goes to this file. It is a copy for people: nothing depends
        on it."""
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by `end`
        self._write(bytes(self._head))
        self._head.clear()

    def end(self) -> None:
        """The stream is over: what was left out of the file is named there, and its end follows."""
        if self._file is None:
            return
        left_out = self.total - (FILE - TAIL)
        if left_out > 0:
            shown = bytes(self._tail[-min(TAIL, left_out) :])
            if left_out > len(shown):
                self._write(f"\n[… {left_out - len(shown):,} bytes are left out here …]\n".encode())
            self._write(shown)
        if self._file is not None:
            self._file.close()

    def text(self) -> str:
        """The last 64 kB."""
        return bytes(self._tail[-TAIL:]).decode("utf-8", "replace")

    def last_line(self) -> str:
        """The last line that is not empty; a carriage return, as progress bars use it, ends one too."""
        lines = re.split(r"[\r\n]+", bytes(self._tail[-2000:]).decode("utf-8", "replace"))
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _write(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(data)
        except OSError:
            # The disk is full: the experiment goes on, and the journal will say so.
            self._file.close()
            self._file = None
