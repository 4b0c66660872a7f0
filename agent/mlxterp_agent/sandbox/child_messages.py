"""What a child reports on its outbox, read strictly: JSON lines of six types, each at its time.

    ready         setup.py was imported; `facts` about it
    setup_error   it was not; `error`, `traceback`
    jail_error    the jail does not hold, so setup.py was not imported; `error`
    entry         `ExperimentLog.append` was called; `entry`, and what was `measured` since the one before
    held_out      it ran prompts of pairs that claims are judged on; `pairs`, their places in setup.dataset
    done          the experiment ended by itself; `status`, `error`, `traceback`

The experiment has the pipe too and can write anything, so nothing here raises: what does not fit is a bad
frame. A forged frame that fits is believed as far as any report is: an entry is a claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxterp.autointerpret.encoding import MAX_LINE, LineError, decode_object
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.errors import EntryError
from mlxterp.measurements import Measurements
from mlxterp_agent.storage.record import BadFrame, FrameFault

MAX_TOTAL = 64_000_000
MAX_ENTRIES = 64
_MAX_BAD = 20
_MAX_TEXT = 20_000


@dataclass(frozen=True)
class Problem:
    """Why something failed, in one sentence, and where."""

    error: str
    traceback: str | None = None


@dataclass(frozen=True)
class Done:
    """The experiment's own report of its end.

    Attributes:
        problem: None if it ran through.
        forwards: how often the library ran a model after the last entry; None if it does not say.
    """

    problem: Problem | None
    forwards: int | None = None


class Frames:
    """Collects the frames of one child. Not thread-safe: the child's pump feeds it under its lock.

    Attributes:
        facts: what `ready` brought; None before.
        setup_error: None unless setup.py failed.
        jail_error: why there is no jail; None if there is one, or none was asked for.
        entries: none with a record.
        measured: what the library measured before each of them; nothing where a frame does not say it.
        held_out: places in setup.dataset of held-out pairs that it ran, by its own library's report.
        bad: what was not accepted; at most twenty.
        done: None until the experiment reported its end.
    """

    def __init__(self) -> None:
        self.facts: dict[str, Any] | None = None
        self.setup_error: Problem | None = None
        self.jail_error: str | None = None
        self.entries: list[ExperimentEntry] = []
        self.measured: list[Measurements] = []
        self.held_out: set[int] = set()
        self.bad: list[BadFrame] = []
        self.done: Done | None = None
        self._running = False
        self._partial = bytearray()
        self._skipping = False
        self._total = 0

    def expect_entries(self) -> None:
        """The experiment starts now: entries before this moment are not its own."""
        self._running = True

    def feed(self, chunk: bytes) -> None:
        """Takes what was read from the pipe."""
        self._total += len(chunk)
        if self._total > MAX_TOTAL:
            if self._total - len(chunk) <= MAX_TOTAL:
                self._refuse(f"more than {MAX_TOTAL:,} bytes were reported; the rest is not read")
            self._partial.clear()
            return
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._line(bytes(self._partial) + line)
            self._partial.clear()
            self._skipping = False
        self._partial += rest
        if len(self._partial) > MAX_LINE and not self._skipping:
            self._refuse(f"a frame is longer than {MAX_LINE:,} bytes")
            self._skipping = True
        if self._skipping:
            self._partial.clear()

    def end(self) -> None:
        """The pipe is closed."""
        if self._partial:
            self._refuse("the last frame was cut off", fault=FrameFault.TORN)
            self._partial.clear()

    def _line(self, line: bytes) -> None:
        if self._skipping:
            return
        try:
            frame = decode_object(line)
        except LineError as problem:
            self._refuse(f"a frame cannot be read: {problem}", fault=FrameFault.TORN)
            return
        match frame.get("type"):
            case "ready" if not self._running and self.facts is None and self.setup_error is None:
                facts = frame.get("facts")
                self.facts = facts if isinstance(facts, dict) else {}
            case "setup_error" if not self._running and self.facts is None and self.setup_error is None:
                self.setup_error = _problem(frame)
            case "jail_error" if not self._running and self.facts is None and self.setup_error is None:
                self.setup_error = _problem(frame)
                self.jail_error = self.setup_error.error
            case "entry" if self._running and self.done is None:
                self._entry(frame)
            case "held_out" if self._running and self.done is None and _are_places(frame.get("pairs")):
                self.held_out.update(frame["pairs"])
            case "done" if self._running and self.done is None and frame.get("status") in ("ok", "error"):
                forwards = frame.get("forwards")
                known = forwards if type(forwards) is int and forwards >= 0 else None
                self.done = Done(None if frame["status"] == "ok" else _problem(frame), known)
            case "ready" | "setup_error" | "jail_error" | "entry" | "held_out" | "done" as kind:
                self._refuse(f"a frame {kind!r} came when none was expected", fault=FrameFault.FORGED)
            case other:
                self._refuse(f"a frame of unknown type {str(other)[:40]!r}", fault=FrameFault.FORGED)

    def _entry(self, frame: Mapping[str, Any]) -> None:
        fields = frame.get("entry")
        if not isinstance(fields, dict):
            self._refuse("an entry frame without an entry", fault=FrameFault.FORGED)
        elif fields.get("record") is not None:
            self._refuse(
                "an entry that brings a record, which only the supervisor writes", fault=FrameFault.FORGED
            )
        elif len(self.entries) >= MAX_ENTRIES:
            self._refuse(f"more than {MAX_ENTRIES} entries in one experiment; the rest is not logged")
        else:
            try:
                entry = ExperimentEntry.from_dict(fields)
                measured = Measurements.from_dict(_mapping(frame.get("measured", {})))
            except EntryError as problem:
                self._refuse(f"an entry that cannot be logged: {problem}", fault=FrameFault.NO_ENTRY)
            except ValueError as problem:
                self._refuse(
                    f"an entry whose measurements cannot be read: {problem}", fault=FrameFault.FORGED
                )
            else:
                self.entries.append(entry)
                self.measured.append(measured)

    def _refuse(self, why: str, *, fault: FrameFault = FrameFault.TOO_MUCH) -> None:
        if len(self.bad) < _MAX_BAD:
            self.bad.append(BadFrame(why, fault))


def _are_places(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"measured is {str(value)[:60]!r}")
    return value


def _problem(frame: Mapping[str, Any]) -> Problem:
    error, trace = frame.get("error"), frame.get("traceback")
    return Problem(
        error[:_MAX_TEXT] if isinstance(error, str) and error else "no reason was given",
        trace[:_MAX_TEXT] if isinstance(trace, str) and trace else None,
    )
