"""Repairs, at every start, what an earlier end left open: after a crash, a power cut, or an edit of the log.

Each step compares one thing with what comes before it in the order of truth (journal, results.jsonl,
findings/, git) and makes the later one from the earlier. Done twice, it does nothing the second time; killed
in the middle, the next start completes it. What a crash cannot explain is not repaired silently:
`Repairs.broken` stops the run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from mlxterp._files import write_atomically
from mlxterp.autointerpret.contract import EXPERIMENT, FINDINGS, LOG, digest
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent.exit_codes import GitUnavailable
from mlxterp_agent.judge.evidence import Known, judge_experiment
from mlxterp_agent.platform import Clock, read_or_none
from mlxterp_agent.storage.findings import finding_files, missing, write_files
from mlxterp_agent.storage.history import OpenRun
from mlxterp_agent.storage.journal import Event, Journal
from mlxterp_agent.storage.project_files import clear_for_file
from mlxterp_agent.storage.record import (
    RUNS,
    Execution,
    Experiment,
    JudgedEntry,
    digests_of,
    read_entry,
    uid_of,
    whole_lines,
)
from mlxterp_agent.storage.results_log import ResultsLog, rebuilt_log
from mlxterp_agent.storage.state_dir import State

_BATCH = 2_000
"""Lines that are taken into the journal at once: one wait for the disk."""


@dataclass(frozen=True)
class Repairs:
    """What was repaired, a sentence each; and, if the run must not go on, why."""

    done: tuple[str, ...] = ()
    broken: str | None = None


def set_aside_damage(journal: Journal, state: State) -> list[str]:
    """Keeps copies of the journal's lines that do not count, and says so once: a sentence each."""
    if not journal.rejected:
        return []
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%f")
    kept = state.quarantine_dir / f"{stamp}-{journal.path.name}"
    write_atomically(kept, b"".join(each.raw for each in journal.rejected))
    why = ", ".join(dict.fromkeys(each.why for each in journal.rejected))
    count = len(journal.rejected)
    return [f"{count} {'line' if count == 1 else 'lines'} of the journal did not count ({why}); see {kept}"]


def reconcile(results: ResultsLog, state: State, clock: Clock) -> Repairs:
    """Brings the log, findings/ and git up to the journal.

    1. A torn last line is set aside.
    2. results.jsonl holds the lines of the journal, and after them the lines that people have appended.
    3. A result that is in the journal only gets its line, once.
    4. A kept entry has its folder and its commit; an attempt has its ref.
    5. A run that was announced and never ended gets the line `interrupted`. It is not run again under its
       uid.

    Only what the history calls open is looked at, and the names of the folders and the newest commit: the
    cost does not grow with the log.
    """
    done: list[str] = []
    for name in (LOG, f"{LOG}.torn"):
        clear_for_file(results.project, name, notice=done.append)
    seal = results.history.log
    taken_over = results.history.taken_over
    fits = results.index.catch_up(until=seal.at) == seal
    if fits:
        results.continue_log()
    torn = results.log.repair()
    if torn:
        done.append(f"{len(torn)} bytes of a line that was cut off were moved to {LOG}.torn")
    broken = _take_new_lines(results, state, done) if fits else _restore_log(results, state, done)
    if broken is not None:
        return Repairs(tuple(done), broken)
    results.load()
    copied = results.history.taken_over > taken_over
    sources = _Sources(results)
    _restore_git(results, sources, done, copied=copied)
    for uid, run in list(results.history.open_runs.items()):
        intent = results.journal.event_at(run.intent_at)
        if intent is None:
            # This line was damaged after it had been read. What it announced cannot be closed any more.
            del results.history.open_runs[uid]
            continue
        if intent["event"] == "opened":
            _log_lines(results, intent, done)
            continue
        experiment = Experiment.from_event(intent)
        if run.result_at is not None:
            _finish(results, experiment, run, done)
        elif results.index.place_of(f"{uid}.1") is not None:
            # Its result is damaged in the journal, and its lines are in the log.
            del results.history.open_runs[uid]
        else:
            (closed,) = _settle_interrupted(results, experiment, clock)
            done.append(
                f"run {experiment.run:04d} never ended: logged as {closed.experiment_id}, interrupted"
            )
    _restore_folders(results, sources, done, copied=copied)
    return Repairs(tuple(done))


def _finish(results: ResultsLog, experiment: Experiment, run: OpenRun, done: list[str]) -> None:
    """Steps 3 and 4, for the lines of one run that has ended."""
    assert run.result_at is not None
    result = results.journal.event_at(run.result_at)
    if result is None:
        return
    _log_lines(results, result, done)
    kept = list(run.kept)
    if not kept and not run.attempted:
        results.keep_attempt(experiment)
    for uid in kept:
        logged = results.entry_of(uid)
        if logged is None or results.history.ids.get(logged.experiment_id) != experiment.uid:
            continue
        results.publish(logged, experiment, may_be_there=True)
        if logged.experiment_id not in results.history.ids:
            done.append(f"{logged.experiment_id}, which was kept but not committed, was committed")


def _log_lines(results: ResultsLog, event: Event, done: list[str]) -> None:
    """Step 3: the lines of an event that the log lacks."""
    for line in map(JudgedEntry.from_event, event["lines"]):
        if results.index.place_of(line.record["uid"]) is None:
            entry = results.log_line(line)
            done.append(f"{entry.experiment_id}, which was decided but not logged, was logged")


def _restore_log(results: ResultsLog, state: State, done: list[str]) -> str | None:
    """Step 2 for a log that is not what the journal says. Returns why the run must not go on, or None."""
    raw = results.log.raw()
    whole = rebuilt_log(results.journal, results.history.log, raw)
    if whole is None:
        return (
            f"{LOG} is not what the journal says it was, and the journal is too damaged to put it back. "
            "Nothing was changed. Put the file back from git or from a copy, then start again."
        )
    kept = _set_aside(raw, state)
    results.log.restore(whole)
    results.index.catch_up()
    results.continue_log()
    if not whole.startswith(raw):
        return _broken(f"line {_first_difference(raw, whole)} is not what a supervisor wrote", kept)
    missing_lines = whole.count(b"\n") - raw.count(b"\n")
    done.append(f"{LOG} had lost {missing_lines} lines; they were put back from the journal")
    return None


def _take_new_lines(results: ResultsLog, state: State, done: list[str]) -> str | None:
    """Judges the lines after those of the journal: a crash leaves its own there, and people log by hand."""
    seal = results.history.log
    if not os.path.lexists(results.log.path) or os.path.getsize(results.log.path) == seal.at:
        return None
    copied = not results.history.measured
    if copied and (problems := results.log.verify()):
        return _broken(f"line {problems[0].line}: {problems[0].what}", None)
    by_hand: list[bytes] = []
    forged: list[bytes] = []
    ids, has_id = set[str](), results.index.has_id
    for line in results.log.lines_after(seal.at):
        if len(by_hand) >= _BATCH and not forged:
            results.adopt(by_hand)
            by_hand = []
        entry = read_entry(line)
        uid = None if entry is None else uid_of(entry)
        if entry is None or (entry.record is not None and uid is None):
            forged.append(line)
        elif copied:
            by_hand.append(line)
        elif uid is not None and _is_ours(results, uid):
            results.adopt(by_hand)
            by_hand = []
            if forged:
                break
            results.note_logged(entry, line)
        elif entry.record is None and not (entry.experiment_id in ids or has_id(entry.experiment_id)):
            by_hand.append(line)
            ids |= {entry.experiment_id} - {""}
        else:
            forged.append(line)
    results.adopt(by_hand)
    if copied:
        # A journal that has measured nothing means that the project was copied from another machine, or that
        # the state directory is new. The log is then trusted, as its seals fit.
        if results.index.runs():
            results.take_over_budget()
            done.append(
                f"{LOG} was written elsewhere: its {len(results.index.entries)} lines and what they cost "
                "were taken over; held-out numbers, keys and the salt of the split did not come along, and "
                "pairs that were opened before count as spent"
            )
        return None
    if not forged:
        return None
    raw = results.log.raw()
    kept = _set_aside(raw, state)
    number = raw.count(b"\n", 0, raw.index(forged[0])) + 1
    whole = results.logged_bytes()
    results.log.restore(whole)
    results.index.catch_up()
    results.continue_log()
    if all(_is_by_hand(line) for line in forged):
        done.append(
            f"line {number} of {LOG} has an id that is taken; {len(forged)} such lines were moved to {kept}"
        )
        return None
    return _broken(f"line {number} was written by neither a supervisor nor an experiment run by hand", kept)


def _is_ours(results: ResultsLog, uid: str) -> bool:
    """Whether a line after those of the journal is one that a crash left there, by its uid."""
    run = results.history.open_runs.get(uid.rpartition(".")[0])
    if run is None:
        return False
    # Without a result in the journal the line is ours only if what said so may have been damaged.
    return uid in run.unlogged or (run.result_at is None and bool(results.journal.rejected))


def _is_by_hand(line: bytes) -> bool:
    entry = read_entry(line)
    return entry is not None and entry.record is None


class _Sources:
    """What ran, by uid, from the journal; read only if something is missing."""

    def __init__(self, results: ResultsLog) -> None:
        self._results = results
        self._by_uid: Mapping[str, str] | None = None

    def of(self, entry: ExperimentEntry) -> bytes | None:
        """The experiment.py of a line: from the journal, else the copy in .autointerp/runs if it fits."""
        if self._by_uid is None:
            events = (event for event, _ in Journal(self._results.journal.path).read())
            self._by_uid = {e["uid"]: e["source"] for e in events if e["event"] == "intent"}
        source = self._by_uid.get((uid_of(entry) or "").rpartition(".")[0])
        if source is not None:
            return source.encode()
        run = str((entry.record or {}).get("run"))
        copy = read_or_none(self._results.project / RUNS / run / EXPERIMENT) if run.isdigit() else None
        return copy if copy is not None and digest(copy) == digests_of(entry).get("experiment") else None


def _restore_git(results: ResultsLog, sources: _Sources, done: list[str], *, copied: bool) -> None:
    """Commits the kept entries again that a repository lacks which is not the one they were committed to."""
    before = 0 if copied else results.history.taken_over
    kept = results.index.kept_ids(after=before) - results.history.ids.keys()
    if not kept:
        return
    try:
        if results.history.head is not None and results.committer.descends("HEAD", results.history.head):
            return
        lost = kept - results.committer.experiments().keys()
    except GitUnavailable:
        return
    without = 0
    for entry_id in sorted(lost):
        number = results.index.number_of(entry_id)
        assert number is not None
        entry = results.entries[number]
        source = sources.of(entry)
        if source is None:
            without += 1
            continue
        try:
            results.commit_entry(entry, {EXPERIMENT: source, **finding_files(entry, source)})
        except GitUnavailable:
            return
        done.append(f"{entry_id}, which was kept but not committed, was committed")
    if without:
        done.append(
            f"{without} kept {'line stays' if without == 1 else 'lines stay'} without a commit and a folder: "
            "what ran is not on this machine"
        )


def _restore_folders(results: ResultsLog, sources: _Sources, done: list[str], *, copied: bool) -> None:
    """Makes the folders of kept entries again that are missing."""
    try:
        names = os.listdir(results.project / FINDINGS)
    except OSError:
        names = []
    there = {name.partition("-")[0]: name for name in names}
    before = 0 if copied else results.history.taken_over
    for entry_id in sorted(results.index.kept_ids(after=before)):
        name = there.get(entry_id)
        if name is not None and (results.project / FINDINGS / name / "finding.md").is_file():
            continue
        number = results.index.number_of(entry_id)
        assert number is not None
        entry = results.entries[number]
        source = sources.of(entry)
        if source is not None and missing(results.project, entry):
            write_files(results.project, finding_files(entry, source), notice=done.append)
            done.append(f"the folder of {entry_id} was missing and was made again")


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
