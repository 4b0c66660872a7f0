"""Kills of a supervisor that really writes: `python -m tests.agent.kills COUNT [SEED]`.

Each life is a forked process that recovers the project and then announces, runs (a stand-in that reports at
once), logs and commits one experiment after another, until it is killed with SIGKILL: at a named point, in
the middle of a write, or at a random moment. It writes what it has promised to a file outside the project,
the acknowledgements; the next life must keep every one of them. Only the experiment is a stand-in; the
journal, the log, the findings, git and the recovery are the real ones.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from mlxterp.autointerpret.contract import digest, state_dir
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.log import ExperimentLog
from mlxterp_agent import crash_points
from mlxterp_agent.events import Decided, Event
from mlxterp_agent.exit_codes import GitUnavailable
from mlxterp_agent.integrity.verify import verify
from mlxterp_agent.judge.evidence import Known, judge_experiment
from mlxterp_agent.platform import SystemClock
from mlxterp_agent.storage.budget import Budget, Limits
from mlxterp_agent.storage.git import Committer
from mlxterp_agent.storage.heartbeat import Heartbeat, uncounted_seconds
from mlxterp_agent.storage.history import read_history, store_history
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.storage.log_index import LogIndex
from mlxterp_agent.storage.record import Execution, Experiment
from mlxterp_agent.storage.recovery import reconcile
from mlxterp_agent.storage.results_log import ResultsLog
from mlxterp_agent.storage.state_dir import ProjectLock, State, open_state
from tests.agent.fakes import make_project

_WRITE = os.write

EXPERIMENTS = 3
"""Experiments of one life that is not killed before."""

LONGEST_LIFE = 0.1
"""Seconds after which a life without another end is killed."""


LATEST = 1.0
"""Seconds after which a life is killed whose point never came."""


class Death(NamedTuple):
    """How a life ends: at a named point, within the n-th write, or after some seconds."""

    point: str | None = None
    write: int | None = None
    seconds: float = LONGEST_LIFE


class GitIsAway(Committer):
    """A machine on which git fails: what is kept waits for its commit."""

    def commit(self, *args: object, **kwargs: object) -> str:
        raise GitUnavailable("git is away")

    def keep_attempt(self, *args: object, **kwargs: object) -> str:
        raise GitUnavailable("git is away")

    def experiments(self) -> dict[str, str]:
        raise GitUnavailable("git is away")


class Supervisor:
    """What a supervisor does with its files, with a stand-in for the experiment."""

    def __init__(self, project: Path, acknowledged: Path, *, git: bool) -> None:
        self.state: State = open_state(project)
        self._acknowledged = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = ProjectLock(self.state)
        self._lock.acquire()
        clock = SystemClock()
        began = clock.elapsed()
        journal = Journal(self.state.journal_path)
        journal.open()
        history = read_history(journal)
        committer = (Committer if git else GitIsAway)(project, scratch=self.state.tmp_dir)
        if git:
            committer.ensure_repo(["setup.py", "results.jsonl"])
        uncounted = uncounted_seconds(self.state, history, clock, began=began)
        journal.append("start", config={}, uncounted_s=uncounted)
        index = LogIndex.open(self.state.index_path, project / "results.jsonl")
        self.results = ResultsLog(
            project,
            journal,
            committer,
            self._tell,
            history=history,
            index=index,
            setup_sha=digest((project / "setup.py").read_bytes()),
        )
        repairs = reconcile(self.results, self.state, clock)
        assert repairs.broken is None, repairs
        store_history(history, journal)
        self._budget = Budget(Limits(), clock, journal, history)
        self._heartbeat = Heartbeat(self.state.heartbeat_path, clock)
        self.acknowledge("ready")

    def run(self, number: int) -> None:
        """One experiment; every sixth is kept."""
        source = f"x = {number}\n"
        setup = digest((self.results.project / "setup.py").read_bytes())
        digests = {"setup": setup, "program": None, "experiment": digest(source.encode())}
        run = self.results.last_run + 1
        uid = os.urandom(16).hex()
        announced = Experiment(run=run, uid=uid, source=source, time_box=1.0, digests=digests)
        self.results.announce(announced)
        self.acknowledge(f"intent {announced.uid}")
        self._budget.hold(announced.uid, 0.01, 10)
        self._budget.charge(0.001, 1, call=announced.uid)
        self.acknowledge("charge")
        self._heartbeat.beat()
        result = {"a": number, "b": number + 0.5, "c": number + 0.25}
        entry = ExperimentEntry(f"h{number}", "counting", result, number % 6 == 0, "c", 0.1)
        execution = Execution(status="ok", exit_code=0, seconds=0.1, entries=(entry,))
        ended = _replace(announced, execution)
        self.results.settle(ended, judge_experiment(ended, Known()))
        self.acknowledge(f"settled {announced.uid}")

    def acknowledge(self, what: str) -> None:
        _WRITE(self._acknowledged, f"{what}\n".encode())

    def _tell(self, event: Event) -> None:
        if isinstance(event, Decided):
            assert event.entry.record is not None
            self.acknowledge(f"line {event.entry.record['uid']}")


def _replace(experiment: Experiment, execution: Execution) -> Experiment:
    import dataclasses

    return dataclasses.replace(experiment, execution=execution, ended_at=time.time())


def live(project: Path, acknowledged: Path, death: Death, *, git: bool) -> bool:
    """One life, in a process of its own; whether it was killed, as it should be."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            if death.point is not None:
                crash_points.arm(death.point)
            if death.write is not None:
                _die_in_write(death.write)
            supervisor = Supervisor(project, acknowledged, git=git)
            first = int.from_bytes(os.urandom(4), "big")
            for number in range(first, first + EXPERIMENTS):
                supervisor.run(number)
            signal.pause()
        except BaseException as problem:  # noqa: BLE001 - the process ends here
            os.write(2, f"a life failed: {type(problem).__name__}: {problem}\n".encode())
            os._exit(1)
    until = time.monotonic() + (death.seconds if death.point is None and death.write is None else LATEST)
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def _die_in_write(count: int) -> None:
    """The n-th write of this process writes half of its bytes, and the process is killed."""
    write, left = os.write, [count]

    def torn(fd: int, data: bytes) -> int:
        if len(data) > 40:
            left[0] -= 1
            if left[0] == 0:
                write(fd, bytes(data)[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        return write(fd, data)

    os.write = torn  # type: ignore[assignment]


class Score(NamedTuple):
    """What was found after the last life."""

    kills: int
    lines: int
    lost: int
    doubled: int
    problems: tuple[str, ...]
    seconds: float


def campaign(root: Path, count: int, seed: int, *, git_share: float = 0.25) -> Score:
    """`count` kills of one project, and what is wrong after them."""
    import git  # noqa: F401 - loaded once, before the lives are forked
    import jinja2  # noqa: F401

    began = time.monotonic()
    chance = random.Random(seed)
    project, acknowledged = make_project(root / "project"), root / "acknowledged"
    problems: list[str] = []
    for number in range(count):
        kind = chance.random()
        death = Death(seconds=chance.uniform(0.0, LONGEST_LIFE))
        if kind < 0.4:
            death = Death(point=chance.choice(crash_points.POINTS))
        elif kind < 0.7:
            death = Death(write=chance.randint(1, 30))
        with_git = chance.random() < git_share
        if death.point in _GIT_POINTS:
            with_git = True
        if death.point in _LOOP_POINTS:
            death = Death(point="after-log")
        if not live(project, acknowledged, death, git=with_git):
            problems.append(f"life {number} ({death}) was not killed but ended")
            break
    problems += _final(project, acknowledged)
    promised = [line.split() for line in acknowledged.read_text().splitlines()]
    lines = {words[1] for words in promised if words[0] == "line"}
    there = Counter(
        entry.record["uid"] for entry in ExperimentLog(project / "results.jsonl").entries() if entry.record
    )
    lost = len(lines - there.keys())
    doubled = sum(n - 1 for n in there.values())
    problems += _settled_lost(promised, there)
    return Score(count, len(there), lost, doubled, tuple(problems), time.monotonic() - began)


_GIT_POINTS = ("after-commit", "after-attempt", "after-journal-committed")
_LOOP_POINTS = ("after-run",)


def _final(project: Path, acknowledged: Path) -> list[str]:
    """One more recovery that is not killed, with git; then everything must agree, and a second changes
    nothing."""
    last = Supervisor(project, acknowledged, git=True)
    last.results.commit_pending(last=True)
    log, head = (project / "results.jsonl").read_bytes(), last.results.history.head
    found = [check.text for check in verify(project, last.state) if check.result == "problem"]
    promised = acknowledged.read_text().split("\n")
    intents = sum(line.startswith("intent") for line in promised)
    charges = sum(line == "charge" for line in promised)
    history = last.results.history
    if not intents <= history.experiments <= intents + len(promised):
        found.append(f"{history.experiments} experiments are counted, and {intents} were acknowledged")
    if history.usd is not None and history.usd < 0.001 * charges - 1e-9:
        found.append(f"${history.usd:.3f} are counted, and {charges} charges were acknowledged")
    found += [f"left behind: {path}" for path in project.rglob("*.tmp")]
    check = subprocess.run(
        ["git", "fsck", "--strict", "--no-dangling"], cwd=project, capture_output=True, text=True, check=False
    )
    if check.returncode:
        found.append(f"git fsck: {check.stderr}")
    last._lock.release()
    again = Supervisor(project, acknowledged, git=True)
    if (project / "results.jsonl").read_bytes() != log or again.results.history.head != head:
        found.append("a second recovery changed something")
    again._lock.release()
    return found


def _settled_lost(promised: list[list[str]], there: Counter[str]) -> list[str]:
    settled = [words[1] for words in promised if words[0] == "settled"]
    return [f"the result of {uid} is lost" for uid in settled if f"{uid}.1" not in there]


def main() -> None:
    count = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as root:
        os.environ["AUTOINTERP_STATE_DIR"] = f"{root}/state"
        score = campaign(Path(root), count, seed)
        sys.stdout.write(f"{score}\n")
        sys.stdout.write(f"state: {sum(1 for _ in state_dir(Path(root) / 'project').rglob('*'))} files\n")
        sys.exit(bool(score.lost or score.doubled or score.problems))


if __name__ == "__main__":
    main()
