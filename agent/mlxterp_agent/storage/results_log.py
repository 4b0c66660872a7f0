"""From a run that has ended to lines of the log, folders in findings/ and commits. Every step may be
repeated.

The order of truth is journal, results.jsonl, findings/, git: each is on the disk before the next begins, and
each can be made again from the one before it (`recovery.py`). That order is here, once, for a run and for a
repair alike; what a line says is decided in `judge/evidence.py`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mlxterp.autointerpret.contract import EXPERIMENT, LOG, PRIVATE, digest
from mlxterp.autointerpret.encoding import compared
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.log import ExperimentLog
from mlxterp.autointerpret.log_file import Continuation, Seal
from mlxterp.errors import ProjectError, TornTail
from mlxterp_agent.crash_points import point
from mlxterp_agent.events import Committed, Decided, Emit, Repaired, Waiting
from mlxterp_agent.exit_codes import GitUnavailable
from mlxterp_agent.storage.findings import finding_files, write_files
from mlxterp_agent.storage.git import EXPERIMENT_TRAILER, VERDICT_TRAILER, Committer
from mlxterp_agent.storage.history import History, store_history
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.storage.log_index import LoggedEntries, LogIndex
from mlxterp_agent.storage.project_files import ASIDE, make_folder
from mlxterp_agent.storage.record import (
    RUNS,
    Experiment,
    JudgedEntry,
    is_kept,
    read_entry_without_record,
    verdict_of,
    whole_lines,
)
from mlxterp_agent.text import one_line

_WHOLE_LOG = 1_000_000
"""Bytes up to which every commit holds the whole log. A longer one is committed when it has grown by a tenth,
and at the end: git stores each version of a file anew."""

_LARGEST_LOG = 20_000_000
"""Bytes above which git does not get the log any more: it would need seconds for each version. Every kept
line is also in its finding's result.json."""

_ADOPTED = 1_000_000
"""Bytes of adopted lines in one event, which is enough for what a person logs by hand."""

_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 600.0
"""Seconds between two tries to commit while git cannot."""


class _Uncommitted(NamedTuple):
    """A kept entry of which no commit is known; `files` only of the newest, they can be made again.

    `may_be_there`: a crash may have come between its commit and the event that says so.
    """

    uid: str
    entry_id: str
    files: Mapping[str, bytes] | None
    may_be_there: bool = False


class Tried(Mapping[str, list[str]]):
    """Digest of an experiment.py that has run to an end against this setup.py, to the ids of its lines."""

    def __init__(self, index: LogIndex, setup_sha: str) -> None:
        self._index = index
        self._setup = setup_sha

    def __getitem__(self, sha: str) -> list[str]:
        ids = self._index.ids_of(sha, self._setup)
        if ids is None:
            raise KeyError(sha)
        return ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.shas(self._setup))

    def __len__(self) -> int:
        return len(self._index.shas(self._setup))


class ResultsLog:
    """The log of one project while a supervisor holds its lock.

    Attributes:
        entries: every line of results.jsonl, in order, read when it is asked for.
        index: of these lines.
        history: of the journal.
        tried: digest of an experiment.py that has run to an end, to the ids of its lines.
        last_run: the number of the newest run.
    """

    def __init__(
        self,
        project: Path,
        journal: Journal,
        committer: Committer,
        emit: Emit,
        *,
        history: History,
        index: LogIndex,
        setup_sha: str,
    ) -> None:
        self.project = project
        self.journal = journal
        self.committer = committer
        self.emit = emit
        self.log = ExperimentLog(project / LOG)
        self.history = history
        self.index = index
        self.tried: Mapping[str, list[str]] = Tried(index, setup_sha)
        self.last_run = 0
        self._stamp: tuple[int, ...] | None = None
        self._uncommitted: list[_Uncommitted] = []
        self._log_committed = 0
        self._git_pause = 0.0
        self._git_again_at = 0.0

    @property
    def entries(self) -> LoggedEntries:
        return self.index.entries

    @property
    def uncommitted(self) -> int:
        """How many kept entries have no commit."""
        return len(self._uncommitted)

    def load(self) -> None:
        """Takes the log as it is: nothing in it is open any more."""
        self.continue_log()
        self._stamp = _stamp(self.project / LOG)
        named = (name for name in _names_in(self.project / RUNS) if name.isdigit())
        self.last_run = max(self.history.last_run, self.index.last_run(), *map(int, named), 0)

    def announce(self, experiment: Experiment) -> None:
        """Writes to the journal what is about to run, and registers its hypothesis if it declares one."""
        self.journal.append("intent", **experiment.announcement())
        self.last_run = experiment.run
        if experiment.declared is not None:
            self.journal.append("register", run=experiment.run, hypothesis=experiment.declared)
        point("after-intent")

    def settle(
        self, experiment: Experiment, lines: Sequence[JudgedEntry], *, free: bool = False
    ) -> tuple[ExperimentEntry, ...]:
        """The run is over: its lines go to the journal, the log, findings/ and git, in this order.

        Args:
            free: it costs no experiment.
        """
        assert experiment.execution is not None
        self.journal.append(
            "result",
            run=experiment.run,
            uid=experiment.uid,
            sha=experiment.sha,
            again=experiment.execution.may_run_again,
            lines=[line.to_event() for line in lines],
            **({"free": True} if free else {}),
        )
        point("after-journal-result")
        logged = tuple(self.log_line(line) for line in lines)
        kept = [entry for entry in logged if is_kept(entry)]
        for entry in kept:
            self.publish(entry, experiment)
        if not kept:
            self.keep_attempt(experiment)
        store_history(self.history, self.journal)
        return logged

    def log_line(self, line: JudgedEntry) -> ExperimentEntry:
        """Appends one line to results.jsonl, unless it is there already, and notes that in the journal."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", TornTail)
            appended = self.log.append_line(line.entry, line.record)
        for warning in caught:
            self.emit(Repaired(str(warning.message)))
        point("after-log")
        if self.index.place_of(line.record["uid"]) is None:
            self.note_logged(appended.entry, appended.raw + b"\n")
            self.emit(Decided(appended.entry))
        return appended.entry

    def note_logged(self, entry: ExperimentEntry, raw: bytes) -> None:
        """Keeps the exact bytes of a logged line in the journal, so that the log can be rebuilt from it."""
        assert entry.record is not None
        self.index.add([raw])
        self._stamp = _stamp(self.project / LOG)
        seal = self.index.seal
        self.journal.append(
            "logged",
            uid=entry.record["uid"],
            id=entry.experiment_id,
            text=raw.decode("utf-8"),
            size=seal.at,
            sha256=seal.sha256,
        )
        point("after-journal-logged")

    def publish(self, entry: ExperimentEntry, experiment: Experiment, *, may_be_there: bool = False) -> None:
        """Makes the folder and the commit of a kept entry. Without git the entry stays logged, and is
        committed with a later one.

        Args:
            may_be_there: after a crash: a commit that git has already is only noted.
        """
        source = experiment.source.encode()
        files = finding_files(entry, source)
        write_files(self.project, files, notice=self.note_moved)
        point("after-finding")
        self._uncommitted.append(
            _Uncommitted(experiment.uid, entry.experiment_id, {EXPERIMENT: source, **files}, may_be_there)
        )
        self.commit_pending()

    def commit_pending(self, *, last: bool = False) -> None:
        """Makes one commit for every kept entry that has none yet, oldest first. While git cannot, it is
        asked again after a pause that grows from 5 seconds to 10 minutes; before that a damaged repository
        is repaired.

        Args:
            last: ask once more whatever the pause says, and commit the log if the newest commit lacks lines.
        """
        if not last and self.journal.clock.elapsed() < self._git_again_at:
            self._forget_files()
            return
        if self._git_pause and self._uncommitted:
            self._repair_repository()
        while self._uncommitted:
            waiting = self._uncommitted[0]
            try:
                self._commit(waiting)
            except GitUnavailable as problem:
                self._pause_git()
                self._forget_files()
                self.emit(
                    Waiting(
                        f"{waiting.entry_id} is logged, but not committed yet "
                        f"({len(self._uncommitted)} wait): {problem}"
                    )
                )
                return
            self._git_pause = self._git_again_at = 0.0
            del self._uncommitted[0]
        size = self.index.seal.at
        if last and self._log_committed and self._log_committed < size and _WHOLE_LOG < size <= _LARGEST_LOG:
            self.commit_log()

    def keep_attempt(self, experiment: Experiment) -> None:
        """Keeps what ran and was not kept under refs/autointerp/attempts, so that no version is ever lost."""
        run, files = experiment.run, {EXPERIMENT: experiment.source.encode()}
        if self.journal.clock.elapsed() < self._git_again_at:
            return
        try:
            sha = self.committer.keep_attempt(run, files, f"Attempt {run:04d}, not kept")
        except GitUnavailable as problem:
            self._pause_git()
            self.emit(Waiting(f"run {run:04d} is logged, but not kept in git yet: {problem}"))
            return
        point("after-attempt")
        self.journal.append("attempted", run=run, sha=sha)

    def same_numbers(self, entry: ExperimentEntry, sha: str) -> str | None:
        """The id of an earlier line of a *different* experiment that holds the same measurement, or None."""
        return self.index.copy_of(compared(entry.result), sha)

    def logged_bytes(self) -> bytes:
        """What results.jsonl must hold, by the journal."""
        try:
            raw = self.log.raw()
        except ProjectError:
            raw = b""
        found = rebuilt_log(self.journal, self.index.seal, raw)
        assert found is not None, "every line of this session is in the journal"
        return found

    def note_moved(self, what: str) -> None:
        """Reports something that stood where a file belongs."""
        self.emit(Repaired(what))

    def restored(self) -> None:
        """The log was put back: it is what it was."""
        self._stamp = _stamp(self.project / LOG)

    def mark(self) -> str:
        """What results.jsonl is now, in a text that differs if it does. Its bytes are read only if another
        program changed the file."""
        if _stamp(self.project / LOG) == self._stamp:
            return f"{self.index.seal.at:,} bytes with digest {self.index.seal.sha256[:16]}"
        try:
            raw = self.log.raw()
        except ProjectError:
            return "not a regular file"
        return f"{len(raw):,} bytes with digest {digest(raw)[:16]}"

    def unexpected_change(self) -> str | None:
        """What happened to results.jsonl that no supervisor did; None if nothing did.

        Whole lines without a record, appended by an experiment that was run by hand, are no violation: they
        are taken into the journal.
        """
        path = self.project / LOG
        stamp = _stamp(path)
        if stamp == self._stamp:
            return None
        known = self.index.seal
        try:
            raw = self.log.raw()
        except ProjectError:
            return f"{LOG} was replaced by something that is not a regular file"
        if digest(raw[: known.at]) != known.sha256:
            return f"{LOG} was changed: its first {known.at:,} bytes are not what they were"
        *_, rest = raw.rpartition(b"\n")
        if rest:
            return f"{LOG} ends in a line that is not whole"
        lines = whole_lines(raw[known.at :])
        for line in lines:
            entry = read_entry_without_record(line)
            if entry is None:
                return f"{LOG} was appended to: by no supervisor, and it is no entry logged by hand"
            if entry.experiment_id and self.index.has_id(entry.experiment_id):
                return f"{LOG} was appended to: a line with the id {entry.experiment_id}, which is taken"
        self.adopt(lines)
        self._stamp = stamp
        return None

    def adopt(self, lines: Sequence[bytes]) -> None:
        """Takes the lines after the known ones into the journal: they are part of what is restored."""
        batch: list[bytes] = []
        size = 0
        events: list[tuple[str, dict[str, object]]] = []
        for number, line in enumerate(lines, 1):
            batch.append(line)
            size += len(line)
            if number == len(lines) or size > _ADOPTED:
                seal = self.index.add(batch)
                text = b"".join(batch).decode("utf-8")
                events.append(("adopted", {"text": text, "size": seal.at, "sha256": seal.sha256}))
                batch, size = [], 0
        if events:
            self.journal.append_all(events)

    def continue_log(self) -> None:
        """The lines of the index are those of the log: the next append reads only what comes after them."""
        index = self.index
        self.log.continue_from(Continuation(index.seal, index.sha_state(), len(index.entries), index))

    def lines_of(self, sha: str) -> tuple[ExperimentEntry, ...]:
        """The lines of the experiment.py with this digest."""
        return tuple(self.entries.at(self.index.numbers_of(sha)))

    def entry_of(self, uid: str) -> ExperimentEntry | None:
        """The line of this uid; None if the log has none."""
        number = self.index.number_with(uid)
        return None if number is None else self.entries[number]

    def take_over_budget(self) -> None:
        """Counts what the lines say was used: the journal that counted it was left on another machine."""
        spent: Mapping[str, float | None] = next(
            (each.record["spent"] for each in reversed(self.entries[-50:]) if each.record is not None), {}
        )
        self.journal.append(
            "rebuilt",
            size=self.index.seal.at,
            sha256=self.index.seal.sha256,
            lines=len(self.entries),
            experiments=self.index.runs(),
            last_run=self.index.last_run(),
            seconds=spent.get("seconds") or 0.0,
            usd=spent.get("usd"),
        )

    def _pause_git(self) -> None:
        self._git_pause = min(_LONGEST_PAUSE, 2 * self._git_pause or _FIRST_PAUSE)
        self._git_again_at = self.journal.clock.elapsed() + self._git_pause

    def _repair_repository(self) -> None:
        try:
            aside = make_folder(self.project, f"{PRIVATE}/{ASIDE}")
            for what in self.committer.repair(self.history.head, aside):
                self.emit(Repaired(what))
        except GitUnavailable:
            # Why is said when the commit fails.
            return

    def _forget_files(self) -> None:
        self._uncommitted = [each._replace(files=None) for each in self._uncommitted]

    def _commit(self, waiting: _Uncommitted) -> None:
        if waiting.may_be_there:
            sha = self.committer.experiments().get(waiting.entry_id)
            if sha is not None:
                self.journal.append("committed", id=waiting.entry_id, sha=sha)
                return
        number = self.index.number_of(waiting.entry_id)
        assert number is not None
        entry = self.entries[number]
        files = waiting.files
        if files is None:
            run = self.history.open_runs[waiting.uid]
            intent = self.journal.event_at(run.intent_at)
            assert intent is not None, "the journal's line was read before"
            source = Experiment.from_event(intent).source.encode()
            files = {EXPERIMENT: source, **finding_files(entry, source)}
        self.commit_entry(entry, files)

    def commit_entry(self, entry: ExperimentEntry, files: Mapping[str, bytes]) -> None:
        """The commit of one kept entry."""
        verdict, size = verdict_of(entry), self.index.seal.at
        with_log = size <= _WHOLE_LOG or 1.1 * self._log_committed < size <= _LARGEST_LOG
        sha = self.committer.commit(
            {**files, LOG: self.log.prefix_bytes(size)} if with_log else files,
            subject=f"{entry.experiment_id} {verdict}: {one_line(entry.conclusion or entry.hypothesis, 60)}",
            body=f"Hypothesis: {one_line(entry.hypothesis, 300)}\nMethod: {one_line(entry.method, 100)}",
            trailers={EXPERIMENT_TRAILER: entry.experiment_id, VERDICT_TRAILER: verdict},
        )
        if with_log:
            self._log_committed = size
        point("after-commit")
        self.journal.append("committed", id=entry.experiment_id, sha=sha)
        point("after-journal-committed")
        self.emit(Committed(entry.experiment_id, sha))

    def commit_log(self) -> None:
        """One commit of the log alone, if git can."""
        size = self.index.seal.at
        try:
            sha = self.committer.commit(
                {LOG: self.log.prefix_bytes(size)},
                subject=f"The log after {len(self.entries)} lines",
                trailers={"Autointerp": "log"},
            )
        except GitUnavailable as problem:
            self.emit(Waiting(f"the newest lines are logged, but not committed yet: {problem}"))
            return
        self._log_committed = size
        self.journal.append("committed", id="", sha=sha)


def rebuilt_log(journal: Journal, seal: Seal, found: bytes) -> bytes | None:
    """The bytes of results.jsonl that have this seal, from the lines in the journal; where the journal is
    damaged, from what was found there. None if they cannot be had."""
    pieces: dict[int, bytes] = {}
    for event, _ in Journal(journal.path).read():
        if event["event"] in ("logged", "adopted"):
            text = event["text"].encode("utf-8")
            pieces[event["size"] - len(text)] = text
    whole = bytearray()
    for at in sorted(pieces):
        if at > len(whole):
            whole += found[len(whole) : at]
        if at == len(whole):
            whole += pieces[at]
    if len(whole) < seal.at:
        whole += found[len(whole) : seal.at]
    del whole[seal.at :]
    return bytes(whole) if hashlib.sha256(whole).hexdigest() == seal.sha256 else None


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes whenever a program writes to a file: the time of its last change is set by the kernel."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns, status.st_mode


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
