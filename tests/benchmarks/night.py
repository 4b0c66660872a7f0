# ruff: noqa: T201 - a command that prints
"""What supervision costs: `python -m tests.benchmarks.night [--lines N] [--only jail appends turns starts]`.

Each figure with its goal: the jail around a process, a durable append, from an edit to the start of its run,
a durable commit with the files of a finding, memory of the supervisor, and a start and a `status` over a long
log, also over one that was written elsewhere. Processes are measured from outside: wall time and peak memory
of a child, as the kernel counts them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from mlxterp.autointerpret.encoding import encode_object
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.log import ExperimentLog
from mlxterp_agent.events import Committed, Decided, Event, Running
from mlxterp_agent.researchers.base import Situation
from mlxterp_agent.run_config import Options
from mlxterp_agent.sandbox.jail import experiment_policy, linux
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.supervisor.loop import run as run_supervised
from tests.agent.fakes import Proposals, make_project
from tests.agent.kills import Supervisor

LINES = 100_000


class Figure(NamedTuple):
    """One measured figure and its goal, in the same unit."""

    name: str
    value: float
    goal: float
    unit: str


def long_log(project: Path, lines: int) -> None:
    """Makes results.jsonl as long as that: sealed lines of distinct experiments."""
    (template,) = (json.loads(line) for line in (project / "results.jsonl").read_bytes().splitlines()[:1])
    sha, at = hashlib.sha256(), 0
    with open(project / "results.jsonl", "wb") as file:
        for number in range(1, lines + 1):
            name = f"{number:032x}"
            digests = {
                **template["record"]["digests"],
                "experiment": hashlib.sha256(name.encode()).hexdigest(),
            }
            record = {**template["record"], "uid": f"{name}.1", "run": f"{number:04d}", "digests": digests}
            record |= {"seq": number, "at": at, "seal": sha.hexdigest()}
            spread = (number * 2654435761) % 2**32
            line = {
                **template,
                "experiment_id": f"{number:04d}",
                "hypothesis": f"h{number}",
                "result": {"a": spread / 7, "b": spread / 11, "c": spread / 13},
                "record": record,
            }
            raw = encode_object(line)
            raw = raw if raw.endswith(b"\n") else raw + b"\n"
            file.write(raw)
            sha.update(raw)
            at += len(raw)


class Took(NamedTuple):
    """What a process took: wall time, processor time, peak memory; and what it printed."""

    seconds: float
    cpu: float
    megabytes: float
    out: str


def run(*arguments: str, timeout: float = 600) -> Took:
    """A process from its start to its end, with its peak memory."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    peak = usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024 * 1024)
    return Took(time.monotonic() - began, usage.ru_utime + usage.ru_stime, peak, out)


READY = """
import sys
from pathlib import Path
from tests.agent.kills import Supervisor
Supervisor(Path(sys.argv[1]), Path(sys.argv[2]), git=False)
"""


def starts(lines: int) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as root:
        os.environ["AUTOINTERP_STATE_DIR"] = f"{root}/state"
        project, acknowledged = make_project(Path(root) / "project"), f"{root}/acknowledged"
        first = Supervisor(project, Path(acknowledged), git=False)
        first.run(1)
        first._lock.release()
        long_log(project, lines)
        size = (project / "results.jsonl").stat().st_size / 1e6
        print(f"a log of {lines:,} lines, {size:.0f} MB")
        os.environ["AUTOINTERP_STATE_DIR"] = f"{root}/elsewhere"
        for name, goal, tries in (("first start over a log written elsewhere", 2.0, 1), ("a start", 2.0, 3)):
            took = min(run("-c", READY, str(project), acknowledged) for _ in range(tries))
            yield Figure(name, took.seconds, goal, "s")
            yield Figure(f"{name}: processor time", took.cpu, goal, "s")
            yield Figure(f"{name}: memory", took.megabytes, 150.0, "MB")
        status = min(run("-m", "mlxterp_agent.cli", "status", str(project)) for _ in range(5))
        yield Figure("status", status.seconds, 0.5, "s")
        yield Figure("status: processor time", status.cpu, 0.5, "s")


CLOSES = """
import json, runpy, sys, time
roots, write = json.loads(sys.argv[1])
module = runpy.run_path(sys.argv[2])
began = time.perf_counter()
module["close"](roots, write)
print(time.perf_counter() - began)
"""


def jail() -> Iterator[Figure]:
    """The time that a process needs to close the jail around itself, as an experiment's does."""
    if sys.platform != "linux":
        return
    with tempfile.TemporaryDirectory() as root:
        names = {name: Path(root, name) for name in ("project", "state", "scratch")}
        for path in names.values():
            path.mkdir()
        policy = experiment_policy(**names, caches=[])
        places = json.dumps([policy.roots(), policy.write])
        took = [float(run("-I", "-c", CLOSES, places, linux.__file__).out) for _ in range(9)]
    yield Figure("closing the jail", 1000 * statistics.median(took), 1.0, "ms")


def appends() -> Iterator[Figure]:
    """One event of the journal and one line of the log, each on the disk when it returns."""
    with tempfile.TemporaryDirectory() as root:
        journal = Journal(Path(root) / "journal.jsonl")
        journal.open()
        log = ExperimentLog(Path(root) / "results.jsonl")
        entry = ExperimentEntry(
            "h", "counting", {"x": 1.0}, informative=True, conclusion="c", duration_seconds=0.1
        )
        for name, append in (
            ("an event of the journal", lambda: journal.append("note", text="x" * 500)),
            ("a line of the log", lambda: log.append(entry)),
        ):
            yield Figure(f"{name}, durably", 1000 * _median(append, 60), 10.0, "ms")


class _Timed(Proposals):
    """Proposals that note when each was written."""

    def begin_turn(self, situation: Situation) -> None:
        super().begin_turn(situation)
        self.written = time.monotonic()


def turns() -> Iterator[Figure]:
    """From an edit to the start of its run, and from a decision to its commit with the finding's files."""
    with tempfile.TemporaryDirectory() as root:
        os.environ["AUTOINTERP_STATE_DIR"] = f"{root}/state"
        texts = [f"log('n{n}', {{'a': {n}.5, 'b': {n * n}.25, 'c': {7 * n}.75}})" for n in range(1, 13)]
        researcher = _Timed(texts)
        starts: list[float] = []
        commits: list[float] = []
        decided = 0.0

        def note(event: Event) -> None:
            nonlocal decided
            now = time.monotonic()
            if isinstance(event, Running):
                starts.append(now - researcher.written)
            elif isinstance(event, Decided):
                decided = now
            elif isinstance(event, Committed):
                commits.append(now - decided)

        run_supervised(make_project(Path(root) / "project"), researcher, Options(), note)
        yield Figure("from an edit to the start of its run", statistics.median(starts), 0.3, "s")
        yield Figure("commit with the files of a finding", 1000 * statistics.median(commits), 150.0, "ms")
        memory = psutil.Process().memory_info().rss / 1e6
        yield Figure("memory of the supervisor after it", memory, 80.0, "MB")


def _median(call: Callable[[], object], count: int) -> float:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=LINES)
    parser.add_argument("--only", nargs="*", choices=("jail", "appends", "turns", "starts"), default=())
    chosen = parser.parse_args()
    measures: dict[str, Callable[[], Iterator[Figure]]] = {
        "jail": jail,
        "appends": appends,
        "turns": turns,
        "starts": lambda: starts(chosen.lines),
    }
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for name in chosen.only or measures:
        for figure in measures[name]():
            over = "" if figure.value <= figure.goal else "  OVER"
            print(f"{figure.name}: {figure.value:.3g} {figure.unit} (goal {figure.goal:g}){over}", flush=True)


if __name__ == "__main__":
    main()
