"""What the supervisor knows of one experiment, and the lines of the log that come of it.

One value, `Experiment`, is extended on its way: announced before it runs (the journal's event `intent`), then
with how it was executed, then judged entry by entry (`judge/evidence.py`) into `JudgedEntry` lines. The
fields of a line's `record` are those of docs/reference/results_jsonl.md; `schema`, `seq`, `at` and `seal` are
added by the log. Unknown is None, never 0. Nothing is decided here.
"""

from __future__ import annotations

import ast
import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from typing import Any, Literal, NamedTuple

from mlxterp.autointerpret.contract import PRIVATE
from mlxterp.autointerpret.encoding import LineError, decode_object
from mlxterp.autointerpret.encoding import plain as plain_values
from mlxterp.autointerpret.entry import ExperimentEntry, is_closing
from mlxterp.autointerpret.keep_rule import Verdict
from mlxterp.autointerpret.prediction import (
    Prediction,
    compare_predictions,
    predictions_digest,
    read_predictions,
)
from mlxterp.errors import EntryError
from mlxterp.measurements import Measurements
from mlxterp_agent.storage.budget import Spent
from mlxterp_agent.storage.history import KEPT_TIERS
from mlxterp_agent.storage.journal import Event
from mlxterp_agent.text import one_line, plain, tail

RUNS = f"{PRIVATE}/runs"

Status = Literal[
    "ok", "error", "timeout", "crashed", "oom", "output_limit", "setup_error", "interrupted", "refused"
]
"""How a run ended; "refused" never began, because the contract was violated before it."""


_MAX_NAMED = 50
_PROGRAM_ERRORS = frozenset(
    {
        *("TypeError", "NameError", "AttributeError", "ImportError", "ModuleNotFoundError", "KeyError"),
        *("UnboundLocalError", "MissingAttribute", "UnknownHookPoint", "CapabilityUnavailable"),
        *("SweepError", "MetricError", "TokenError", "PromptPairError", "HookError", "DeclarationError"),
    }
)
"""Errors that say how something is called, and nothing about the model."""


class FrameFault(Enum):
    """Why a report of the experiment cannot be accepted."""

    TORN = "torn"
    """Cut off, or two writers wrote at once: it cannot be read."""

    TOO_MUCH = "too much"
    """More, or longer, than is read."""

    NO_ENTRY = "no entry"
    """Its entry lacks fields, or has wrong ones."""

    FORGED = "forged"
    """What no honest program sends: a record, a second end, an unknown kind of report."""


class BadFrame(NamedTuple):
    """A report of the experiment that cannot be accepted."""

    text: str
    fault: FrameFault

    @property
    def forged(self) -> bool:
        return self.fault is FrameFault.FORGED


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How one experiment ran, as its runner saw it.

    Attributes:
        status: "ok" only if the experiment reported its end and its process ended with exit code 0.
        exit_code, signal: of the process; None where the other applies, or when it never started.
        seconds: from the start of experiment.py to its end, without the import of setup.py.
        peak_mb: the most memory its process had; None if unknown.
        warm: setup.py had been imported before the run was asked for.
        error, traceback: why it is not "ok".
        bad_frames: the reports that were not accepted.
        entries: what it reported with `ExperimentLog.append`. These are claims.
        measured: what the library measured in its process before each of them.
        held_out: places in setup.dataset of the held-out pairs that it ran through the library.
        forwards: how often the library ran a model after the last of them; None if it did not say.
        stdout_tail, stderr_tail: the last 64 kB; the beginning is in the run's stdout.txt and stderr.txt.
        output_bytes: the size of all that it printed.
        escaped: how many processes outside its group still ran at its end, and were ended then.
        isolation: the jail it ran in ("landlock+seccomp", "sandbox-exec", "none"); None if it did not run.
        files: what it wrote into its scratch directory, as paths below `files` in the folder of its run.
        files_left_out: how many of them were not copied, because there were too many or they were too large.
    """

    status: Status
    exit_code: int | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    cpu_seconds: float | None = None
    warm: bool | None = None
    signal: str | None = None
    error: str | None = None
    traceback: str | None = None
    bad_frames: tuple[BadFrame, ...] = ()
    entries: tuple[ExperimentEntry, ...] = ()
    measured: tuple[Measurements, ...] = ()
    held_out: tuple[int, ...] = ()
    forwards: int | None = None
    stdout_tail: str = ""
    stderr_tail: str = ""
    output_bytes: int = 0
    escaped: int = 0
    isolation: str | None = None
    files: tuple[str, ...] = ()
    files_left_out: int = 0

    @property
    def may_run_again(self) -> bool:
        """A run that did not end, or did not begin, says nothing about the bytes of its experiment."""
        return self.status in ("interrupted", "refused")

    @property
    def failed_before_measuring(self) -> bool:
        """Whether it ended with an error of the program before any model ran: a wrong argument, an unknown
        name."""
        kind = (self.error or "").partition(":")[0].rpartition(".")[2]
        return self.status == "error" and not self.entries and self.forwards == 0 and kind in _PROGRAM_ERRORS

    def to_dict(self, time_box: float) -> dict[str, Any]:
        """The `execution` of a line's record."""
        return {
            "status": self.status,
            "exit_code": self.exit_code,
            "seconds": self.seconds,
            "time_box": time_box,
            "peak_mb": self.peak_mb,
            "cpu_seconds": self.cpu_seconds,
            "warm": self.warm,
            "signal": self.signal,
            "error": None if self.error is None else one_line(self.error, 500),
            "traceback": None if self.traceback is None else tail(self.traceback),
            "bad_frames": [one_line(frame.text, 200) for frame in self.bad_frames],
            "isolation": self.isolation,
            "files": [one_line(name, 200) for name in self.files[:_MAX_NAMED]],
        }


@dataclass(frozen=True)
class Cost:
    """What the researcher cost since the previous run; None is unknown."""

    usd: float | None = None
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment, from its announcement to its judgement; each step adds its fields with `replace`.

    Attributes:
        run, uid: its number in the investigation, and its name in the world.
        source: the text that runs.
        digests: of setup.py, program.md and experiment.py when it was announced.
        declared: its hypothesis, if it declares one.
        driver: name, model and session of the researcher; the log has called it so since version 0.1.0.
        execution: None until it has ended.
        violations: what broke the contract before or during the run.
        facts: what setup.py offers (model digest, BLAS).
        cost, spent: what the researcher cost for it; what the whole investigation has used.
        ended_at: seconds since 1970.
    """

    run: int
    uid: str
    source: str
    time_box: float
    digests: Mapping[str, str | None]
    declared: Mapping[str, Any] | None = None
    driver: Mapping[str, str | None] = field(default_factory=dict)
    execution: Execution | None = None
    violations: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost = Cost()
    spent: Spent | None = None
    ended_at: float = 0.0

    @property
    def sha(self) -> str:
        """The digest of experiment.py."""
        return str(self.digests["experiment"])

    @property
    def claim(self) -> str:
        """What it is about: its declared claim, or the first line of its docstring; "" if it has neither."""
        if self.declared is not None:
            return str(self.declared.get("claim", ""))
        try:
            docstring = ast.get_docstring(ast.parse(self.source))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return ""
        return next(iter(plain(docstring or "").strip().splitlines()), "")

    def measured_before(self, number: int) -> Measurements:
        """What the library measured for the entry of this number, from 1; nothing for one that did not come
        from the experiment."""
        measured = () if self.execution is None else self.execution.measured
        return measured[number - 1] if number <= len(measured) else Measurements()

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        """The numbers that its source predicts. It was read before the run: one that cannot be read does not
        run."""
        return read_predictions(self.source.encode())

    def predicted(self, number: int) -> list[dict[str, Any]]:
        """The predictions that the entry of this number, from 1, is held against, each with `measured` and
        `held`."""
        if self.execution is None or self.execution.may_run_again:
            return []
        results = [entry.result for entry in entries_of(self)]
        return compare_predictions(self.predictions, results, number - 1)

    def announcement(self) -> dict[str, Any]:
        """The fields of the journal's event `intent`."""
        return {**{name: getattr(self, name) for name in _ANNOUNCED}, "sha": self.sha}

    @staticmethod
    def from_event(event: Event) -> Experiment:
        """The experiment as it was announced."""
        return Experiment(**{name: event[name] for name in _ANNOUNCED})


_ANNOUNCED = ("run", "uid", "source", "time_box", "digests", "declared", "driver")


@dataclass(frozen=True)
class Judgement:
    """The verdict on one entry, and what it rests on. None in `checks` is "not checked"."""

    verdict: Verdict
    checks: Mapping[str, bool | None] = field(default_factory=dict)
    measured: Mapping[str, Any] | None = None
    relations: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class JudgedEntry:
    """One line as it will be logged: the entry, and the supervisor's record with its uid."""

    entry: ExperimentEntry
    record: dict[str, Any]

    def to_event(self) -> dict[str, Any]:
        """The line inside the journal's event `result`."""
        return {"entry": self.entry.plain().to_dict(), "record": self.record}

    @staticmethod
    def from_event(line: Mapping[str, Any]) -> JudgedEntry:
        """The inverse of `to_event`."""
        return JudgedEntry(ExperimentEntry.from_dict(line["entry"]), dict(line["record"]))


def judged_entry(
    experiment: Experiment, number: int, entry: ExperimentEntry, judgement: Judgement
) -> JudgedEntry:
    """The line of an experiment's entry: as the rule decided it, with the evidence. What an experiment
    declares is decided on its first line; the others are plain.

    The supervisor sets the id and the time; `informative` says what was decided, and `record["claimed"]` what
    the researcher called it.

    Args:
        number: of the entry within its experiment, from 1.
    """
    execution, verdict, facts = experiment.execution, judgement.verdict, experiment.facts
    assert execution is not None
    cost, spent = experiment.cost if number == 1 else Cost(), experiment.spent
    record: dict[str, Any] = {
        "uid": f"{experiment.uid}.{number}",
        "run": f"{experiment.run:04d}",
        "tier": None if verdict.tier == "invalid" else verdict.tier,
        "verdict": verdict.verdict,
        "reasons": [one_line(reason, 500) for reason in verdict.reasons],
        "rule": verdict.rule,
        "claimed": entry.informative,
        "declared": experiment.declared if number == 1 else None,
        "predicted": _registered(experiment, number),
        "measured": judgement.measured,
        "checks": dict(judgement.checks),
        "digests": {
            **experiment.digests,
            "model": facts.get("model_digest"),
            "data": facts.get("data_digest"),
        },
        "execution": execution.to_dict(experiment.time_box),
        "driver": dict(experiment.driver),
        "cost": {"usd": cost.usd, "tokens": {} if cost.tokens is None else {"total": cost.tokens}},
        "spent": {
            "experiments": None if spent is None else spent.experiments,
            "seconds": None if spent is None else round(spent.seconds, 1),
            "usd": None if spent is None else spent.usd,
        },
        "commit": None,
        "blas": facts.get("blas"),
        "machine": _machine(),
    }
    if judgement.relations:
        record["relations"] = dict(judgement.relations)
    logged = replace(
        entry,
        experiment_id="",
        timestamp=experiment.ended_at,
        informative=verdict.kept,
        duration_seconds=execution.seconds if entry.duration_seconds is None else entry.duration_seconds,
        record=None,
    )
    return JudgedEntry(logged, record)


def _registered(experiment: Experiment, number: int) -> dict[str, Any] | None:
    """What an entry was predicted to say, with the digest of what was registered; None without one."""
    numbers = experiment.predicted(number)
    if not numbers:
        return None
    return {"sha256": predictions_digest(experiment.predictions), "numbers": plain_values(numbers).value}


@cache
def _machine() -> str:
    """Where the numbers were computed: times are comparable within it only."""
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    )


def entries_of(experiment: Experiment) -> Sequence[ExperimentEntry]:
    """What the experiment reported; one entry in its place if it reported nothing (it crashed, was stopped,
    or never called `ExperimentLog.append`)."""
    execution = experiment.execution
    assert execution is not None
    if execution.entries:
        return [entry.plain() for entry in execution.entries]
    result: dict[str, Any] = {}
    if execution.error is not None:
        result["error"] = one_line(execution.error, 500)
    if execution.traceback is not None:
        result["traceback"] = tail(execution.traceback)
    if execution.stdout_tail.strip():
        result["printed"] = tail(execution.stdout_tail)
    return [
        ExperimentEntry(
            hypothesis=experiment.claim,
            method="",
            result=result,
            informative=False,
            conclusion=(
                experiment.violations[0]
                if experiment.violations
                else experiment.claim
                if experiment.declared is not None and execution.status == "ok"
                else _how_it_ended(execution, experiment.time_box)
            ),
            duration_seconds=execution.seconds,
        )
    ]


def _how_it_ended(execution: Execution, time_box: float) -> str:
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


def verdict_of(entry: ExperimentEntry) -> str:
    """The verdict of a line, or "by hand" where no supervisor judged it."""
    return str(entry.record["verdict"]) if entry.record else "by hand"


OPEN = ("lead", "note", "inconclusive")
"""Verdicts that leave the rival explanations of an entry open."""

_RIVAL = re.compile(r"\bRivals?(?: explanations?)?:\s*(.+)", re.IGNORECASE | re.DOTALL)


def control_of(entry: ExperimentEntry) -> str:
    """The control that an entry names: `metadata["control"]`; "" if it names none."""
    named = entry.metadata.get("control")
    return named.strip() if isinstance(named, str) else ""


def rivals_of(entry: ExperimentEntry) -> list[str]:
    """The rival explanations that were declared, or written in the hypothesis after "Rival:"."""
    declared = (entry.record or {}).get("declared") or {}
    if declared:
        return [str(rival) for rival in declared.get("rivals", ())]
    found = _RIVAL.search(entry.hypothesis)
    return [found[1].strip()] if found else []


def tier_of(entry: ExperimentEntry) -> str | None:
    """The tier of a line; None if it has none, as of an invalid run or a line logged by hand."""
    return (entry.record or {}).get("tier")


def is_kept(entry: ExperimentEntry) -> bool:
    """Whether a supervisor kept this line: a lead, a finding or a claim."""
    return tier_of(entry) in KEPT_TIERS


def dependents(entries: Iterable[ExperimentEntry], retracted: Iterable[str]) -> dict[str, str]:
    """The ids of lines that build on a retracted one, with the id that they build on."""
    gone, found = set(retracted), {}
    for entry in entries:
        built_on = ((entry.record or {}).get("declared") or {}).get("builds_on", ())
        for id in built_on:
            if id in gone:
                found[entry.experiment_id] = str(id)
    return found


def digests_of(entry: ExperimentEntry) -> Mapping[str, str | None]:
    """The digests in a line's record; empty for a line logged by hand."""
    return (entry.record or {}).get("digests") or {}


def uid_of(entry: ExperimentEntry) -> str | None:
    """The uid of a line's record; None for a line that no supervisor wrote."""
    uid = (entry.record or {}).get("uid")
    return uid if isinstance(uid, str) else None


def tally(entries: Sequence[ExperimentEntry]) -> dict[str, int]:
    """How many lines ended with each verdict, in the order in which they first appear."""
    return dict(Counter(verdict_of(entry) for entry in entries if not is_closing(entry)))


def tally_text(counts: Mapping[str, int]) -> str:
    """`2 lead, 1 note`, or that there is no experiment yet."""
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.items()) or "no experiment yet"


def whole_lines(raw: bytes) -> list[bytes]:
    """The lines of some bytes with their line feeds; an end without one is left out."""
    return [line + b"\n" for line in raw.split(b"\n")[:-1]]


def read_entry(line: bytes) -> ExperimentEntry | None:
    """The entry in a whole line; None for a line that holds none."""
    try:
        return ExperimentEntry.from_dict(decode_object(line))
    except (LineError, EntryError):
        return None


def read_entry_without_record(line: bytes) -> ExperimentEntry | None:
    """The entry in a whole line that an experiment run by hand appended; None for every other line."""
    entry = read_entry(line)
    return entry if entry is not None and entry.record is None else None
