"""The end of an investigation: its held-out numbers are shown, and their clusters are spent.

Until then they are in the journal only. Closing appends one line to results.jsonl that names the findings by
their ids and gives what was measured of each; the seals stay whole, and no line is rewritten. The event
`opened` goes first, so that a crash between the two is repaired (`storage/recovery.py`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from mlxterp.autointerpret.entry import CLOSING, ExperimentEntry
from mlxterp.autointerpret.keep_rule import RULE
from mlxterp_agent.storage.journal import Event, Journal
from mlxterp_agent.storage.record import JudgedEntry
from mlxterp_agent.storage.results_log import ResultsLog

_SHOWN = (
    *("effect", "se", "low", "high", "n", "mde", "missing", "bar", "placebos", "slices"),
    *("not_exceeded", "passengers"),
)
_SHOWN_OF_GATE = ("passed", "t", "preference", "rank_share", "first", "candidates", "prefixed")


def close_investigation(results: ResultsLog, setup_sha: str) -> ExperimentEntry | None:
    """Appends one line that shows every judgement not shown yet, and commits it; None if there is none."""
    waiting = unopened(results.journal)
    ids = {uid: entry.experiment_id for uid in waiting if (entry := results.entry_of(f"{uid}.1")) is not None}
    if not ids:
        return None
    gates = _gates(results.journal)
    numbers = {ids[uid]: shown_numbers(waiting[uid], gates) for uid in ids}
    line = _closing_line(numbers, setup_sha)
    results.journal.append(
        "opened", uid=line.record["uid"].rpartition(".")[0], uids=list(ids), lines=[line.to_event()]
    )
    logged = results.log_line(line)
    results.commit_log()
    return logged


def unopened(journal: Journal) -> dict[str, Event]:
    """The judgements with held-out numbers that no closing line has shown, by the uid of their experiment."""
    found: dict[str, Event] = {}
    for event, _ in journal.read():
        match event["event"]:
            case "judgement" if event["numbers"] is not None:
                found[event["uid"]] = event
            case "opened":
                for uid in event["uids"]:
                    found.pop(uid, None)
    return found


def _gates(journal: Journal) -> dict[str, Event]:
    """The events of behaviour gates, by their key."""
    return {event["key"]: event for event, _ in journal.read() if event["event"] == "gate"}


def shown_numbers(judgement: Event, gates: Mapping[str, Event]) -> dict[str, Any]:
    """What is shown of a judgement: the effect, its interval and its gate, not the numbers of single
    clusters."""
    gate = gates.get(judgement["gate"] or "")
    numbers: Mapping[str, Any] = judgement["numbers"]
    return {
        **{name: numbers.get(name) for name in _SHOWN},
        "look": judgement["look"],
        "level": judgement["level"],
        "source": judgement["source"],
        "clusters": list(judgement["clusters"]),
        "sha256": judgement["sha256"],
        "gate": None
        if gate is None
        else {
            of: {name: gate["numbers"][of].get(name) for name in _SHOWN_OF_GATE} for of in ("model", "twin")
        },
    }


def _closing_line(numbers: Mapping[str, Mapping[str, Any]], setup_sha: str) -> JudgedEntry:
    ids = ", ".join(numbers)
    entry = ExperimentEntry(
        hypothesis="",
        method=CLOSING,
        result={"held_out": {name: dict(each) for name, each in numbers.items()}},
        informative=False,
        conclusion=f"Closed: the held-out numbers of {ids}. Their clusters are spent.",
        duration_seconds=None,
        timestamp=time.time(),
    )
    record: dict[str, Any] = {
        "uid": f"{uuid.uuid4().hex}.1",
        "run": None,
        "tier": None,
        "verdict": CLOSING,
        "reasons": [],
        "rule": RULE,
        "claimed": False,
        "declared": None,
        "measured": None,
        "checks": {},
        "digests": {"setup": setup_sha, "program": None, "experiment": None, "model": None, "data": None},
        "execution": None,
        "driver": None,
        "cost": {"usd": None, "tokens": {}},
        "spent": {"experiments": None, "seconds": None, "usd": None},
        "commit": None,
    }
    return JudgedEntry(entry, record)
