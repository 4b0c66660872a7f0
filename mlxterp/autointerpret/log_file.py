"""The bytes of results.jsonl: opened safely, locked, appended to so that a crash at any byte loses nothing.

Lives here: the lock, the torn tail, what is known of the file between two appends, the seals and their check.
Does not live here: entries (`entry.py`), reading and summarising them (`log.py`).

The file is opened for each append and locked by `flock`; between two appends only what others added is read.
Writers that do not take the lock are counted and sealed over, not trusted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mlxterp._files import sync, sync_directory, write_all
from mlxterp.autointerpret.encoding import MAX_LINE, LineError, decode_object
from mlxterp.errors import ProjectError

SCHEMA = "autointerp/1"


class Seal(NamedTuple):
    """The SHA-256 of the first `at` bytes of the log."""

    at: int
    sha256: str


class SealProblem(NamedTuple):
    """What does not fit, and at which line."""

    line: int
    what: str


def check(raw: bytes, anchors: Iterable[Seal] = ()) -> list[SealProblem]:
    """Every disagreement between the bytes of a log and its seals, in the order of the lines."""
    return sorted([*check_lines(io.BytesIO(raw)), *_against_anchors(raw, anchors)])


def check_lines(lines: Iterable[bytes]) -> list[SealProblem]:
    """What `check` finds without anchors, of a log that is read line by line; line feeds included."""
    problems: list[SealProblem] = []
    sha, at, last_good, broken = hashlib.sha256(), 0, 0, False
    first_with: dict[str, int] = {}
    for number, raw in enumerate(lines, 1):
        line = raw.removesuffix(b"\n")
        if len(line) == len(raw):
            why = f"{len(line)} bytes without a line feed: a write was cut off"
            problems.append(SealProblem(number, why))
            break
        value, unreadable = _read(line)
        if unreadable:
            problems.append(SealProblem(number, unreadable))
        name = value.get("experiment_id")
        if type(name) is str and name:
            if name in first_with:
                problems.append(
                    SealProblem(number, f"experiment_id {name!r} is already that of line {first_with[name]}")
                )
            first_with.setdefault(name, number)
        record = value.get("record")
        if type(record) is dict and "seal" in record and not broken:
            what = _disagreement(record, number, at, sha.hexdigest(), last_good)
            if what:
                # Every later seal covers the same changed bytes; repeating it for each would say nothing new.
                broken = True
                problems.append(SealProblem(number, what))
            else:
                last_good = number
        sha.update(raw)
        at += len(raw)
    return sorted(problems)


def _read(line: bytes) -> tuple[dict[str, Any], str]:
    """The JSON object in a line, and what is wrong with the line; an empty line is neither."""
    if not line.strip():
        return {}, ""
    if len(line) >= MAX_LINE:
        return {}, f"it has {len(line):,} bytes, and a line may have {MAX_LINE:,}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "it cannot be read as JSON"
    return (value, "") if type(value) is dict else ({}, "it is not a JSON object")


def _disagreement(record: dict[str, Any], number: int, at: int, sha256: str, last_good: int) -> str:
    if record.get("at") == at and record["seal"] == sha256:
        return (
            ""
            if record.get("seq") == number
            else f"its seq is {record.get('seq')!r}, and it is line {number}"
        )
    since = f"lines {max(last_good, 1)} to {number - 1}" if number > 1 else "the bytes before it"
    moved = (
        ""
        if record.get("at") == at
        else f" ({at} bytes are before it, and it was written after {record.get('at')!r})"
    )
    return f"{since} are not what they were when it was written{moved}; seals after it cannot be checked"


def _against_anchors(raw: bytes, anchors: Iterable[Seal]) -> list[SealProblem]:
    problems: list[SealProblem] = []
    sha, done = hashlib.sha256(), 0
    for anchor in sorted(anchors):
        line = raw.count(b"\n", 0, anchor.at)
        if anchor.at > len(raw):
            problems.append(SealProblem(line, f"the log ends after {len(raw)} bytes, and had {anchor.at}"))
            continue
        sha.update(raw[done : anchor.at])
        done = anchor.at
        if sha.hexdigest() != anchor.sha256:
            problems.append(SealProblem(line, "the log up to here is not what the supervisor recorded"))
    return problems


LOCK_TIMEOUT = 60.0
_CHUNK = 1 << 20
_LAST = 512
_FLAGS = os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Place(NamedTuple):
    """Where the next line goes: its number, the bytes before it, their SHA-256, a free experiment id."""

    number: int
    at: int
    seal: str
    experiment_id: str


class Appended(NamedTuple):
    """What an append did: the line as it stands in the file, the fragment it set aside (usually none)."""

    line: bytes
    set_aside: bytes


class Names(Protocol):
    """Which names the lines of a log have."""

    def has_id(self, experiment_id: str) -> bool:
        """Whether a line has this id."""

    def place_of(self, uid: str) -> tuple[int, int] | None:
        """Where the line of this uid begins, and its size; None if there is none."""


class _NamesInMemory:
    """The names of the lines read in this process, before them those of `others`."""

    def __init__(self, others: Names | None = None) -> None:
        self._others = others
        self._ids: set[str] = set()
        self._uids: dict[str, tuple[int, int]] = {}

    def take(self, experiment_id: str, uid: str, at: int, size: int) -> None:
        self._ids.add(experiment_id)
        if uid:
            self._uids.setdefault(uid, (at, size))

    def has_id(self, experiment_id: str) -> bool:
        return experiment_id in self._ids or (self._others is not None and self._others.has_id(experiment_id))

    def place_of(self, uid: str) -> tuple[int, int] | None:
        before = None if self._others is None else self._others.place_of(uid)
        return before if before is not None else self._uids.get(uid)


class Continuation(NamedTuple):
    """What a process knows of a log without having read its lines: `LogFile.continue_from`.

    Attributes:
        seal: of the whole lines.
        sha: the running digest of these bytes, as hashlib has it.
        lines: how many there are.
        names: of these lines.
    """

    seal: Seal
    sha: Any
    lines: int
    names: Names


@dataclass
class _Known:
    """What has been read of one file, up to and including its last line feed."""

    device: int = -1
    inode: int = -1
    size: int = 0
    lines: int = 0
    last: bytes = b""
    names: _NamesInMemory = field(default_factory=_NamesInMemory)
    sha: Any = field(default_factory=hashlib.sha256)

    def take(self, line: bytes) -> None:
        """Accounts for one more line, line feed included."""
        self.names.take(*_names(line), self.size, len(line))
        self.sha.update(line)
        self.size += len(line)
        self.lines += 1
        self.last = (self.last + line)[-_LAST:]

    def place(self) -> Place:
        number = self.lines + 1
        free = number
        while self.names.has_id(f"{free:04d}"):
            free += 1
        return Place(number, self.size, self.sha.hexdigest(), f"{free:04d}")


class LogFile:
    """One results.jsonl. Threads and processes may use the same path; each append is one exclusive turn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = _Known()

    @property
    def lines(self) -> int:
        """How many lines there were at the last turn."""
        return self._known.lines

    def read(self, since: int = 0, until: int | None = None) -> bytes:
        """The bytes from `since` on (by default all), read while no append is under way; nothing when there
        is no file yet."""
        with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as fd:
            if fd is None:
                return b""
            end = os.fstat(fd).st_size if until is None else until
            return _pread(fd, since, max(0, end - since))

    def check(self) -> list[SealProblem]:
        """What `check_lines` finds, read line by line while no append is under way."""
        with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as fd:
            if fd is None:
                return []
            with open(fd, "rb", closefd=False) as file:
                return check_lines(file)

    def continue_from(self, there: Continuation) -> None:
        """Takes what another part of the program has read of this file as read."""
        with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as fd:
            if fd is None:
                return
            now, size = os.fstat(fd), there.seal.at
            last = _pread(fd, max(0, size - _LAST), min(_LAST, size))
            self._known = _Known(
                now.st_dev, now.st_ino, size, there.lines, last, _NamesInMemory(there.names), there.sha
            )

    def append(self, build: Callable[[Place], bytes], *, uid: str = "") -> Appended:
        """Writes the line that `build` makes for its place, and waits until it is on the disk.

        A line that already carries `uid` is returned instead: the same record offered twice is logged once.
        """
        with self._locked(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as fd:
            assert fd is not None
            set_aside = self._mend(fd)
            there = self._known.names.place_of(uid) if uid else None
            if there is not None:
                return Appended(_pread(fd, *there), set_aside)
            line = build(self._known.place())
            self._write(fd, line)
            self._known.take(line)
            return Appended(line, set_aside)

    def mend(self) -> bytes:
        """Completes a last line that lacks only its line feed; sets aside and returns any other torn one."""
        if not os.path.lexists(self.path):
            return b""
        with self._locked(os.O_RDWR, fcntl.LOCK_EX) as fd:
            return b"" if fd is None or _ends_whole(fd) else self._mend(fd)

    def place(self) -> Place:
        """Where the next line would go; the seal is that of the whole file as it is."""
        with self._locked(os.O_RDONLY, fcntl.LOCK_EX) as fd:
            if fd is None:
                return _Known().place()
            self._catch_up(fd)
            return self._known.place()

    @contextlib.contextmanager
    def _locked(self, flags: int, lock: int) -> Iterator[int | None]:
        """An open, locked descriptor of the file that has this name now; None if it does not exist."""
        while True:
            fd = self._open(flags)
            if fd is None:
                yield None
                return
            try:
                _take_lock(fd, lock, self.path)
                # If the file was replaced while we waited, this is the lock of a file without a name.
                if _still_named(fd, self.path):
                    yield fd
                    return
            finally:
                os.close(fd)

    def _open(self, flags: int) -> int | None:
        try:
            fd = os.open(self.path, flags | _FLAGS, 0o666)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                return None
            raise ProjectError(
                f"cannot log to {str(self.path)!r}: there is no directory {str(self.path.parent)!r}. "
                "Create it first."
            ) from None
        except OSError as problem:
            if problem.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise _irregular(self.path) from None
            raise
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise _irregular(self.path)

    def _catch_up(self, fd: int) -> bytes:
        """Reads what was added since the last turn; returns the bytes after the last line feed."""
        known, now = self._known, os.fstat(fd)
        same = (known.device, known.inode) == (now.st_dev, now.st_ino) and now.st_size >= known.size
        if not same or _pread(fd, known.size - len(known.last), len(known.last)) != known.last:
            known = self._known = _Known(now.st_dev, now.st_ino)
        rest, position = b"", known.size
        while position < now.st_size:
            chunk = _pread(fd, position, min(_CHUNK, now.st_size - position))
            position += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                known.take(line + b"\n")
        return rest

    def _mend(self, fd: int) -> bytes:
        fragment = self._catch_up(fd)
        if not fragment:
            return b""
        if _is_whole(fragment):
            self._write(fd, b"\n")
            self._known.take(fragment + b"\n")
            return b""
        # First the copy, then the cut: a crash between the two leaves the fragment in both places.
        torn = self.path.with_name(self.path.name + ".torn")
        beside = os.open(torn, os.O_WRONLY | os.O_CREAT | _FLAGS, 0o666)
        try:
            write_all(beside, fragment + b"\n")
            sync(beside)
        finally:
            os.close(beside)
        sync_directory(self.path.parent)
        os.ftruncate(fd, self._known.size)
        return fragment

    def _write(self, fd: int, data: bytes) -> None:
        before = os.fstat(fd).st_size
        try:
            write_all(fd, data)
        except OSError as problem:
            with contextlib.suppress(OSError):  # if it cannot be cut back now, the next append sets it aside
                os.ftruncate(fd, before)
            raise _not_logged(problem, self.path, "nothing was added to the log") from problem
        try:
            sync(fd)
        except OSError as problem:
            self._known = _Known()
            raise _not_logged(
                problem, self.path, "the line was written but may not be on the disk"
            ) from problem
        if before == 0:
            sync_directory(self.path.parent)


def _ends_whole(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size == 0 or os.pread(fd, 1, size - 1) == b"\n"


def _pread(fd: int, at: int, length: int) -> bytes:
    parts = []
    while length > 0 and (part := os.pread(fd, length, at)):
        parts.append(part)
        at, length = at + len(part), length - len(part)
    return b"".join(parts)


def _still_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _take_lock(fd: int, lock: int, path: Path) -> None:
    deadline, pause = time.monotonic() + LOCK_TIMEOUT, 0.0005
    while True:
        try:
            fcntl.flock(fd, lock | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT,
                    f"another process has held the lock of the log for {LOCK_TIMEOUT:.0f} s; find it with "
                    "`lsof`, and wait for it or end it",
                    str(path),
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def _names(line: bytes) -> tuple[str, str]:
    """The experiment id and the uid of a line, "" where there is none; an unreadable line has neither."""
    value, _ = _read(line.rstrip(b"\n"))
    record = value.get("record")
    found = (value.get("experiment_id"), record.get("uid") if type(record) is dict else None)
    return (found[0] if type(found[0]) is str else "", found[1] if type(found[1]) is str else "")


def _is_whole(fragment: bytes) -> bool:
    # A proper prefix of a JSON object is never a JSON object, so only the line feed can be missing.
    try:
        decode_object(fragment)
    except LineError:
        return False
    return True


def _irregular(path: Path) -> ProjectError:
    kinds = (("a symbolic link", stat.S_ISLNK), ("a directory", stat.S_ISDIR), ("a FIFO", stat.S_ISFIFO))
    mode = os.lstat(path).st_mode
    kind = next((name for name, is_kind in kinds if is_kind(mode)), "not a regular file")
    return ProjectError(
        f"cannot use {str(path)!r} as a log: it is {kind}. The log must be a regular file; "
        "move what is there away."
    )


def _not_logged(problem: OSError, path: Path, state: str) -> OSError:
    return OSError(
        problem.errno,
        f"{problem.strerror}; {state}. Make room or give access, then append the entry again",
        str(path),
    )
