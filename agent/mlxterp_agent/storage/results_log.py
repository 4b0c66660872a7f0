"""From a run that has ended to lines of the log, folders in findings/ and commits. Every step may be
repeated.

The order of truth is journal, results.jsonl, findings/, git: each is on the disk before the next begins, and
each can be made again from the one before it (`recovery.py`). That order is here, once, for a run and for a
repair alike; what a line says is decided in `judge/evidence.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mlxterp.autointerpret.contract import EXPERIMENT, LOG, digest
from mlxterp.autointerpret.encoding import compared
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.log import ExperimentLog
from mlxterp.autointerpret.log_file import Seal
from mlxterp.errors import TornTail
from mlxterp.statistics.duplicates import ResultNumbers, is_copy
from mlxterp_agent.crash_points import point
from mlxterp_agent.events import Committed, Decided, Emit, Repaired, Waiting
from mlxterp_agent.exit_codes import GitUnavailable
from mlxterp_agent.storage.findings import finding_files, write_files
from mlxterp_agent.storage.git import EXPERIMENT_TRAILER, VERDICT_TRAILER, Committer
from mlxterp_agent.storage.journal import Event, Journal
from mlxterp_agent.storage.record import (
    RUNS,
    Experiment,
    JudgedEntry,
    digests_of,
    is_kept,
    logged_bytes,
    read_entry_without_record,
    uid_of,
    verdict_of,
    whole_lines,
)
from mlxterp_agent.text import one_line


class _Uncommitted(NamedTuple):
    entry: ExperimentEntry
    files: dict[str, bytes]


class ResultsLog:
    """The log of one project while a supervisor holds its lock.

    Attributes:
        entries: every line of results.jsonl, in order.
        tried: digest of an experiment.py that has run to an end, to the ids of its lines.
        last_run: the number of the newest run.
    """

    def __init__(self, project: Path, journal: Journal, committer: Committer, emit: Emit) -> None:
        self.project = project
        self.journal = journal
        self.committer = committer
        self.emit = emit
        self.log = ExperimentLog(project / LOG)
        self.entries: list[ExperimentEntry] = []
        self.tried: dict[str, list[str]] = {}
        self.last_run = 0
        self._known = Seal(0, digest(b""))
        self._numbers: list[tuple[str, str, ResultNumbers]] = []
        self._uncommitted: list[_Uncommitted] = []

    def load(self, events: Iterable[Event]) -> None:
        """Reads the log and the journal: what was tried, which numbers are known, which run comes next."""
        self.entries = self.log.entries()
        self._known = self.log.seal()
        runs = [0, *(int(path.name) for path in (self.project / RUNS).glob("[0-9]*") if path.name.isdigit())]
        named = (str((entry.record or {}).get("run")) for entry in self.entries)
        runs += [int(run) for run in named if run.isdigit()]
        for event in events:
            if event["event"] == "intent":
                runs.append(event["run"])
            elif event["event"] == "result" and not event["again"]:
                self.tried.setdefault(event["sha"], [])
        self.last_run = max(runs)
        for entry in self.entries:
            self._remember(entry)

    def announce(self, experiment: Experiment) -> None:
        """Writes to the journal what is about to run, and registers its hypothesis if it declares one."""
        self.journal.append("intent", **experiment.announcement())
        self.last_run = experiment.run
        if experiment.declared is not None:
            self.journal.append("register", run=experiment.run, hypothesis=experiment.declared)
        point("after-intent")

    def settle(self, experiment: Experiment, lines: Sequence[JudgedEntry]) -> tuple[ExperimentEntry, ...]:
        """The run is over: its lines go to the journal, the log, findings/ and git, in this order."""
        assert experiment.execution is not None
        again = experiment.execution.may_run_again
        self.journal.append(
            "result",
            run=experiment.run,
            uid=experiment.uid,
            sha=experiment.sha,
            again=again,
            lines=[line.to_event() for line in lines],
        )
        if not again:
            self.tried.setdefault(experiment.sha, [])
        point("after-journal-result")
        logged = tuple(self.log_line(line) for line in lines)
        kept = [entry for entry in logged if is_kept(entry)]
        for entry in kept:
            self.publish(entry, experiment.source.encode())
        if not kept:
            self.keep_attempt(experiment)
        return logged

    def log_line(self, line: JudgedEntry) -> ExperimentEntry:
        """Appends one line to results.jsonl, unless it is there already, and notes that in the journal."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", TornTail)
            entry = self.log.append_sealed(line.entry, line.record)
        for warning in caught:
            self.emit(Repaired(str(warning.message)))
        point("after-log")
        self.note_logged(entry)
        if all(uid_of(known) != line.record["uid"] for known in self.entries):
            self.entries.append(entry)
            self._remember(entry)
            self.emit(Decided(entry))
        return entry

    def note_logged(self, entry: ExperimentEntry) -> None:
        """Keeps the exact bytes of a logged line in the journal, so that the log can be rebuilt from it."""
        assert entry.record is not None
        raw, at = self.log.raw(), entry.record["at"]
        end = raw.index(b"\n", at) + 1
        self._known = Seal(end, digest(raw[:end]))
        self.journal.append(
            "logged",
            uid=entry.record["uid"],
            id=entry.experiment_id,
            text=raw[at:end].decode("ascii"),
            size=end,
            sha256=self._known.sha256,
        )
        point("after-journal-logged")

    def publish(self, entry: ExperimentEntry, source: bytes) -> None:
        """Makes the folder and the commit of a kept entry. Without git the entry stays logged, and is
        committed with the next one."""
        files = finding_files(entry, source)
        write_files(self.project, files)
        point("after-finding")
        self._uncommitted.append(_Uncommitted(entry, {EXPERIMENT: source, **files}))
        self.commit_pending()

    def commit_pending(self) -> None:
        """Makes one commit for every kept entry that has none yet, oldest first."""
        while self._uncommitted:
            entry, files = self._uncommitted[0]
            try:
                self._commit(entry, files)
            except GitUnavailable as problem:
                self.emit(Waiting(f"{entry.experiment_id} is logged, but not committed yet: {problem}"))
                return
            del self._uncommitted[0]

    def keep_attempt(self, experiment: Experiment) -> None:
        """Keeps what ran and was not kept under refs/autointerp/attempts, so that no version is ever lost."""
        run, files = experiment.run, {EXPERIMENT: experiment.source.encode()}
        try:
            sha = self.committer.keep_attempt(run, files, f"Attempt {run:04d}, not kept")
        except GitUnavailable as problem:
            self.emit(Waiting(f"run {run:04d} is logged, but not kept in git yet: {problem}"))
            return
        point("after-attempt")
        self.journal.append("attempted", run=run, sha=sha)

    def same_numbers(self, entry: ExperimentEntry, sha: str) -> str | None:
        """The id of an earlier line of a *different* experiment that holds the same measurement, or None."""
        mine = compared(entry.result)
        return next((id for other, id, known in self._numbers if other != sha and is_copy(known, mine)), None)

    def logged_bytes(self) -> bytes:
        """What results.jsonl must hold, by the journal."""
        return logged_bytes(self.journal.events())

    def unexpected_change(self) -> str | None:
        """What happened to results.jsonl that no supervisor did; None if nothing did.

        Whole lines without a record, appended by an experiment that was run by hand, are no violation: they
        are taken into the journal.
        """
        raw = self.log.raw()
        if digest(raw[: self._known.at]) != self._known.sha256:
            return f"{LOG} was changed: its first {self._known.at:,} bytes are not what they were"
        *_, rest = raw.rpartition(b"\n")
        if rest:
            return f"{LOG} ends in a line that is not whole"
        for line in whole_lines(raw[self._known.at :]):
            entry = read_entry_without_record(line)
            if entry is None:
                return f"{LOG} was appended to: by no supervisor, and it is no entry logged by hand"
            self.adopt(line)
            self.entries.append(entry)
            self._remember(entry)
        return None

    def adopt(self, line: bytes) -> None:
        """Takes the line after the known ones into the journal, so that it is part of what is restored."""
        end = self._known.at + len(line)
        self._known = Seal(end, digest(self.log.prefix_bytes(end)))
        self.journal.append("adopted", text=line.decode("utf-8"), size=end, sha256=self._known.sha256)

    def set_expected_prefix(self, prefix: bytes) -> None:
        """From here on the log is expected to begin with these bytes."""
        self._known = Seal(len(prefix), digest(prefix))

    def _commit(self, entry: ExperimentEntry, files: Mapping[str, bytes]) -> None:
        verdict = verdict_of(entry)
        sha = self.committer.commit(
            {**files, LOG: self.log.raw()},
            subject=f"{entry.experiment_id} {verdict}: {one_line(entry.conclusion or entry.hypothesis, 60)}",
            body=f"Hypothesis: {one_line(entry.hypothesis, 300)}\nMethod: {one_line(entry.method, 100)}",
            trailers={EXPERIMENT_TRAILER: entry.experiment_id, VERDICT_TRAILER: verdict},
        )
        point("after-commit")
        self.journal.append("committed", id=entry.experiment_id, sha=sha)
        point("after-journal-committed")
        self.emit(Committed(entry.experiment_id, sha))

    def _remember(self, entry: ExperimentEntry) -> None:
        sha = digests_of(entry).get("experiment")
        if sha in self.tried:
            self.tried[sha].append(entry.experiment_id)
        if sha and not verdict_of(entry).startswith(("invalid", "interrupted")):
            self._numbers.append((sha, entry.experiment_id, compared(entry.result)))
