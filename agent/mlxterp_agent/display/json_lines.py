"""One JSON object for each thing that happens, for a program that watches a run."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TextIO

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent.events import Decided, Event, Started
from mlxterp_agent.storage.record import tier_of, verdict_of


class JsonLines:
    """One JSON object for each thing that happens; the key `event` names its kind."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout

    def __call__(self, event: Event) -> None:
        line = {"event": type(event).__name__.lower(), **_fields(event)}
        print(json.dumps(line, ensure_ascii=True, allow_nan=False), file=self._out, flush=True)

    def close(self) -> None:
        """Nothing to take down."""


def _fields(event: Event) -> dict[str, object]:
    match event:
        case Started():
            fields = dataclasses.asdict(event)
            return {name: fields[name] for name in fields if name not in ("tally", "kept")}
        case Decided():
            return entry_fields(event.entry)
        case _:
            return dataclasses.asdict(event)


def entry_fields(entry: ExperimentEntry) -> dict[str, object]:
    """A line of the log as one JSON object without its numbers."""
    record = entry.record or {}
    return {
        "experiment_id": entry.experiment_id,
        "verdict": verdict_of(entry),
        "tier": tier_of(entry),
        "reasons": record.get("reasons", []),
        "hypothesis": entry.hypothesis,
        "method": entry.method,
        "informative": entry.informative,
        "conclusion": entry.conclusion,
        "duration_seconds": entry.duration_seconds,
        "run": record.get("run"),
    }
