"""What the journal says so far, in a size that does not grow with it: sums, open runs, the newest start
and end.

Events are taken one by one, past and new alike. What has been taken is stored now and then in
`history.json`, signed with the journal's key, so that a start reads only the events after it. Lives here:
what is added up and what is still open. Does not live here: what follows from it (`budget.py`,
`recovery.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mlxterp.autointerpret.contract import digest
from mlxterp.autointerpret.log_file import Seal
from mlxterp_agent.exit_codes import CONTRACT
from mlxterp_agent.platform import read_or_none
from mlxterp_agent.storage.journal import Event, Journal, Position

KEPT_TIERS = frozenset({"lead", "finding", "claim"})

_FILE = "history.json"
_SCHEMA = "history/3"
_EMPTY = Seal(0, digest(b""))
_BEGINNING = Position()


@dataclass
class OpenRun:
    """A run of which something is not done yet.

    Attributes:
        run: its number.
        intent_at, result_at: where its events begin in the journal; `result_at` is None while it has not
            ended.
        unlogged: uids of its lines that are in the journal only.
        kept: uids of its kept lines.
        uncommitted: how many of its kept lines have no commit.
        attempted: whether what ran is kept under refs/autointerp/attempts.
    """

    run: int
    intent_at: int
    result_at: int | None = None
    unlogged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    uncommitted: int = 0
    attempted: bool = False

    @property
    def done(self) -> bool:
        if self.result_at is None or self.unlogged:
            return False
        return self.uncommitted == 0 if self.kept else self.attempted


class Held(NamedTuple):
    """What a call may have cost that was never settled.

    Attributes:
        answer_usd, answer_tokens: the part of its answer, written while the connection lasts.
        at: when it was reserved, on the clock `elapsed` of its boot.
    """

    usd: float | None
    tokens: int | None
    answer_usd: float = 0.0
    answer_tokens: int = 0
    at: float = 0.0


@dataclass
class _Session:
    name: str = ""
    first: float = 0.0
    last: float = 0.0
    extra: float = 0.0

    @property
    def seconds(self) -> float:
        return self.last - self.first + self.extra


@dataclass
class History:
    """Everything that was added up, and everything that is open.

    Attributes:
        experiments: how many were announced, without the free ones.
        free: how many failed before anything was measured, and cost nothing.
        streak: runs since the last one with a kept line.
        streaks_at_stops: the streak at each stop since then.
        usd, tokens: what was charged; None while nothing is known.
        held: what calls may have cost that were never settled.
        finished_seconds: of the supervisors before the newest.
        exploring_cpu, judging_cpu: seconds of CPU time that experiments took, and measuring their claims.
        violations: since a run was last stopped for them.
        config: of the newest start; None before the first.
        stop: reason and exit code of the newest end; None before the first, and while a supervisor works.
        last_run: the highest number of a run.
        log: what results.jsonl was after the newest line.
        head: the newest commit.
        taken_over: how many lines were written elsewhere; what ran for them is not on this machine.
        open_runs: by uid, oldest first.
        ids: uid of the open runs' kept lines that are logged and not committed, by their ids.
    """

    experiments: int = 0
    free: int = 0
    streak: int = 0
    streaks_at_stops: list[int] = field(default_factory=list)
    usd: float | None = None
    tokens: int | None = None
    held: dict[str, Held] = field(default_factory=dict)
    finished_seconds: float = 0.0
    exploring_cpu: float = 0.0
    judging_cpu: float = 0.0
    session: _Session = field(default_factory=_Session)
    violations: int = 0
    config: dict[str, Any] | None = None
    stop: tuple[str, int] | None = None
    last_run: int = 0
    log: Seal = _EMPTY
    head: str | None = None
    taken_over: int = 0
    open_runs: dict[str, OpenRun] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    position: Position = _BEGINNING

    @property
    def measured(self) -> bool:
        """Whether an experiment was ever announced."""
        return self.experiments + self.free > 0

    @property
    def seconds(self) -> float:
        """Time under supervision, by the events."""
        return self.finished_seconds + self.session.seconds

    def take(self, event: Event, at: int) -> None:
        """Accounts for one more event, which begins at this byte of the journal."""
        if event["session"] != self.session.name:
            self.finished_seconds += self.session.seconds
            self.session = _Session(event["session"], event["elapsed"], event["elapsed"])
        self.session.last = max(self.session.last, event["elapsed"])
        match event["event"]:
            case "start":
                self.config, self.stop = event.get("config"), None
                self.session.extra += event.get("uncounted_s", 0.0)
            case "stop":
                self.stop = (event["reason"], event.get("exit_code", 0))
                self.streaks_at_stops.append(self.streak)
                if event.get("exit_code") == CONTRACT:
                    self.violations = 0
            case "intent":
                self.experiments += 1
                self.last_run = max(self.last_run, event["run"])
                self.open_runs[event.get("uid", "")] = OpenRun(event["run"], at)
            case "result":
                self._result(event, at)
            case "judgement":
                self.judging_cpu += event.get("cpu_seconds") or 0.0
            case "opened" if event.get("lines"):
                uid = event["uid"]
                lines = [line["record"]["uid"] for line in event["lines"]]
                self.open_runs[uid] = OpenRun(0, at, result_at=at, unlogged=lines, attempted=True)
            case "logged":
                self.log = Seal(event["size"], event["sha256"])
                self._logged(event["uid"], event["id"])
            case "adopted":
                self.log = Seal(event["size"], event["sha256"])
            case "rebuilt":
                self._rebuilt(event)
            case "committed":
                self.head = event["sha"]
                self._committed(event["id"])
            case "attempted":
                for uid, run in list(self.open_runs.items()):
                    if run.run == event["run"]:
                        run.attempted = True
                        self._close_if_done(uid)
            case "restored":
                self.violations += 1
            case "hold":
                answer = event.get("answer_usd", 0.0), event.get("answer_tokens", 0)
                self.held[event["call"]] = Held(event["usd"], event["tokens"], *answer, event["elapsed"])
            case "charge":
                self.held.pop(event.get("call") or "", None)
                self.usd = _sum(self.usd, event["usd"])
                self.tokens = _sum(self.tokens, event["tokens"])

    def streak_with(self, limit: int | None) -> int:
        """The streak, begun anew after every stop for it: starting again was a decision."""
        began = 0
        for at_stop in self.streaks_at_stops:
            if limit is not None and at_stop - began >= limit:
                began = at_stop
        return self.streak - began

    def _result(self, event: Event, at: int) -> None:
        run = self.open_runs.get(event.get("uid", ""))
        lines = [line.get("record") or {} for line in event["lines"]]
        kept = [record for record in lines if record.get("tier") in KEPT_TIERS]
        if lines and not event.get("again"):
            self.exploring_cpu += (lines[0].get("execution") or {}).get("cpu_seconds") or 0.0
        if event.get("free"):
            self.free += 1
            self.experiments -= 1
        elif not event.get("again"):
            self.streak = 0 if kept else self.streak + 1
            if kept:
                self.streaks_at_stops.clear()
        if run is not None:
            run.result_at = at
            run.unlogged = [record.get("uid", "") for record in lines]
            run.kept = [record.get("uid", "") for record in kept]
            run.uncommitted = len(kept)

    def _logged(self, line: str, experiment_id: str) -> None:
        uid = line.rpartition(".")[0]
        run = self.open_runs.get(uid)
        if run is None:
            return
        run.unlogged = [each for each in run.unlogged if each != line]
        if line in run.kept:
            self.ids[experiment_id] = uid
        self._close_if_done(uid)

    def _committed(self, experiment_id: str) -> None:
        uid = self.ids.pop(experiment_id, "")
        run = self.open_runs.get(uid)
        if run is not None:
            run.uncommitted = max(0, run.uncommitted - 1)
            self._close_if_done(uid)

    def _close_if_done(self, uid: str) -> None:
        if self.open_runs[uid].done:
            del self.open_runs[uid]

    def _rebuilt(self, event: Event) -> None:
        self.log = Seal(event["size"], event["sha256"])
        self.experiments = max(self.experiments, event["experiments"])
        self.last_run = max(self.last_run, event["last_run"])
        self.finished_seconds = max(self.finished_seconds, event["seconds"])
        self.taken_over = event["lines"]
        self.usd = event["usd"] if self.usd is None else self.usd


def read_history(journal: Journal) -> History:
    """The history of a journal, and of every event that is written to it from now on.

    What was stored is used if it was signed with the journal's key and the journal still holds its last line;
    otherwise the whole journal is read.
    """
    history = _stored(journal) or History()
    journal.follow_since(history.position, history.take)
    history.position = journal.end
    return history


def store_history(history: History, journal: Journal) -> None:
    """Stores what has been added up, for the next start. It is not flushed to the disk: if it is lost, the
    journal is read from an earlier place."""
    history.position = journal.end
    state = asdict(history)
    body = json.dumps({"schema": _SCHEMA, "state": state}, ensure_ascii=True)
    path = journal.path.with_name(_FILE)
    beside = path.with_name(f".{_FILE}.tmp")
    with contextlib.suppress(OSError):
        beside.unlink(missing_ok=True)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            file.write(f"{journal.sign(body.encode())}\n{body}\n")
        os.replace(beside, path)


def _stored(journal: Journal) -> History | None:
    data = read_or_none(Path(journal.path).with_name(_FILE))
    if data is None:
        return None
    signature, _, body = data.decode("ascii", "replace").rstrip("\n").partition("\n")
    if not signature or signature != journal.sign(body.encode()):
        return None
    stored = json.loads(body)
    if stored.get("schema") != _SCHEMA:
        return None
    state = stored["state"]
    position = Position(*state.pop("position"))
    if not journal.holds(position):
        return None
    state["session"] = _Session(**state["session"])
    state["open_runs"] = {uid: OpenRun(**run) for uid, run in state["open_runs"].items()}
    state["held"] = {call: Held(*amounts) for call, amounts in state["held"].items()}
    state["log"] = Seal(*state["log"])
    state["stop"] = None if state["stop"] is None else tuple(state["stop"])
    return History(**state, position=position)


def _sum(known: Any, more: Any) -> Any:
    return known if more is None else (known or 0) + more
