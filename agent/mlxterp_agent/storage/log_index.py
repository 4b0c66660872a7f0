"""An index of results.jsonl, so that a start, a status and a line cost the same however long the log is.

A small database beside the journal holds one row for each line: where it begins, its names, its verdict, what
ran, a digest of its numbers. It says nothing that the log does not say: where it does not fit the log's bytes
it is made anew. Lives here: that database, and reading single lines of the log. Does not live here: writing
the log (`results_log.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload
from urllib.parse import quote

from mlxterp.autointerpret.encoding import LineError, compared, decode_object
from mlxterp.autointerpret.entry import CLOSING, ExperimentEntry
from mlxterp.autointerpret.log_file import Seal
from mlxterp.errors import CorruptLog, EntryError
from mlxterp.statistics.duplicates import ResultNumbers, is_copy, landmarks
from mlxterp_agent.storage.history import KEPT_TIERS

_SCHEMA = """
CREATE TABLE line (
    number INTEGER PRIMARY KEY, at INTEGER, size INTEGER, id TEXT, verdict TEXT, uid TEXT, run INTEGER,
    setup TEXT, sha TEXT, numbers TEXT, tier TEXT, kept INTEGER, ran INTEGER
);
CREATE TABLE landmark (step INTEGER, number INTEGER);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT);
"""
_INDEXES = """
CREATE INDEX IF NOT EXISTS line_id ON line (id);
CREATE INDEX IF NOT EXISTS line_uid ON line (uid) WHERE uid IS NOT NULL;
CREATE INDEX IF NOT EXISTS line_sha ON line (sha, setup) WHERE sha IS NOT NULL;
CREATE INDEX IF NOT EXISTS landmark_step ON landmark (step);
CREATE INDEX IF NOT EXISTS line_kept ON line (kept, number);
CREATE INDEX IF NOT EXISTS line_verdict ON line (verdict);
"""
_VERSION = "2"
_CHUNK = 1 << 20


class LineFacts(NamedTuple):
    """What the index holds of one line; None is "the line does not say"."""

    at: int
    size: int
    id: str
    verdict: str
    uid: str | None = None
    run: int | None = None
    setup: str | None = None
    sha: str | None = None
    numbers: str | None = None
    tier: str | None = None
    kept: bool = False
    ran: bool = False

    @staticmethod
    def of(raw: bytes, at: int) -> LineFacts:
        """The facts of a line, line feed included; of an unreadable one, only where it is."""
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            value = None
        if type(value) is not dict:
            return LineFacts(at, len(raw), "", "unreadable")
        record = value.get("record")
        name = value.get("experiment_id")
        name = name if type(name) is str else ""
        if type(record) is not dict:
            return LineFacts(at, len(raw), name, "by hand")
        digests, execution = _mapping(record.get("digests")), _mapping(record.get("execution"))
        verdict, sha = str(record.get("verdict")), _text(digests.get("experiment"))
        run = record.get("run")
        invalid = verdict.startswith(("invalid", "interrupted"))
        return LineFacts(
            at,
            len(raw),
            name,
            verdict,
            _text(record.get("uid")),
            int(run) if type(run) is str and run.isdigit() else None,
            _text(digests.get("setup")),
            sha,
            None if sha is None or invalid else _numbers_text(value.get("result")),
            _text(record.get("tier")),
            record.get("tier") in KEPT_TIERS,
            sha is not None and execution.get("status") not in ("interrupted", "refused"),
        )


class LogIndex:
    """The index of one log. Only the thread that opened it may use it.

    Attributes:
        seal: of the lines that it holds.
        entries: these lines, read from the log when they are asked for.
    """

    def __init__(self, log: Path, database: sqlite3.Connection, path: Path | None = None) -> None:
        self._log = log
        self._path = path
        self._database = database
        self._sha = hashlib.sha256()
        self.seal = Seal(0, self._sha.hexdigest())
        self._offsets = array("q")
        self.entries: LoggedEntries = LoggedEntries(log, self._offsets)

    @staticmethod
    def open(path: Path, log: Path) -> LogIndex:
        """The index that is stored at `path`, or a new one; `catch_up` makes it fit the log."""
        for attempt in range(2):
            try:
                return LogIndex(log, _connect(path), path)
            except sqlite3.DatabaseError:
                if attempt:
                    raise
                _remove(path)
        raise AssertionError("the second attempt returns or raises")

    @staticmethod
    def in_memory(log: Path) -> LogIndex:
        """An index that is stored nowhere."""
        database = sqlite3.connect(":memory:")
        database.executescript(_SCHEMA + _INDEXES)
        return LogIndex(log, database)

    @staticmethod
    def read_only(path: Path, log: Path) -> LogIndex:
        """For a look from outside: the stored index if it fits, else one in memory; it has caught up."""
        if path.is_file():
            with contextlib.suppress(sqlite3.DatabaseError):
                stored = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5.0)
                index = LogIndex(log, stored)
                if _meta(stored, "version") == _VERSION and index._fits():
                    return index
                memory = LogIndex.in_memory(log)
                if _meta(stored, "version") == _VERSION:
                    stored.backup(memory._database)
                stored.close()
                memory.catch_up()
                return memory
        index = LogIndex.in_memory(log)
        index.catch_up()
        return index

    def close(self) -> None:
        self._database.close()

    def catch_up(self, *, until: int | None = None) -> Seal:
        """Makes the index fit the log as it is: reads every byte, parses what is new, and gives the seal.

        Args:
            until: bytes of the log that count; by default all whole lines.
        """
        try:
            return self._catch_up(until)
        except sqlite3.DatabaseError:
            self._connect_anew()
            return self._catch_up(until)

    def _catch_up(self, until: int | None) -> Seal:
        size, sha = int(_meta(self._database, "size") or 0), _meta(self._database, "sha256") or ""
        try:
            file = open(self._log, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            self._clear()
            return self.seal
        with file:
            end = os.fstat(file.fileno()).st_size if until is None else until
            self._sha = hashlib.sha256()
            fits = size <= end and _hash(file, size, self._sha) and self._sha.hexdigest() == sha
            if not fits:
                self._clear()
                file.seek(0)
                size = 0
            new: list[LineFacts] = []
            at = size
            for raw in file:
                if not raw.endswith(b"\n") or at + len(raw) > end:
                    break
                self._sha.update(raw)
                new.append(LineFacts.of(raw, at))
                at += len(raw)
        self.seal = Seal(at, self._sha.hexdigest())
        self._insert(new)
        # After the lines of a first catching up: that is faster than keeping them for each line.
        self._database.executescript(_INDEXES)
        self._read_offsets()
        return self.seal

    def _fits(self) -> bool:
        """Whether the log is exactly what the database was made from; then the lines are known."""
        size = int(_meta(self._database, "size") or 0)
        if _stamp(self._log) == _meta(self._database, "stamp"):
            self.seal = Seal(size, _meta(self._database, "sha256") or "")
            self._read_offsets()
            return True
        try:
            with open(self._log, "rb") as file:
                whole = os.fstat(file.fileno()).st_size == size and _hash(file, size, self._sha)
        except FileNotFoundError:
            return False
        self.seal = Seal(size, self._sha.hexdigest())
        if not whole or self.seal.sha256 != _meta(self._database, "sha256"):
            return False
        self._read_offsets()
        return True

    def _read_offsets(self) -> None:
        rows = self._database.execute("SELECT at FROM line ORDER BY number").fetchall()
        self._offsets[:] = array("q", [row[0] for row in rows])

    def sha_state(self) -> Any:
        """A copy of the running digest of the log."""
        return self._sha.copy()

    def add(self, lines: Sequence[bytes]) -> Seal:
        """More lines, which the log holds already, line feeds included; gives the seal after them."""
        at, facts = self.seal.at, list[LineFacts]()
        for raw in lines:
            facts.append(LineFacts.of(raw, at))
            self._sha.update(raw)
            at += len(raw)
        self.seal = Seal(at, self._sha.hexdigest())
        try:
            self._insert(facts)
        except sqlite3.DatabaseError:
            self._make_anew()
            return self.seal
        self._offsets.extend(each.at for each in facts)
        return self.seal

    def ids_of(self, sha: str, setup: str) -> list[str] | None:
        """The ids of the lines of what ran with these digests to an end; None if it never did."""
        rows = self._all(
            "SELECT id FROM line WHERE sha = ? AND setup = ? AND ran ORDER BY number", sha, setup
        )
        return [row[0] for row in rows] or None

    def numbers_of(self, sha: str) -> list[int]:
        """The numbers, from 0, of all lines of what has this digest."""
        return [row[0] - 1 for row in self._all("SELECT number FROM line WHERE sha = ? ORDER BY number", sha)]

    def copy_of(self, numbers: ResultNumbers, sha: str) -> str | None:
        """The id of the first valid line that holds the same measurement and did not come of what has this
        digest; None if there is none. Only lines with a number close to one of the largest are compared."""
        near = sorted({step + by for step in landmarks(numbers) for by in (-1, 0, 1)})
        rows = self._all(
            "SELECT DISTINCT line.number, line.id, line.numbers FROM landmark JOIN line USING (number) "
            f"WHERE landmark.step IN ({','.join('?' * len(near))}) AND line.sha != ? ORDER BY line.number",
            *near,
            sha,
        )
        return next((id for _, id, known in rows if is_copy(_numbers_of(known), numbers)), None)

    def place_of(self, uid: str) -> tuple[int, int] | None:
        """Where the line of this uid begins, and its size; None if there is none."""
        rows = self._all("SELECT at, size FROM line WHERE uid = ? ORDER BY number LIMIT 1", uid)
        return (rows[0][0], rows[0][1]) if rows else None

    def number_with(self, uid: str) -> int | None:
        """The number, from 0, of the line of this uid."""
        rows = self._all("SELECT number FROM line WHERE uid = ? ORDER BY number LIMIT 1", uid)
        return rows[0][0] - 1 if rows else None

    def shas(self, setup: str) -> list[str]:
        """The digests of everything that has run to an end against this setup.py."""
        return [row[0] for row in self._all("SELECT DISTINCT sha FROM line WHERE setup = ? AND ran", setup)]

    def has_id(self, experiment_id: str) -> bool:
        """Whether a line has this id."""
        found = self._all("SELECT 1 FROM line WHERE id = ? LIMIT 1", experiment_id) if experiment_id else []
        return bool(found)

    def number_of(self, experiment_id: str) -> int | None:
        """The number, from 0, of the first line of this id."""
        rows = self._all("SELECT number FROM line WHERE id = ? ORDER BY number LIMIT 1", experiment_id)
        return rows[0][0] - 1 if rows else None

    def tally(self) -> dict[str, int]:
        """How many lines of experiments ended with each verdict, in the order in which they first appear."""
        rows = self._all(
            "SELECT verdict, count(*) FROM line WHERE verdict != ? GROUP BY verdict ORDER BY min(number)",
            CLOSING,
        )
        return dict(rows)

    def kept(self) -> int:
        """How many lines were kept."""
        return int(self._all("SELECT count(*) FROM line WHERE kept")[0][0])

    def kept_ids(self, *, after: int = 0) -> set[str]:
        """The ids of the kept lines after this many lines."""
        return {row[0] for row in self._all("SELECT id FROM line WHERE kept AND number > ?", after)}

    def newest(self, count: int, *, kept: bool) -> list[int]:
        """The numbers, from 0, of the newest lines that were kept, or were not, newest first."""
        rows = self._all(
            "SELECT number FROM line WHERE kept = ? ORDER BY number DESC LIMIT ?", int(kept), count
        )
        return [row[0] - 1 for row in rows]

    def last_run(self) -> int:
        """The highest number of a run in the log; 0 without one."""
        return int(self._all("SELECT coalesce(max(run), 0) FROM line")[0][0])

    def runs(self) -> int:
        """How many runs the log has lines of."""
        return int(self._all("SELECT count(DISTINCT run) FROM line")[0][0])

    def _all(self, query: str, *values: object) -> list[Any]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.DatabaseError:
            # Another program damaged it. It says nothing that the log does not say.
            self._make_anew()
            return self._database.execute(query, values).fetchall()

    def _make_anew(self) -> None:
        """A new database in the place of the one that cannot be used, for the same lines of the log.

        Raises:
            sqlite3.DatabaseError: it is not stored in a file of its own.
        """
        until = self.seal.at
        self._connect_anew()
        self._catch_up(until)

    def _connect_anew(self) -> None:
        if self._path is None:
            raise sqlite3.DatabaseError("the index is in memory, or belongs to another process")
        with contextlib.suppress(sqlite3.DatabaseError):
            self._database.close()
        _remove(self._path)
        self._database = _connect(self._path)

    def _clear(self) -> None:
        self._database.executescript("DELETE FROM line; DELETE FROM landmark;")
        self._offsets[:] = array("q")
        self._sha = hashlib.sha256()
        self.seal = Seal(0, self._sha.hexdigest())

    def _insert(self, facts: Sequence[LineFacts]) -> None:
        if facts:
            after = int(self._all("SELECT coalesce(max(number), 0) FROM line")[0][0])
            rows = ((after + i, *each) for i, each in enumerate(facts, 1))
            self._database.executemany(f"INSERT INTO line VALUES ({','.join('?' * 13)})", rows)
            steps = (
                (step, after + i)
                for i, each in enumerate(facts, 1)
                if each.numbers is not None
                for step in set(landmarks(_numbers_of(each.numbers)))
            )
            self._database.executemany("INSERT INTO landmark VALUES (?, ?)", steps)
        size = str(self.seal.at)
        meta = {"version": _VERSION, "size": size, "sha256": self.seal.sha256, "stamp": _stamp(self._log)}
        self._database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
        self._database.commit()


class LoggedEntries(Sequence[ExperimentEntry]):
    """The lines of a log as a sequence; each is read and parsed when it is asked for.

    It may be used from any thread, and grows with the log that its index follows.
    """

    def __init__(self, log: Path, offsets: array[int]) -> None:
        self._log = log
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, place: int) -> ExperimentEntry: ...
    @overload
    def __getitem__(self, place: slice) -> list[ExperimentEntry]: ...
    def __getitem__(self, place: int | slice) -> ExperimentEntry | list[ExperimentEntry]:
        if isinstance(place, slice):
            return list(self.at(range(len(self))[place]))
        number = range(len(self))[place]
        return next(self.at([number]))

    def __iter__(self) -> Iterator[ExperimentEntry]:
        return self.at(range(len(self)))

    def at(self, numbers: Iterable[int]) -> Iterator[ExperimentEntry]:
        """The lines of these numbers, from 0, in this order."""
        file = None
        try:
            for number in numbers:
                file = file or open(self._log, "rb")  # noqa: SIM115 - closed at the end
                file.seek(self._offsets[number])
                yield self._entry(number, file.readline())
        finally:
            if file is not None:
                file.close()

    def _entry(self, number: int, raw: bytes) -> ExperimentEntry:
        try:
            return ExperimentEntry.from_dict(decode_object(raw.rstrip(b"\n")))
        except (LineError, EntryError) as problem:
            raise CorruptLog(
                f"{self._log}, line {number + 1}: {problem}. `ExperimentLog.scan()` reads the other lines; "
                "a supervisor restores the line from its journal."
            ) from None


_IN_ORDER = 400


def _numbers_text(result: object) -> str | None:
    """The numbers of a result as the index keeps them; None if there is nothing to compare. Those in order
    count for short results only."""
    found = compared(result)
    if not found.telling:
        return None
    in_order = found.in_order if len(found.in_order) <= _IN_ORDER else ()
    return json.dumps([[*found.telling], [*in_order]])


def _numbers_of(text: str) -> ResultNumbers:
    telling, in_order = json.loads(text)
    return ResultNumbers(tuple(in_order), tuple(telling))


def _remove(path: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()


def _connect(path: Path) -> sqlite3.Connection:
    new = not path.exists()
    database = sqlite3.connect(path, timeout=10.0)
    # What is lost in a power cut is made anew from the log.
    database.executescript("PRAGMA journal_mode=TRUNCATE; PRAGMA synchronous=OFF;")
    if new or _meta(database, "version") != _VERSION:
        database.executescript(
            "DROP TABLE IF EXISTS line; DROP TABLE IF EXISTS landmark; DROP TABLE IF EXISTS meta;" + _SCHEMA
        )
    return database


def _meta(database: sqlite3.Connection, name: str) -> str | None:
    try:
        row = database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    except sqlite3.OperationalError:
        return None
    return None if row is None else str(row[0])


def _hash(file: Any, size: int, sha: Any) -> bool:
    """Adds the first `size` bytes to the digest; False if the file is shorter."""
    left = size
    while left:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            return False
        sha.update(chunk)
        left -= len(chunk)
    return True


def _stamp(path: Path) -> str:
    """What changes whenever a program writes to a file: the kernel sets the time of its last change."""
    try:
        status = os.lstat(path)
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_ctime_ns}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if type(value) is str else None
