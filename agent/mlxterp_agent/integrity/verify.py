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

from mlxterp.autointerpret.contract import EXPERIMENT, FINDINGS, LOG, SETUP, digest
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.log import ExperimentLog
from mlxterp.autointerpret.log_file import Seal
from mlxterp_agent.platform import read_or_none
from mlxterp_agent.storage.findings import folder_of
from mlxterp_agent.storage.git import Committer
from mlxterp_agent.storage.history import History
from mlxterp_agent.storage.journal import TORN, Event, Journal, Rejected
from mlxterp_agent.storage.record import (
    RUNS,
    digests_of,
    is_kept,
    read_entry_without_record,
    uid_of,
    whole_lines,
)
from mlxterp_agent.storage.state_dir import State

_MADE_AGAIN = "remove the folder, `autointerp start` makes it again"


@dataclass(frozen=True)
class Check:
    """One comparison: whether it holds, and a sentence on what was compared or what disagrees."""

    name: str
    result: Literal["ok", "problem", "unchecked"]
    text: str


class _Gap(str):
    """What cannot be compared here, and why: neither agreement nor a problem."""


def verify(project: Path, state: State) -> list[Check]:
    """Every comparison, in the order of truth; a run that is under way may show what it has not completed."""
    journal = Journal(state.journal_path)
    events, history = journal.events(), History()
    damaged = list(journal.rejected)
    for event in events:
        history.take(event, 0)
    log = ExperimentLog(project / LOG)
    entries = list(log.scan().entries)
    checks: list[tuple[str, Callable[[], Iterator[str]], str]] = [
        ("log", lambda: _log(log, events), f"{len(entries)} lines, every seal fits"),
        ("journal", lambda: _journal(log, events, damaged), "the log is what the journal says"),
        ("setup.py", lambda: _setup(project, state, entries, events), "the sealed one, in every line"),
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
            lambda: _git(project, entries, log, history),
            "every kept entry has its commit, with the bytes that ran",
        ),
    ]
    found: list[Check] = []
    for name, compare, fine in checks:
        said = list(compare())
        found += [
            Check(name, "unchecked" if isinstance(each, _Gap) else "problem", str(each)) for each in said
        ]
        if not said:
            found.append(Check(name, "ok", fine))
    return found


def _log(log: ExperimentLog, events: list[Event]) -> Iterator[str]:
    """Yields a text for each problem, here and below."""
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


def _journal(log: ExperimentLog, events: list[Event], damaged: list[Rejected]) -> Iterator[str]:
    if not events:
        yield _Gap(
            "there is no journal of this project on this machine to compare the log with; that is no fault"
        )
        return
    for each in damaged:
        if each.why == TORN:
            continue  # what a kill leaves half written
        yield (
            f"the line of the journal at byte {each.at:,} does not count: {each.why}; nothing needs to be "
            "done, the log does not rest on it"
        )
    raw, seals = log.raw(), [event for event in events if event["event"] in ("logged", "adopted")]
    size = seals[-1]["size"] if seals else 0
    if seals and digest(raw[:size]) != seals[-1]["sha256"]:
        yield f"{LOG} differs from the journal's copy of it; `autointerp start` puts it back"
    else:
        for line in whole_lines(raw[size:]):
            if read_entry_without_record(line) is None:
                yield (
                    "a line that claims to be a supervisor's is not in the journal; the next start moves it "
                    "to the quarantine"
                )
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


def _setup(project: Path, state: State, entries: list[ExperimentEntry], events: list[Event]) -> Iterator[str]:
    current, sealed = _digest_of(project / SETUP), _digest_of(state.sealed_dir / SETUP)
    if sealed is None:
        yield _Gap("it was not sealed on this machine yet; `autointerp start` seals it")
    elif current != sealed:
        yield (
            f"{SETUP} is not the sealed one; copy {state.sealed_dir / SETUP} over it, or take the new one "
            "with `autointerp start --reseal`"
        )
    # After --reseal the lines before it were measured with a setup.py that was sealed too.
    known = {sealed or current, None} | {e["setup_sha"] for e in events if e["event"] == "seal"}
    others = [e.experiment_id for e in entries if e.record and digests_of(e).get("setup") not in known]
    if others:
        yield (
            f"measured with another {SETUP}: {', '.join(others)}; what they say cannot be compared with the "
            "other lines"
        )


def _experiments(project: Path, entries: list[ExperimentEntry], events: list[Event]) -> Iterator[str]:
    sources = {event["uid"]: event["source"].encode() for event in events if event["event"] == "intent"}
    without: list[str] = []
    for entry in entries:
        record = entry.record
        if record is None:
            continue
        expected = digests_of(entry).get("experiment")
        source = sources.get((uid_of(entry) or "").rpartition(".")[0])
        copy = read_or_none(project / RUNS / str(record.get("run")) / EXPERIMENT)
        if source is None and copy is None and expected is not None:
            without.append(entry.experiment_id)
        if source is not None and digest(source) != expected:
            yield f"{entry.experiment_id}: the journal's copy of what ran has another digest"
        if copy is not None and digest(copy) != expected:
            yield f"{entry.experiment_id}: {RUNS}/{record.get('run')}/{EXPERIMENT} is not what ran"
    if without:
        which = without[0] if len(without) == 1 else f"{without[0]} to {without[-1]} ({len(without)} lines)"
        yield _Gap(
            f"{which}: no copy of what ran is on this machine, neither in its journal nor in {RUNS}; nothing "
            "is wrong with the lines: their seals are checked above; findings/ has what ran for those kept"
        )


def _findings(project: Path, entries: list[ExperimentEntry]) -> Iterator[str]:
    for entry in filter(is_kept, entries):
        folder = project / folder_of(entry)
        if not folder.is_dir():
            yield f"{entry.experiment_id}: {folder_of(entry)} is missing; `autointerp start` makes it again"
            continue
        if _digest_of(folder / EXPERIMENT) != digests_of(entry).get("experiment"):
            yield f"{entry.experiment_id}: {folder_of(entry)}/{EXPERIMENT} is not what ran; {_MADE_AGAIN}"
        try:
            same = json.loads(read_or_none(folder / "result.json") or b"null") == entry.to_dict()
        except ValueError:
            same = False
        if not same:
            yield (
                f"{entry.experiment_id}: {folder_of(entry)}/result.json is not the line of the log; "
                f"{_MADE_AGAIN}"
            )


def _git(
    project: Path, entries: list[ExperimentEntry], log: ExperimentLog, history: History
) -> Iterator[str]:
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
            yield (
                f"{entry.experiment_id}: the experiment in commit {sha[:10]} is not what ran; what ran is in "
                f"{folder_of(entry)}/{EXPERIMENT}"
            )
        logged = committer.read(sha, LOG)
        if logged is None or not raw.startswith(logged):
            yield (
                f"{entry.experiment_id}: the log in commit {sha[:10]} is not the beginning of {LOG}; the log "
                "in the project counts"
            )
    for unknown in sorted(commits.keys() - {entry.experiment_id for entry in kept}):
        yield (
            f"commit {commits[unknown][:10]} claims experiment {unknown}, which the log does not keep; no "
            f"supervisor made it, undo it with `git revert {commits[unknown][:10]}`"
        )
    yield from _foreign(committer, history)


def _foreign(committer: Committer, history: History) -> Iterator[str]:
    """What people, agents or experiments did to the commits of the supervisor."""
    if history.head is not None and not committer.descends("HEAD", history.head):
        yield (
            f"the newest commit of the supervisor, {history.head[:10]}, is not in the current branch: HEAD "
            f"was switched, or commits were amended; go back with `git checkout -B main {history.head[:10]}`"
        )
    for commit, subject in committer.foreign((LOG, FINDINGS)):
        yield (
            f'commit {commit[:10]} ("{subject}") changes {LOG} or {FINDINGS}/ and is not the supervisor\'s; '
            f"undo it with `git revert {commit[:10]}`"
        )


def _digest_of(path: Path) -> str | None:
    data = read_or_none(path)
    return None if data is None else digest(data)
