"""What passes between a run, the journal and the log: the intent to run, its lines, lines logged by hand.

Values only; what is written when is `results_log.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxterp.autointerpret.contract import PRIVATE
from mlxterp.autointerpret.encoding import LineError, decode_object
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.errors import EntryError
from mlxterp_agent.storage.budget import KEPT_TIERS
from mlxterp_agent.storage.journal import Event

RUNS = f"{PRIVATE}/runs"


@dataclass(frozen=True)
class Intent:
    """A run that was announced: what is about to happen, written before it does.

    `source` is the text that runs; `digests` are those of setup.py, program.md and experiment.py at this
    moment.
    """

    run: int
    uid: str
    source: str
    time_box: float
    digests: dict[str, str | None]
    declared: dict[str, Any] | None = None
    driver: dict[str, str | None] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        return str(self.digests["experiment"])

    @staticmethod
    def from_event(event: Event) -> Intent:
        names = ("run", "uid", "source", "time_box", "digests", "declared", "driver")
        return Intent(**{name: event[name] for name in names})


@dataclass(frozen=True)
class Verdicted:
    """One line as it will be logged: the entry, and the supervisor's evidence with its uid."""

    entry: ExperimentEntry
    record: dict[str, Any]

    @staticmethod
    def from_event(line: Mapping[str, Any]) -> Verdicted:
        return Verdicted(ExperimentEntry.from_dict(line["entry"]), dict(line["record"]))


def is_kept(entry: ExperimentEntry) -> bool:
    """Whether a supervisor kept this line: a lead, a finding or a claim."""
    return (entry.record or {}).get("tier") in KEPT_TIERS


def shadow(events: Iterable[Event]) -> bytes:
    """The bytes of results.jsonl as the journal has them."""
    texts = (event["text"] for event in events if event["event"] in ("logged", "adopted"))
    return "".join(texts).encode("utf-8")


def whole_lines(raw: bytes) -> list[bytes]:
    """The lines of some bytes with their line feeds; an end without one is left out."""
    return [line + b"\n" for line in raw.split(b"\n")[:-1]]


def by_hand(line: bytes) -> ExperimentEntry | None:
    """The entry in a whole line that an experiment run by hand appended: one without a record. None for
    others."""
    try:
        entry = ExperimentEntry.from_dict(decode_object(line))
    except (LineError, EntryError):
        return None
    return entry if entry.record is None else None
