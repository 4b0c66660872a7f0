"""What the supervisor writes beside a researcher's words: the `record` of a line, and lines where there were
no words.

The fields are those of docs/reference/results_jsonl.md; `schema`, `seq`, `at` and `seal` are added by the
log. Unknown is None, never 0. Nothing is decided here.
"""

from __future__ import annotations

import ast
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from mlxterp.autointerpret.contract import PRIVATE
from mlxterp.autointerpret.encoding import LineError, decode_object
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.errors import EntryError
from mlxterp_agent.judge.evidence import Judgement
from mlxterp_agent.storage.budget import KEPT_TIERS, Spent
from mlxterp_agent.storage.journal import Event
from mlxterp_agent.text import one_line, plain, tail

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
class JudgedEntry:
    """One line as it will be logged: the entry, and the supervisor's evidence with its uid."""

    entry: ExperimentEntry
    record: dict[str, Any]

    @staticmethod
    def from_event(line: Mapping[str, Any]) -> JudgedEntry:
        return JudgedEntry(ExperimentEntry.from_dict(line["entry"]), dict(line["record"]))


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


@dataclass(frozen=True)
class Execution:
    """How a run went, as far as the record tells it."""

    status: str
    exit_code: int | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    warm: bool | None = None
    signal: str | None = None
    error: str | None = None
    traceback: str | None = None
    bad_frames: tuple[str, ...] = ()

    def to_dict(self, time_box: float) -> dict[str, Any]:
        return {
            "status": self.status,
            "exit_code": self.exit_code,
            "seconds": self.seconds,
            "time_box": time_box,
            "peak_mb": self.peak_mb,
            "warm": self.warm,
            "signal": self.signal,
            "error": None if self.error is None else one_line(self.error, 500),
            "traceback": None if self.traceback is None else tail(self.traceback),
            "bad_frames": [one_line(frame, 200) for frame in self.bad_frames],
        }


@dataclass(frozen=True)
class Cost:
    """What the researcher cost since the line before; None is unknown."""

    usd: float | None = None
    tokens: int | None = None


def verdicted(
    entry: ExperimentEntry,
    judgement: Judgement,
    *,
    intent: Intent,
    number: int,
    execution: Execution,
    facts: Mapping[str, Any],
    cost: Cost,
    spent: Spent | None,
    wall: float,
) -> JudgedEntry:
    """One line: the entry as the rule decided it, and the evidence.

    The id and the time are the supervisor's to give; `informative` says what was decided, and
    `record["claimed"]` what the researcher called it.
    """
    verdict = judgement.verdict
    tier = None if verdict.tier == "invalid" else verdict.tier
    record: dict[str, Any] = {
        "uid": f"{intent.uid}.{number}",
        "run": f"{intent.run:04d}",
        "tier": tier,
        "verdict": verdict.verdict,
        "reasons": [one_line(reason, 500) for reason in verdict.reasons],
        "rule": verdict.rule,
        "claimed": entry.informative,
        "declared": intent.declared,
        "measured": judgement.measured,
        "checks": judgement.checks,
        "digests": {**intent.digests, "model": facts.get("model_digest"), "data": facts.get("data_digest")},
        "execution": execution.to_dict(intent.time_box),
        "driver": dict(intent.driver),
        "cost": {"usd": cost.usd, "tokens": {} if cost.tokens is None else {"total": cost.tokens}},
        "spent": _spent(spent),
        "commit": None,
        "blas": facts.get("blas"),
        "machine": _machine(),
    }
    seconds = entry.duration_seconds if entry.duration_seconds is not None else execution.seconds
    logged = replace(
        entry,
        experiment_id="",
        timestamp=wall,
        informative=verdict.kept,
        duration_seconds=seconds,
        record=None,
    )
    return JudgedEntry(logged, record)


@cache
def _machine() -> str:
    """Where the numbers were computed: times are comparable within it only."""
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    )


def _spent(spent: Spent | None) -> dict[str, Any]:
    if spent is None:
        return {"experiments": None, "seconds": None, "usd": None}
    return {"experiments": spent.experiments, "seconds": round(spent.seconds, 1), "usd": spent.usd}


def entry_without_report(
    intent: Intent, execution: Execution, *, because: str, printed: str = ""
) -> ExperimentEntry:
    """The line of a run that reported nothing: it crashed, was stopped, or never called
    `ExperimentLog.append`."""
    result: dict[str, Any] = {}
    if execution.error is not None:
        result["error"] = one_line(execution.error, 500)
    if execution.traceback is not None:
        result["traceback"] = tail(execution.traceback)
    if printed.strip():
        result["printed"] = tail(printed)
    return ExperimentEntry(
        hypothesis=claim_of(intent),
        method="",
        result=result,
        informative=False,
        conclusion=because,
        duration_seconds=execution.seconds,
    )


def how_it_ended(execution: Execution, time_box: float) -> str:
    """One sentence for the conclusion of a run that reported nothing."""
    match execution.status:
        case "ok":
            return "The experiment ran and reported nothing: it never called ExperimentLog.append."
        case "timeout":
            return f"The experiment did not end within its time box of {time_box:g} s and was stopped."
        case "oom":
            return "The experiment ran out of memory and was ended by the system."
        case "output_limit":
            return "The experiment wrote more output than is allowed and was stopped."
        case "interrupted":
            return "The run was interrupted before it ended; the same experiment may run again."
        case "setup_error":
            return (
                f"setup.py could not be imported: {one_line(execution.error or 'no reason was given', 300)}"
            )
        case "crashed":
            how = execution.signal or f"exit code {execution.exit_code}"
            return f"The experiment's process crashed ({how})."
        case _:
            return f"The experiment failed: {one_line(execution.error or 'no reason was given', 300)}"


def claim_of(intent: Intent) -> str:
    """What the run was about, as far as the file says: its declared claim, or its docstring's first line."""
    if intent.declared is not None:
        return str(intent.declared.get("claim", ""))
    try:
        words = ast.get_docstring(ast.parse(intent.source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    return plain(words).strip().splitlines()[0] if words and plain(words).strip() else ""
