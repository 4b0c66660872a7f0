"""The write-ahead log of a project: one JSON line for each event, on the disk before anything relies on it.

The journal lies outside the project and has a full copy of every result; results.jsonl, findings/ and git can
be rebuilt from it. Lives here: the file, and which of its lines count. Does not live here: what the events
mean (`history.py`, `recovery.py`, `budget.py`).

Every line holds, besides its own fields: `event`; `n`, its number; `session`, one name for each supervisor
that wrote; `t`, wall time; `elapsed`, a clock of this boot that counts sleep; `prev`, the `mac` of the line
before it; and last `mac`, an HMAC of all that. Its key is in `journal.key` beside the journal, which the jail
of experiments hides. A line that is damaged, or that no supervisor wrote, does not count, and harms no other.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import os
import secrets
import stat
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

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

KEY = "journal.key"
"""The name of the file with the key, beside the journal."""

MAX_RECORD = 400_000_000
"""Bytes of one line; a longer one is damage. A run may report 64 MB, in characters that JSON escapes."""

_STAMPS = frozenset({"event", "n", "session", "t", "elapsed", "prev", "mac"})
_MAC_LENGTH = 32
_BEFORE_MAC, _AFTER_MAC = b', "mac": "', b'"}'
_ENDING = len(_BEFORE_MAC) + _MAC_LENGTH + len(_AFTER_MAC)
_CHUNK = 1 << 20

_REQUIRED = {
    "start": ("config",),
    "stop": ("reason", "exit_code"),
    "intent": ("run", "uid", "source", "time_box", "digests", "declared", "driver", "sha"),
    "result": ("run", "uid", "sha", "again", "lines"),
    "logged": ("uid", "id", "text", "size", "sha256"),
    "adopted": ("text", "size", "sha256"),
    "attempted": ("run",),
    "committed": ("id", "sha"),
    "hold": ("call", "usd", "tokens"),
    "charge": ("usd", "tokens"),
}
"""Fields without which an event is damage in a journal of version 0.1.0, which authenticates nothing."""

Event = dict[str, Any]


class Position(NamedTuple):
    """A place between two lines of the journal.

    Attributes:
        at: the bytes before it.
        n, mac: of the last line before it that counts.
        lines: how many before it count.
    """

    at: int = 0
    n: int = 0
    mac: str = ""
    lines: int = 0


class Rejected(NamedTuple):
    """A line that does not count: where it begins, its bytes, and why."""

    at: int
    raw: bytes
    why: str


class Journal:
    """Appends events, each fsynced before `append` returns; reads them back. Only the holder of the lock
    appends.

    Attributes:
        rejected: the lines that the last reading met and that do not count. They stay in the file.
        low_on_disk: the disk was full once and the reserve is spent. Stop: there is room for the last events
        only.
        end: the place after the last line that was read or written.
    """

    def __init__(self, path: Path, *, clock: Clock | None = None, reserve: int = RESERVE) -> None:
        self.path = path
        self.rejected: list[Rejected] = []
        self.low_on_disk = False
        self.end = Position()
        self._clock: Clock = clock or SystemClock()
        self._session = uuid.uuid4().hex[:12]
        self._reserve = path.with_name(f"{path.name}.reserve")
        self._reserve_bytes = reserve
        self._key_path = path.with_name(KEY)
        self._key = _key_in(self._key_path)
        self._fd: int | None = None
        self._followers: list[Callable[[Event, int], None]] = []
        self._touched = (0, 0)

    @property
    def bad_lines(self) -> int:
        """How many lines the last reading met that do not count."""
        return len(self.rejected)

    @property
    def clock(self) -> Clock:
        """What its events are stamped with."""
        return self._clock

    @property
    def session(self) -> str:
        """The name of this supervisor in the events that it writes."""
        return self._session

    def append(self, event: str, **fields: Any) -> Event:
        """Writes one event and waits until it is on the disk. Fields must be plain JSON values, all numbers
        finite.

        Raises:
            DiskFull: no space is left, and the reserve is spent.
            StateUnavailable: the journal was removed, replaced, cut or changed, or the disk fails.
        """
        return self.append_all([(event, fields)])[0]

    def append_all(self, events: list[tuple[str, dict[str, Any]]]) -> list[Event]:
        """Writes several events with one wait for the disk; a crash in between keeps a first part of them."""
        for event, fields in events:
            taken = _STAMPS & fields.keys()
            if taken:
                raise ValueError(
                    f"the journal sets {', '.join(sorted(taken))} itself; event {event!r} must not bring it"
                )
        fd = self._open() if self._fd is None else self._fd
        self._same_file(fd)
        lines: list[Event] = []
        data = bytearray()
        starts: list[int] = []
        at, n, prev, count = self.end
        for event, fields in events:
            n += 1
            line = self._stamped(event, n, prev, fields)
            starts.append(at + len(data))
            data += self._sealed(line)
            prev = line["mac"]
            lines.append(line)
        self._write(bytes(data))
        # After a failed fsync the lines are there twice.
        self.end = Position(os.fstat(self._descriptor()).st_size, n, prev, count + len(lines))
        self._touched = self._times(self._descriptor())
        for line, start in zip(lines, starts, strict=True):
            for follow in self._followers:
                follow(line, start)
        return lines

    def events(self) -> list[Event]:
        """Every event that counts, in order, each once."""
        return [event for event, _ in self.read()]

    def read(self, since: Position = Position()) -> Iterator[tuple[Event, int]]:  # noqa: B008 - immutable
        """The events after a place and where each begins; `rejected` and `end` follow the reading."""
        mine = self._fd is None
        if mine:
            self._key = _key_in(self._key_path)
        end, rejected = since, list[Rejected]()
        self.rejected = rejected
        self.end = end if mine else self.end
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as problem:
            raise StateUnavailable(
                f"the journal {self.path} cannot be read: {problem.strerror}. Correct that, then start again."
            ) from None
        with open(fd, "rb", buffering=_CHUNK) as file:
            if not _is_regular(fd):
                raise StateUnavailable(
                    f"the journal {self.path} is not a regular file. Move it away, then start again."
                )
            file.seek(since.at)
            at = since.at
            while raw := file.readline(MAX_RECORD):
                event, why = self._judged(raw.rstrip(b"\n"))
                start, at = at, at + len(raw)
                end = end._replace(at=at)
                new = event is not None and event["n"] > end.n
                if event is not None and new:
                    end = Position(at, event["n"], event.get("mac", ""), end.lines + 1)
                elif event is None and raw != b"\n":
                    rejected.append(Rejected(start, raw, why))
                if mine:
                    self.end = end
                if event is not None and new:
                    yield event, start

    def event_at(self, at: int) -> Event | None:
        """The event whose line begins at this byte; None if no line that counts does."""
        with open(self.path, "rb") as file:
            file.seek(at)
            return self._judged(file.readline(MAX_RECORD).rstrip(b"\n"))[0]

    def holds(self, place: Position) -> bool:
        """Whether the line before this place is the one that was there."""
        if place.at == 0:
            return True
        ending = _BEFORE_MAC + place.mac.encode("ascii") + _AFTER_MAC + b"\n"
        try:
            with open(self.path, "rb") as file:
                file.seek(max(0, place.at - len(ending)))
                return file.read(len(ending)) == ending
        except OSError:
            return False

    def sign(self, data: bytes) -> str:
        """The HMAC of something that is stored beside the journal; "" while there is no key."""
        return "" if self._key is None else _mac(self._key, b"beside the journal\0" + data)

    def follow(self, callback: Callable[[Event, int], None]) -> None:
        """Calls `callback` with every event so far and where it begins, and then with each new one: live and
        rebuilt are one path."""
        self.follow_since(Position(), callback)

    def follow_since(self, place: Position, callback: Callable[[Event, int], None]) -> None:
        """The same for the events after a place."""
        for event, at in self.read(place):
            callback(event, at)
        self._followers.append(callback)

    def open(self) -> list[str]:
        """Makes the key if there is none, and takes over what an earlier version wrote. Returns what was done
        with a journal that cannot be used: a sentence each.

        Only the holder of the lock may call it. `append` does it too.
        """
        kept = _read_key(self._key_path)
        if kept is None:
            return self._begin()
        self._key = kept.key
        if kept.taking_over:
            raw = read_regular(self.path)
            if not any(map(_has_mac, raw.split(b"\n"))):
                self._take_over(raw)
            _write_key(self._key_path, kept.key, taking_over=False)
        return []

    def interference(self) -> str | None:
        """What another program did to the journal since the last event; None if nothing did. What was
        appended is moved to `quarantine/` and cut off.

        Raises:
            StateUnavailable: it was removed, replaced, cut or changed: nothing more can be written safely.
        """
        if self._fd is None:
            return None
        return self._same_file(self._fd)

    def close(self) -> None:
        """Closes the file; a later `append` opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _stamped(self, event: str, n: int, prev: str, fields: dict[str, Any]) -> Event:
        return {
            "event": event,
            "n": n,
            "session": self._session,
            "t": self._clock.wall(),
            "elapsed": self._clock.elapsed(),
            "prev": prev,
            **fields,
        }

    def _sealed(self, line: Event) -> bytes:
        """The bytes of a line; sets its `mac`."""
        assert self._key is not None
        body = json.dumps(line, ensure_ascii=True, allow_nan=False).encode("ascii")[:-1]
        line["mac"] = mac = _mac(self._key, body)
        return body + _BEFORE_MAC + mac.encode("ascii") + _AFTER_MAC + b"\n"

    def _judged(self, raw: bytes) -> tuple[Event | None, str]:
        """The event in a line, or why the line does not count."""
        if self._key is not None:
            body, ending = raw[:-_ENDING], raw[-_ENDING:]
            mac = ending[len(_BEFORE_MAC) : -len(_AFTER_MAC)]
            if not (ending.startswith(_BEFORE_MAC) and ending.endswith(_AFTER_MAC)):
                return None, "it is damaged, or no supervisor wrote it"
            if not hmac.compare_digest(mac, _mac(self._key, body).encode("ascii")):
                return None, "it was changed, or no supervisor wrote it"
        event = _parsed(raw)
        if event is None:
            return None, "it cannot be read as an event"
        if self._key is None and "mac" in event:
            return None, "the key that it was written with is not on this machine"
        if self._key is None and not _complete(event):
            return None, f"an event {event['event']!r} without all of its fields"
        return event, ""

    def _begin(self) -> list[str]:
        """The first start with this version, or with a journal whose key is lost."""
        said: list[str] = []
        raw = b""
        with contextlib.suppress(FileNotFoundError):
            try:
                raw = read_regular(self.path)
            except NotRegular:
                said.append(self._set_aside("it is no regular file"))
        lines = [line for line in raw.split(b"\n") if line]
        if any(_has_mac(line) for line in lines):
            said.append(self._set_aside("the key that it was written with is lost"))
            lines = []
        _write_key(self._key_path, key := secrets.token_bytes(32), taking_over=bool(lines))
        self._key = key
        if lines:
            self._take_over(raw)
            _write_key(self._key_path, key, taking_over=False)
        return said

    def _take_over(self, raw: bytes) -> None:
        """Writes the events of version 0.1.0, which have no mac, anew with one. The file is kept aside."""
        old = [_parsed(line) for line in raw.split(b"\n") if line and not _has_mac(line)]
        data, prev, seen = bytearray(), "", 0
        for event in old:
            if event is None or event["n"] <= seen or not _complete(event):
                continue
            stamps = {"event": event["event"], "n": event["n"], "session": event["session"]}
            rest = {name: value for name, value in event.items() if name not in stamps}
            line = {**stamps, "prev": prev, **rest}
            data += self._sealed(line)
            prev, seen = line["mac"], event["n"]
        write_atomically(self._aside(), raw)
        write_atomically(self.path, bytes(data))
        os.chmod(self.path, 0o600)

    def _aside(self) -> Path:
        folder = self.path.parent / "quarantine"
        folder.mkdir(exist_ok=True)
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%f")
        return folder / f"{stamp}-{self.path.name}"

    def _set_aside(self, why: str) -> str:
        aside = self._aside()
        os.rename(self.path, aside)
        return f"the journal could not be used, because {why}; it is kept in {aside}, and a new one was begun"

    def _open(self) -> int:
        self.open()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        for _ in self.read(self.end if self.holds(self.end) else Position()):
            pass
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
            size += 1
        self.end = self.end._replace(at=size)
        self._touched = self._times(fd)
        return fd

    def _descriptor(self) -> int:
        assert self._fd is not None
        return self._fd

    @staticmethod
    def _times(fd: int) -> tuple[int, int]:
        """Size and time of the last change, which no program sets: it tells that another one wrote."""
        status = os.fstat(fd)
        return status.st_size, status.st_ctime_ns

    def _keep_reserve(self) -> None:
        if self._reserve.exists() or self.low_on_disk:
            return
        with contextlib.suppress(OSError):
            # Random bytes: a file system that compresses would reserve nothing for zeros.
            write_atomically(self._reserve, os.urandom(self._reserve_bytes))

    def _same_file(self, fd: int) -> str | None:
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
        if self._times(fd) == self._touched:
            return None
        grown = mine.st_size - self.end.at
        if grown < 0 or not self._unchanged():
            raise StateUnavailable(
                f"the journal {self.path} was {'cut' if grown < 0 else 'changed'} while it was in use. "
                "Nothing more can be logged safely; results.jsonl has every entry so far. Start again."
            )
        if grown == 0:
            self._touched = self._times(fd)
            return None
        write_atomically(self._aside(), os.pread(fd, min(grown, _CHUNK), self.end.at))
        os.ftruncate(fd, self.end.at)
        sync(fd)
        self._touched = self._times(fd)
        return f"{grown:,} bytes were appended to the journal that the supervisor did not write"

    def _unchanged(self) -> bool:
        """Whether every line up to the end is still what was read or written; reads the whole journal."""
        return sum(1 for _, at in Journal(self.path).read() if at < self.end.at) == self.end.lines

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


def _complete(event: Event) -> bool:
    """Whether an event that is not authenticated has what is read of it."""
    return all(name in event for name in _REQUIRED.get(event["event"], ()))


class _Key(NamedTuple):
    key: bytes
    taking_over: bool


def _read_key(path: Path) -> _Key | None:
    """The key of a journal; None if there is none, or its file cannot be used."""
    try:
        facts = json.loads(read_regular(path, limit=1000))
        key = bytes.fromhex(facts["key"])
        return _Key(key, bool(facts["taking_over"])) if len(key) == 32 else None
    except (FileNotFoundError, NotRegular, ValueError, KeyError, TypeError):
        return None


def _key_in(path: Path) -> bytes | None:
    kept = _read_key(path)
    return None if kept is None else kept.key


def _write_key(path: Path, key: bytes, *, taking_over: bool) -> None:
    facts = json.dumps({"key": key.hex(), "taking_over": taking_over}).encode("ascii")
    write_atomically(path, facts, mode=0o600)


def _mac(key: bytes, data: bytes) -> str:
    return hmac.digest(key, data, "sha256").hex()[:_MAC_LENGTH]


def _has_mac(raw: bytes) -> bool:
    return raw.endswith(_AFTER_MAC) and raw[-_ENDING:].startswith(_BEFORE_MAC)


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)
