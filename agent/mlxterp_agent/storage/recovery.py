"""Puts right, at every start, what an earlier end left open: a crash, a power cut, a hand in the log.

Each step compares one thing with what comes before it in the order of truth (journal, results.jsonl,
findings/, git) and makes the later one from the earlier. Done twice, it does nothing the second time; killed
in the middle, the next start goes on. What can not be explained by a crash is not repaired silently:
`Repairs.broken` stops the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from mlxterp._files import write_atomically
from mlxterp.autointerpret.contract import LOG
from mlxterp.autointerpret.encoding import LineError, decode_object
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent.judge.evidence import interrupted
from mlxterp_agent.platform import Clock
from mlxterp_agent.storage.findings import finding_files, missing, write_files
from mlxterp_agent.storage.journal import Event
from mlxterp_agent.storage.record import (
    Cost,
    Execution,
    Intent,
    JudgedEntry,
    by_hand,
    entry_without_report,
    how_it_ended,
    is_kept,
    shadow,
    verdicted,
    whole_lines,
)
from mlxterp_agent.storage.results_log import Ledger
from mlxterp_agent.storage.state_dir import State


@dataclass(frozen=True)
class Repairs:
    """What was put right, in words; and, if the run must not go on, why."""

    done: tuple[str, ...] = ()
    broken: str | None = None


def reconcile(ledger: Ledger, state: State, clock: Clock) -> Repairs:
    """Brings the log, findings/ and git up to the journal.

    1. A torn last line is set aside.
    2. results.jsonl is what the journal says, and what was appended by hand since.
    3. A run that was announced and never ended gets the line `interrupted`. It is not run again under its
    uid. 4. A result that is in the journal only gets its line, once.
    5. A kept entry has its folder and its commit; an attempt has its ref.
    """
    done: list[str] = []
    torn = ledger.log.repair()
    if torn:
        done.append(f"{len(torn)} bytes of a line that was cut off were moved to {LOG}.torn")
    events = ledger.journal.events()
    broken = _log_as_the_journal_says(ledger, state, events, done)
    if broken is not None:
        return Repairs(tuple(done), broken)
    ledger.load(events)
    results = {event["uid"]: event for event in events if event["event"] == "result"}
    intents = {event["uid"]: Intent.from_event(event) for event in events if event["event"] == "intent"}
    logged = {(entry.record or {}).get("uid") for entry in ledger.entries}
    for uid, result in results.items():
        for line in (JudgedEntry.from_event(line) for line in result["lines"]):
            if line.record["uid"] not in logged:
                entry = ledger.log_line(line)
                done.append(f"{entry.experiment_id}, which was decided but not logged, was logged")
        _published(ledger, intents[uid], events, done)
    for uid, intent in intents.items():
        if uid not in results:
            (entry,) = ledger.settle(intent, [_interrupted(intent, clock)], again=True)
            done.append(f"run {intent.run:04d} never ended: logged as {entry.experiment_id}, interrupted")
    return Repairs(tuple(done))


def _log_as_the_journal_says(
    ledger: Ledger, state: State, events: Sequence[Event], done: list[str]
) -> str | None:
    """Step 2. Returns why the run must not go on, or None."""
    raw, known = ledger.log.raw(), shadow(events)
    ledger.set_expected_prefix(known)
    if not raw.startswith(known):
        kept = _set_aside(raw, state)
        ledger.log.restore(known)
        if known.startswith(raw):
            missing_lines = known.count(b"\n") - raw.count(b"\n")
            done.append(f"{LOG} had lost {missing_lines} lines; they were put back from the journal")
            return None
        number = _first_difference(raw, known)
        return _broken(f"line {number} is not what a supervisor wrote", kept)
    uids = {
        line["record"]["uid"] for event in events if event["event"] == "result" for line in event["lines"]
    }
    if not uids and (problems := ledger.log.verify()):
        return _broken(f"line {problems[0].line}: {problems[0].what}", None)
    for number, line in enumerate(whole_lines(raw[len(known) :]), known.count(b"\n") + 1):
        entry = _supervised(line)
        if entry is not None and entry.record is not None and entry.record["uid"] in uids:
            ledger.note_logged(entry)
        elif by_hand(line) is not None or (entry is not None and not uids):
            # Without results in the journal the directory came from another place, and its log is taken as
            # it is.
            ledger.adopt(line)
        else:
            kept = _set_aside(raw, state)
            ledger.log.restore(shadow(ledger.journal.events()))
            return _broken(
                f"line {number} was written by neither a supervisor nor an experiment run by hand", kept
            )
    return None


def _published(ledger: Ledger, intent: Intent, events: Sequence[Event], done: list[str]) -> None:
    """Step 5, for the lines of one run."""
    entries = [entry for entry in ledger.entries if _run_uid(entry) == intent.uid]
    kept = [entry for entry in entries if is_kept(entry)]
    attempted = {event["run"] for event in events if event["event"] == "attempted"}
    if not kept and intent.run not in attempted:
        ledger.keep_attempt(intent)
    commits = ledger.committer.experiments() if kept else {}
    for entry in kept:
        source = intent.source.encode()
        if entry.experiment_id not in commits:
            ledger.publish_kept(entry, source)
            done.append(f"{entry.experiment_id}, which was kept but not committed, was committed")
        elif missing(ledger.project, entry):
            write_files(ledger.project, finding_files(entry, source))
            done.append(f"the folder of {entry.experiment_id} was missing and was made again")


def _interrupted(intent: Intent, clock: Clock) -> JudgedEntry:
    execution = Execution(status="interrupted", error="the supervisor ended before the run did")
    entry = entry_without_report(intent, execution, because=how_it_ended(execution, intent.time_box))
    return verdicted(
        entry,
        interrupted("the supervisor ended before the run did; the same experiment may run again"),
        intent=intent,
        number=1,
        execution=execution,
        facts={},
        cost=Cost(),
        spent=None,
        wall=clock.wall(),
    )


def _supervised(line: bytes) -> ExperimentEntry | None:
    """The entry of a line that carries a record with a uid; None for every other line."""
    try:
        data = decode_object(line)
        entry = ExperimentEntry.from_dict(data)
    except (LineError, TypeError):
        return None
    return entry if entry.record is not None and isinstance(entry.record.get("uid"), str) else None


def _run_uid(entry: ExperimentEntry) -> str:
    return str((entry.record or {}).get("uid", "")).rpartition(".")[0]


def _first_difference(raw: bytes, known: bytes) -> int:
    pairs = zip(whole_lines(raw), whole_lines(known), strict=False)
    same = next((number for number, (found, ours) in enumerate(pairs) if found != ours), None)
    return 1 + (min(raw.count(b"\n"), known.count(b"\n")) if same is None else same)


def _set_aside(raw: bytes, state: State) -> Path:
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%f")
    kept = state.quarantine_dir / f"{stamp}-{LOG}"
    write_atomically(kept, raw)
    return kept


def _broken(what: str, kept: Path | None) -> str:
    if kept is None:
        return (
            f"{LOG}: {what}. There is no journal on this machine to restore it from. Correct the file, "
            "for instance from git, then start again."
        )
    return (
        f"{LOG} was changed while no supervisor ran: {what}. It was put back from the journal; what was "
        f"found is kept in {kept}. Look at it, then start again."
    )
