"""Repairs, at every start, what an earlier end left open: after a crash, a power cut, or an edit of the log.

Each step compares one thing with what comes before it in the order of truth (journal, results.jsonl,
findings/, git) and makes the later one from the earlier. Done twice, it does nothing the second time; killed
in the middle, the next start completes it. What a crash cannot explain is not repaired silently:
`Repairs.broken` stops the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from mlxterp._files import write_atomically
from mlxterp.autointerpret.contract import LOG
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent.judge.evidence import Known, judge_experiment
from mlxterp_agent.platform import Clock
from mlxterp_agent.storage.findings import finding_files, missing, write_files
from mlxterp_agent.storage.journal import Event
from mlxterp_agent.storage.record import (
    Execution,
    Experiment,
    JudgedEntry,
    is_kept,
    logged_bytes,
    read_entry,
    uid_of,
    whole_lines,
)
from mlxterp_agent.storage.results_log import ResultsLog
from mlxterp_agent.storage.state_dir import State


@dataclass(frozen=True)
class Repairs:
    """What was repaired, a sentence each; and, if the run must not go on, why."""

    done: tuple[str, ...] = ()
    broken: str | None = None


def reconcile(results: ResultsLog, state: State, clock: Clock) -> Repairs:
    """Brings the log, findings/ and git up to the journal.

    1. A torn last line is set aside.
    2. results.jsonl holds the lines of the journal, and after them the lines that people have appended.
    3. A result that is in the journal only gets its line, once.
    4. A kept entry has its folder and its commit; an attempt has its ref.
    5. A run that was announced and never ended gets the line `interrupted`. It is not run again under its
       uid.
    """
    done: list[str] = []
    torn = results.log.repair()
    if torn:
        done.append(f"{len(torn)} bytes of a line that was cut off were moved to {LOG}.torn")
    events = results.journal.events()
    broken = _restore_log(results, state, events, done)
    if broken is not None:
        return Repairs(tuple(done), broken)
    results.load(events)
    ended = {event["uid"]: event for event in events if event["event"] == "result"}
    announced = {event["uid"]: Experiment.from_event(event) for event in events if event["event"] == "intent"}
    logged = {uid_of(entry) for entry in results.entries}
    for uid, result in ended.items():
        for line in map(JudgedEntry.from_event, result["lines"]):
            if line.record["uid"] not in logged:
                entry = results.log_line(line)
                done.append(f"{entry.experiment_id}, which was decided but not logged, was logged")
        _publish_missing(results, announced[uid], events, done)
    for uid, experiment in announced.items():
        if uid not in ended:
            (entry,) = _settle_interrupted(results, experiment, clock)
            done.append(f"run {experiment.run:04d} never ended: logged as {entry.experiment_id}, interrupted")
    return Repairs(tuple(done))


def _restore_log(results: ResultsLog, state: State, events: Sequence[Event], done: list[str]) -> str | None:
    """Step 2. Returns why the run must not go on, or None."""
    raw, known = results.log.raw(), logged_bytes(events)
    results.set_expected_prefix(known)
    if not raw.startswith(known):
        kept = _set_aside(raw, state)
        results.log.restore(known)
        if known.startswith(raw):
            missing_lines = known.count(b"\n") - raw.count(b"\n")
            done.append(f"{LOG} had lost {missing_lines} lines; they were put back from the journal")
            return None
        number = _first_difference(raw, known)
        return _broken(f"line {number} is not what a supervisor wrote", kept)
    uids = {
        line["record"]["uid"] for event in events if event["event"] == "result" for line in event["lines"]
    }
    if not uids and (problems := results.log.verify()):
        return _broken(f"line {problems[0].line}: {problems[0].what}", None)
    for number, line in enumerate(whole_lines(raw[len(known) :]), known.count(b"\n") + 1):
        entry = read_entry(line)
        if entry is not None and uid_of(entry) in uids:
            results.note_logged(entry)
        elif entry is not None and (entry.record is None or (uid_of(entry) and not uids)):
            # A journal without results means that the project was copied from another machine. Its log is
            # then trusted.
            results.adopt(line)
        else:
            kept = _set_aside(raw, state)
            results.log.restore(results.logged_bytes())
            return _broken(
                f"line {number} was written by neither a supervisor nor an experiment run by hand", kept
            )
    return None


def _publish_missing(
    results: ResultsLog, experiment: Experiment, events: Sequence[Event], done: list[str]
) -> None:
    """Step 4, for the lines of one run."""
    entries = [e for e in results.entries if (uid_of(e) or "").rpartition(".")[0] == experiment.uid]
    kept = [entry for entry in entries if is_kept(entry)]
    attempted = {event["run"] for event in events if event["event"] == "attempted"}
    if not kept and experiment.run not in attempted:
        results.keep_attempt(experiment)
    commits = results.committer.experiments() if kept else {}
    for entry in kept:
        source = experiment.source.encode()
        if entry.experiment_id not in commits:
            results.publish(entry, source)
            done.append(f"{entry.experiment_id}, which was kept but not committed, was committed")
        elif missing(results.project, entry):
            write_files(results.project, finding_files(entry, source))
            done.append(f"the folder of {entry.experiment_id} was missing and was made again")


def _settle_interrupted(
    results: ResultsLog, experiment: Experiment, clock: Clock
) -> tuple[ExperimentEntry, ...]:
    """Step 5."""
    execution = Execution(status="interrupted", error="the supervisor ended before the run did")
    ended = replace(experiment, execution=execution, ended_at=clock.wall())
    return results.settle(ended, judge_experiment(ended, Known()))


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
