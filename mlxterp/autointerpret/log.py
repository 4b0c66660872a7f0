"""The experiment log: results.jsonl, one entry a line, append-only.

Lives here: appending, or reporting to the supervisor instead; strict and tolerant reading; a summary as text.
Does not live here: the bytes, the lock and the seals (`log_file.py`), the fields of an entry (`entry.py`).
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlxterp._files import write_all, write_atomically
from mlxterp.autointerpret import log_file
from mlxterp.autointerpret.encoding import MAX_LINE, LineError, decode_object, encode_object
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.log_file import Continuation, LogFile, Place, Seal, SealProblem
from mlxterp.errors import CorruptLog, EntryError, OutboxClosed, TornTail
from mlxterp.measurements import recorder

if TYPE_CHECKING:
    import pandas as pd

OUTBOX_ENV = "AUTOINTERP_OUTBOX"
"""Holds `fd:<n>` in a process whose entries a supervisor collects: JSON lines on an inherited pipe."""

_LAST_SHOWN = 5
_ONE_FRAME_AT_A_TIME = threading.Lock()


class Line(NamedTuple):
    """A line of the log: its number from 1, its entry, its bytes without the line feed."""

    number: int
    entry: ExperimentEntry
    raw: bytes


class LineProblem(NamedTuple):
    """A line that cannot be read, and why."""

    line: int
    what: str


@dataclass(frozen=True)
class Scan:
    """Everything in the log that can be read, and what cannot."""

    entries: tuple[ExperimentEntry, ...]
    problems: tuple[LineProblem, ...]
    torn: bytes


class ExperimentLog:
    """The log of an investigation.

    `append` waits until the entry is on the disk (a few milliseconds). Several processes and threads may
    append to one log; each entry gets its own id. Under supervision `append` reports to the supervisor
    instead, which decides what the entry is worth and writes the line; reading works from the file as always.

    Args:
        path: the file; made at the first append. A symlink, a FIFO or a directory is refused; under
            supervision a symlink is followed, because an experiment's directory links to the project's files.
        clock: seconds since 1970, for the timestamp of entries that have none.
    """

    def __init__(self, path: str | Path = "results.jsonl", *, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._file = LogFile(self.path.resolve() if OUTBOX_ENV in os.environ else self.path)
        self._clock = clock

    def append(self, entry: ExperimentEntry) -> ExperimentEntry:
        """Logs the entry and returns it as logged, with its id and timestamp.

        Under supervision the returned entry has the id "": the supervisor gives it one when it logs it. What
        the library measured since the entry before goes with it; an entry with nothing measured behind it is
        a note.

        Raises:
            OutboxClosed: a supervisor asked for entries, and its pipe is gone.
            ProjectError: the path is no regular file, or its directory does not exist.
            OSError: the disk is full or read-only; the log is as it was.
        """
        stamped = self._stamped(entry, "append")
        supervisor = outbox()
        if supervisor is not None:
            pending = replace(stamped, experiment_id="")
            measured = recorder.take().to_dict()
            supervisor.send({"type": "entry", "entry": pending.to_dict(), "measured": measured})
            return pending
        return self._append(lambda place: replace(stamped, experiment_id=place.experiment_id)).entry

    def append_sealed(self, entry: ExperimentEntry, record: Mapping[str, Any]) -> ExperimentEntry:
        """Logs the entry with the supervisor's evidence, which gets `schema`, `seq`, `at` and `seal`.

        `record["uid"]` names the experiment: a uid that the log has already is returned as it was logged, so
        that an append can be repeated after a crash. Writes the file also when an outbox is set.
        """
        return self.append_line(entry, record).entry

    def append_line(self, entry: ExperimentEntry, record: Mapping[str, Any]) -> Line:
        """The same as `append_sealed`, with the number of the line and its bytes."""
        uid = record.get("uid")
        if not isinstance(uid, str) or not uid:
            raise EntryError(
                f"record['uid'] is {uid!r}. Give the text that names this experiment, the same when repeated."
            )
        stamped = replace(self._stamped(entry, "append_sealed"), record=dict(record)).plain()
        evidence = stamped.record or {}

        def sealed(place: Place) -> ExperimentEntry:
            first = {
                "schema": log_file.SCHEMA,
                "seq": place.number,
                "uid": uid,
                "at": place.at,
                "seal": place.seal,
            }
            rest = {name: value for name, value in evidence.items() if name not in first}
            return replace(stamped, experiment_id=place.experiment_id, record={**first, **rest})

        return self._append(sealed, uid=uid)

    def continue_from(self, there: Continuation) -> None:
        """Takes what is known of the log as read, so that the next append reads only what is new."""
        self._file.continue_from(there)

    def repair(self) -> bytes:
        """Ends a line that a crash cut off: sets the fragment aside in `<name>.torn` and returns it (usually
        empty).

        Every append does this first; a supervisor calls it once at start.
        """
        return self._file.mend()

    def entries(self) -> list[ExperimentEntry]:
        """Every entry, oldest first. CorruptLog names the first line that cannot be read."""
        return [line.entry for line in self.read_lines()]

    def informative_entries(self) -> list[ExperimentEntry]:
        """The entries whose `informative` is True."""
        return [entry for entry in self.entries() if entry.informative]

    def read_lines(self) -> Iterator[Line]:
        """Every line with its number and bytes, strictly; warns of a torn last line, which it leaves out.

        Raises:
            CorruptLog: naming file, line number and what is wrong there.
        """
        read = _Reader(self.raw())
        for number, raw in read.lines():
            try:
                yield Line(number, _entry(raw), raw)
            except (LineError, EntryError) as problem:
                raise CorruptLog(
                    f"{self.path}, line {number}: {problem}. `ExperimentLog.scan()` reads the other lines; "
                    "a supervisor restores the line from its journal."
                ) from None
        if read.torn:
            warnings.warn(
                f"{self.path}: the last {len(read.torn)} bytes are a line that a crash cut off; the next "
                f"append moves them to {self.path.name}.torn",
                TornTail,
                stacklevel=2,
            )

    def scan(self) -> Scan:
        """What `entries` reads, without refusing: unreadable lines and a torn tail stand beside them."""
        read, entries, problems = _Reader(self.raw()), [], []
        for number, raw in read.lines():
            try:
                entries.append(_entry(raw))
            except (LineError, EntryError) as problem:
                problems.append(LineProblem(number, str(problem)))
        return Scan(tuple(entries), tuple(problems), read.torn)

    def __len__(self) -> int:
        """How many lines hold something; reads the file, and parses nothing."""
        return sum(1 for _ in _Reader(self.raw()).lines())

    def __bool__(self) -> bool:
        """A log is true also while it is empty."""
        return True

    def summary(self) -> str:
        """How many experiments, by which methods, how many informative, and the last conclusions, as text."""
        return describe(self.entries(), self.path.name)

    def to_dataframe(self) -> pd.DataFrame:
        """A pandas DataFrame with a row for each entry; `result`, `metadata` and `record` are JSON texts.

        Raises:
            CorruptLog: a line that cannot be read.
            ResultError: pandas is not installed (`pip install 'mlxterp[dataframe]'`).
        """
        from mlxterp.results import dataframe  # numpy and the results: the supervisor starts without them

        rows = [entry.to_dict() for entry in self.entries()]
        return dataframe.frame(rows, {"kind": "experiment log", "title": self.path.name})

    def to_parquet(self, path: str | Path) -> Path:
        """Writes `to_dataframe` as a Parquet file; returns its path.

        Raises:
            ResultError: pandas or pyarrow is not installed (`pip install 'mlxterp[dataframe]'`).
        """
        from mlxterp.results import dataframe

        return dataframe.write_parquet(self.to_dataframe(), path)

    def verify(self, anchors: Iterable[Seal] = ()) -> list[SealProblem]:
        """Where the log disagrees with its own seals, or with seals kept elsewhere; empty if it does not."""
        known = list(anchors)
        return log_file.check(self.raw(), known) if known else self._file.check()

    def seal(self) -> Seal:
        """The seal of all complete lines as they are now: the anchor to keep outside the project."""
        place = self._file.place()
        return Seal(place.at, place.seal)

    def raw(self) -> bytes:
        """Every byte of the log, a torn last line included."""
        return self._file.read()

    def prefix_bytes(self, size: int) -> bytes:
        """The first `size` bytes: what the log was when it had that size."""
        return self._file.read(0, size)

    def lines_after(self, size: int) -> Iterator[bytes]:
        """The whole lines after the first `size` bytes, line feeds included, one at a time."""
        with open(self.path, "rb") as file:
            file.seek(size)
            for line in file:
                if line.endswith(b"\n"):
                    yield line

    def restore(self, content: bytes) -> None:
        """Replaces the whole file in one step, for a supervisor that found it changed and kept a copy."""
        write_atomically(self.path, content)

    def _stamped(self, entry: ExperimentEntry, caller: str) -> ExperimentEntry:
        if not isinstance(entry, ExperimentEntry):
            raise EntryError(
                f"{caller} was given a {type(entry).__name__}. Give an ExperimentEntry(hypothesis=…, "
                "method=…, result={…}, informative=…, conclusion=…, duration_seconds=…)."
            )
        plain = entry.plain()
        return plain if plain.timestamp is not None else replace(plain, timestamp=float(self._clock()))

    def _append(self, finish: Callable[[Place], ExperimentEntry], *, uid: str = "") -> Line:
        def line(place: Place) -> bytes:
            encoded = encode_object(finish(place).to_dict())
            if len(encoded) > MAX_LINE:
                raise EntryError(
                    f"this entry needs a line of {len(encoded):,} bytes; a line may have {MAX_LINE:,}."
                )
            return encoded

        appended = self._file.append(line, uid=uid)
        if appended.set_aside:
            warnings.warn(
                f"{self.path}: {len(appended.set_aside)} bytes of a line that a crash cut off were moved to "
                f"{self.path.name}.torn",
                TornTail,
                stacklevel=3,
            )
        raw = appended.line.rstrip(b"\n")
        return Line(self._file.lines, _entry(raw), raw)


class _Reader:
    """Lines, split at line feeds only: other characters that end lines are text inside JSON."""

    def __init__(self, raw: bytes) -> None:
        *self._lines, rest = raw.split(b"\n")
        self.torn = rest
        if rest and _is_entry(rest):  # only the line feed is missing
            self._lines.append(rest)
            self.torn = b""

    def lines(self) -> Iterator[tuple[int, bytes]]:
        return ((number, line) for number, line in enumerate(self._lines, 1) if line.strip())


def _entry(raw: bytes) -> ExperimentEntry:
    return ExperimentEntry.from_dict(decode_object(raw))


def _is_entry(raw: bytes) -> bool:
    try:
        _entry(raw)
    except (LineError, EntryError):
        return False
    return True


def describe(entries: Iterable[ExperimentEntry], name: str = "log") -> str:
    """The text of `ExperimentLog.summary` for these entries."""
    every = list(entries)
    if not every:
        return f"{name}: no experiments yet"
    informative = sum(entry.informative for entry in every)
    seconds = sum(entry.duration_seconds or 0.0 for entry in every)
    done = _count(len(every), "experiment")
    lines = [f"{name}: {done}, {informative} informative, {seconds:.1f} s of experiments"]
    verdicts = Counter(_verdict(entry) for entry in every)
    if set(verdicts) != {""}:
        counts = (f"{verdict or 'without a verdict'} {n}" for verdict, n in verdicts.most_common())
        lines.append(f"  verdicts: {', '.join(counts)}")
    methods = Counter(entry.method for entry in every)
    useful = Counter(entry.method for entry in every if entry.informative)
    lines.append("  methods:")
    lines += [f"    {method}: {n}, {useful[method]} informative" for method, n in methods.most_common()]
    lines.append("  last conclusions:")
    for entry in every[-_LAST_SHOWN:]:
        mark = "informative" if entry.informative else "not informative"
        lines.append(
            f"    [{entry.experiment_id or '----'}] {' '.join(entry.conclusion.split())[:200]} ({mark})"
        )
    return "\n".join(lines)


def _verdict(entry: ExperimentEntry) -> str:
    verdict = (entry.record or entry.metadata).get("verdict")
    return verdict if isinstance(verdict, str) else ""


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


class Outbox:
    """The writing end of the pipe to the supervisor, so that the log has exactly one writer.

    It protects against no forged frame: what the supervisor believes is decided by what it measures.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def send(self, frame: Mapping[str, Any]) -> None:
        """Writes one frame, an ASCII JSON object and a line feed, whole before another thread's.

        Raises:
            OutboxClosed: no process can receive it.
        """
        line = json.dumps(frame, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"
        try:
            kind = os.fstat(self.fd).st_mode
        except OSError as problem:
            raise _closed(self.fd, problem.strerror) from problem
        # A program started by the experiment inherits the variable without the pipe, and the number may by
        # then belong to one of its own files.
        if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
            raise _closed(self.fd, "it is not a pipe")
        try:
            with _ONE_FRAME_AT_A_TIME:
                write_all(self.fd, line)
        except (BrokenPipeError, ConnectionError) as problem:
            raise _closed(self.fd, "no process reads it any more") from problem
        except OSError as problem:
            raise _closed(self.fd, problem.strerror) from problem


def outbox() -> Outbox | None:
    """The outbox of this process, or None when no supervisor asked for its entries."""
    where = os.environ.get(OUTBOX_ENV)
    if not where:
        return None
    match = re.fullmatch(r"fd:(\d{1,7})", where)
    if match is None:
        raise OutboxClosed(
            f"{OUTBOX_ENV}={where!r} names no pipe. A supervisor sets it to 'fd:<number>'. "
            "Unset it to write results.jsonl directly."
        )
    return Outbox(int(match[1]))


def _closed(fd: int, why: str | None) -> OutboxClosed:
    return OutboxClosed(
        f"the entry was not logged: {OUTBOX_ENV} names file descriptor {fd}, and "
        f"{why or 'it cannot be used'}. Call ExperimentLog.append in the process that the supervisor "
        "started, and leave its file descriptors open. "
        f"To write results.jsonl without a supervisor, unset {OUTBOX_ENV}."
    )
