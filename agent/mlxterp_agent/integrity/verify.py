"""Does everything that an investigation left agree? Read-only, and without the lock.

Each check compares two things that were written at different times: lines with their seals, the log with the
journal, what ran with its digest, kept entries with findings/ and git. What cannot be compared on this
machine is reported as unchecked, never as agreement.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlxterp.autointerpret.contract import EXPERIMENT, LOG, SETUP, digest
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.log import ExperimentLog
from mlxterp.autointerpret.log_file import Seal
from mlxterp_agent.platform import read_or_none
from mlxterp_agent.storage.findings import folder_of
from mlxterp_agent.storage.git import Committer
from mlxterp_agent.storage.journal import Event, Journal
from mlxterp_agent.storage.record import (
    RUNS,
    digests_of,
    is_kept,
    read_entry_without_record,
    uid_of,
    whole_lines,
)
from mlxterp_agent.storage.state_dir import State


@dataclass(frozen=True)
class Check:
    """One comparison: whether it holds, and a sentence on what was compared or what disagrees."""

    name: str
    result: Literal["ok", "problem", "unchecked"]
    text: str


def verify(project: Path, state: State) -> list[Check]:
    """Every comparison, in the order of truth; a run that is under way may show what it has not completed."""
    events = Journal(state.journal_path).events()
    log = ExperimentLog(project / LOG)
    entries = list(log.scan().entries)
    checks: list[tuple[str, Callable[[], Iterator[str | None]], str]] = [
        ("log", lambda: _log(log, events), f"{len(entries)} lines, every seal fits"),
        ("journal", lambda: _journal(log, events), "the log is what the journal says"),
        ("setup.py", lambda: _setup(project, state, entries), "the sealed one, in every line"),
        (
            "experiments",
            lambda: _experiments(project, entries, events),
            "what ran has the digests in the log",
        ),
        (
            "findings",
            lambda: _findings(project, entries),
            "every kept entry has its folder, with the bytes that ran",
        ),
        (
            "git",
            lambda: _git(project, entries, log),
            "every kept entry has its commit, with the bytes that ran",
        ),
    ]
    found: list[Check] = []
    for name, compare, fine in checks:
        disagreements = list(compare())
        problems = [text for text in disagreements if text is not None]
        if problems:
            found += [Check(name, "problem", text) for text in problems]
        elif disagreements:
            found.append(Check(name, "unchecked", "nothing on this machine to compare with"))
        else:
            found.append(Check(name, "ok", fine))
    return found


def _log(log: ExperimentLog, events: list[Event]) -> Iterator[str | None]:
    """Yields a text for each problem; None, here and below, stands for "cannot be checked"."""
    scan = log.scan()
    anchors = [
        Seal(event["size"], event["sha256"]) for event in events if event["event"] in ("logged", "adopted")
    ]
    lines: set[int] = set()
    for problem in scan.problems:
        lines.add(problem.line)
        yield f"line {problem.line}: {problem.what}"
    for seal in log.verify(anchors[-1:]):
        if seal.line not in lines:
            lines.add(seal.line)
            yield f"line {seal.line}: {seal.what}"


def _journal(log: ExperimentLog, events: list[Event]) -> Iterator[str | None]:
    if not events:
        yield None
        return
    raw, seals = log.raw(), [event for event in events if event["event"] in ("logged", "adopted")]
    size = seals[-1]["size"] if seals else 0
    if seals and digest(raw[:size]) != seals[-1]["sha256"]:
        yield f"{LOG} differs from the journal's copy of it; `autointerp start` puts it back"
    else:
        for line in whole_lines(raw[size:]):
            if read_entry_without_record(line) is None:
                yield "a line that claims to be a supervisor's is not in the journal"
    logged = {event["uid"] for event in events if event["event"] == "logged"}
    results = [event for event in events if event["event"] == "result"]
    for event in results:
        for line in event["lines"]:
            if line["record"]["uid"] not in logged:
                yield f"run {event['run']:04d} was decided and is not in the log; `autointerp start` adds it"
    ended = {event["uid"] for event in results}
    for event in events:
        if event["event"] == "intent" and event["uid"] not in ended:
            yield f"run {event['run']:04d} has begun and not ended; `autointerp start` closes it"


def _setup(project: Path, state: State, entries: list[ExperimentEntry]) -> Iterator[str | None]:
    current, sealed = _digest_of(project / SETUP), _digest_of(state.sealed_dir / SETUP)
    if sealed is None:
        yield None
    elif current != sealed:
        yield f"{SETUP} is not the sealed one"
    reference = sealed or current
    others = [
        e.experiment_id for e in entries if e.record and digests_of(e).get("setup") not in (None, reference)
    ]
    if others:
        yield f"measured with another {SETUP}: {', '.join(others)}"


def _experiments(project: Path, entries: list[ExperimentEntry], events: list[Event]) -> Iterator[str | None]:
    sources = {event["uid"]: event["source"].encode() for event in events if event["event"] == "intent"}
    for entry in entries:
        record = entry.record
        if record is None:
            continue
        expected = digests_of(entry).get("experiment")
        source = sources.get((uid_of(entry) or "").rpartition(".")[0])
        copy = read_or_none(project / RUNS / str(record.get("run")) / EXPERIMENT)
        if source is None and copy is None:
            yield None
        if source is not None and digest(source) != expected:
            yield f"{entry.experiment_id}: the journal's copy of what ran has another digest"
        if copy is not None and digest(copy) != expected:
            yield f"{entry.experiment_id}: {RUNS}/{record.get('run')}/{EXPERIMENT} is not what ran"


def _findings(project: Path, entries: list[ExperimentEntry]) -> Iterator[str | None]:
    for entry in filter(is_kept, entries):
        folder = project / folder_of(entry)
        if not folder.is_dir():
            yield f"{entry.experiment_id}: {folder_of(entry)} is missing"
            continue
        if _digest_of(folder / EXPERIMENT) != digests_of(entry).get("experiment"):
            yield f"{entry.experiment_id}: {folder_of(entry)}/{EXPERIMENT} is not what ran"
        try:
            same = json.loads(read_or_none(folder / "result.json") or b"null") == entry.to_dict()
        except ValueError:
            same = False
        if not same:
            yield f"{entry.experiment_id}: {folder_of(entry)}/result.json is not the line of the log"


def _git(project: Path, entries: list[ExperimentEntry], log: ExperimentLog) -> Iterator[str | None]:
    if not (project / ".git").exists():
        yield "there is no repository; `autointerp start` makes it and commits what was kept"
        return
    committer, raw = Committer(project), log.raw()
    commits = committer.experiments()
    kept = list(filter(is_kept, entries))
    for entry in kept:
        sha = commits.get(entry.experiment_id)
        if sha is None:
            yield f"{entry.experiment_id}: kept, but in no commit; `autointerp start` commits it"
            continue
        source = committer.read(sha, EXPERIMENT)
        if source is None or digest(source) != digests_of(entry).get("experiment"):
            yield f"{entry.experiment_id}: the experiment in commit {sha[:10]} is not what ran"
        logged = committer.read(sha, LOG)
        if logged is None or not raw.startswith(logged):
            yield f"{entry.experiment_id}: the log in commit {sha[:10]} is not the beginning of {LOG}"
    for unknown in sorted(commits.keys() - {entry.experiment_id for entry in kept}):
        yield f"commit {commits[unknown][:10]} claims experiment {unknown}, which the log does not keep"


def _digest_of(path: Path) -> str | None:
    data = read_or_none(path)
    return None if data is None else digest(data)
