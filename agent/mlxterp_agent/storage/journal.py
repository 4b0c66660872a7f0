"""The write-ahead log of a project: one JSON line for each event, on the disk before anything relies on it.

The journal lies outside the project and has a full copy of every result; results.jsonl, findings/ and git can
be rebuilt from it. Lives here: the file. Does not live here: what the events mean (`recovery.py`,
`budget.py`).

Every line holds, besides its own fields: `event`; `n`, its number; `session`, one name for each supervisor
that wrote; `t`, wall time; `elapsed`, a clock of this boot that counts sleep.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxterp._files import sync, sync_directory, write_all, write_atomically
from mlxterp_agent.exit_codes import StateUnavailable
from mlxterp_agent.platform import (
    Clock,
    NotRegular,
    SystemClock,
    explain_disk_full,
    is_disk_full,
    read_regular,
)

RESERVE = 1_000_000
"""Bytes reserved beside the journal, freed when the disk is full, so that the end of the run still fits."""

_STAMPS = frozenset({"event", "n", "session", "t", "elapsed"})

Event = dict[str, Any]


class Journal:
    """Appends events, each fsynced before `append` returns; reads them back. Only the holder of the lock
    appends.

    Attributes:
        bad_lines: lines that `events` could not read: what a crash left half written. They are never removed.
        low_on_disk: the disk was full once and the reserve is spent. Stop: there is room for the last events
        only.
    """

    def __init__(self, path: Path, *, clock: Clock | None = None, reserve: int = RESERVE) -> None:
        self.path = path
        self.bad_lines = 0
        self.low_on_disk = False
        self._clock: Clock = clock or SystemClock()
        self._session = uuid.uuid4().hex[:12]
        self._reserve = path.with_name(f"{path.name}.reserve")
        self._reserve_bytes = reserve
        self._fd: int | None = None
        self._n = 0
        self._followers: list[Callable[[Event], None]] = []

    def append(self, event: str, **fields: Any) -> Event:
        """Writes one event and waits until it is on the disk. Fields must be plain JSON values, all numbers
        finite.

        Raises:
            DiskFull: no space is left, and the reserve is spent.
            StateUnavailable: the journal was removed or replaced, or the disk fails.
        """
        taken = _STAMPS & fields.keys()
        if taken:
            raise ValueError(
                f"the journal sets {', '.join(sorted(taken))} itself; event {event!r} must not bring it"
            )
        fd = self._open() if self._fd is None else self._fd
        self._same_file(fd)
        line: Event = {
            "event": event,
            "n": self._n + 1,
            "session": self._session,
            "t": self._clock.wall(),
            "elapsed": self._clock.elapsed(),
            **fields,
        }
        self._write(json.dumps(line, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n")
        self._n += 1
        for follow in self._followers:
            follow(line)
        return line

    def events(self) -> list[Event]:
        """Every readable event, in order, each once."""
        try:
            data = read_regular(self.path)
        except FileNotFoundError:
            return []
        except NotRegular as problem:
            raise StateUnavailable(
                f"the journal {self.path} is {problem}. Move it away, then start again."
            ) from None
        found: dict[int, Event] = {}
        self.bad_lines = 0
        for raw in data.split(b"\n"):
            if not raw:
                continue
            line = _parsed(raw)
            if line is None:
                self.bad_lines += 1
            else:
                found.setdefault(line["n"], line)
        return list(found.values())

    def follow(self, callback: Callable[[Event], None]) -> None:
        """Calls `callback` with every event so far, and then with each new one: live and rebuilt are one
        path."""
        for event in self.events():
            callback(event)
        self._followers.append(callback)

    def close(self) -> None:
        """Closes the file; a later `append` opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._n = max((event["n"] for event in self.events()), default=0)
        fresh = not self.path.exists()
        try:
            self._fd = fd = os.open(self.path, flags, 0o600)
        except OSError as problem:
            raise StateUnavailable(
                f"the journal {self.path} cannot be opened: {problem.strerror}. Correct that, then start "
                "again."
            ) from problem
        if fresh:
            sync_directory(self.path.parent)
        self._keep_reserve()
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            self._write(b"\n")
        return fd

    def _keep_reserve(self) -> None:
        if self._reserve.exists() or self.low_on_disk:
            return
        with contextlib.suppress(OSError):
            # Random bytes: a file system that compresses would reserve nothing for zeros.
            write_atomically(self._reserve, os.urandom(self._reserve_bytes))

    def _same_file(self, fd: int) -> None:
        mine = os.fstat(fd)
        try:
            there = os.lstat(self.path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise StateUnavailable(
                f"the journal {self.path} was {'removed' if there is None else 'replaced'} while it was in "
                "use. Nothing more can be logged safely; results.jsonl has every entry so far. Start again."
            )

    def _write(self, data: bytes) -> None:
        assert self._fd is not None
        size = os.fstat(self._fd).st_size
        with explain_disk_full(self.path):
            try:
                write_all(self._fd, data)
            except OSError as problem:
                os.ftruncate(self._fd, size)
                if not is_disk_full(problem) or not self._spend_reserve():
                    raise
                write_all(self._fd, data)
        try:
            sync(self._fd)
        except OSError as problem:
            self._write_again(data, problem)

    def _spend_reserve(self) -> bool:
        self.low_on_disk = True
        try:
            self._reserve.unlink()
        except FileNotFoundError:
            return False
        return True

    def _write_again(self, data: bytes, problem: OSError) -> None:
        # After a failed fsync the kernel may have dropped the pages and report success to a second fsync of
        # the same descriptor. So the line is written again through a new one; `events` counts a number once.
        assert self._fd is not None
        os.close(self._fd)
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            write_all(self._fd, data)
            sync(self._fd)
        except OSError:
            raise StateUnavailable(
                f"the disk does not keep what is written to {self.path}: "
                f"{os.strerror(problem.errno or errno.EIO)}. Check the disk before starting again."
            ) from problem


def _parsed(raw: bytes) -> Event | None:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    stamped = (
        type(line) is dict
        and type(line.get("event")) is str
        and type(line.get("n")) is int
        and type(line.get("session")) is str
        and type(line.get("elapsed")) in (int, float)
    )
    return line if stamped else None
