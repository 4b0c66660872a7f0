# ruff: noqa: T201 - a command that prints
"""What supervision costs: `python -m tests.benchmarks.night [--lines N] [--only NAME ...]`.

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
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mlxterp.autointerpret.encoding import encode_object
from tests.agent.fakes import make_project
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
    seconds: float
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
    return Took(time.monotonic() - began, peak, out)


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
        foreign = run("-c", READY, str(project), acknowledged)
        yield Figure("first start over a log written elsewhere", foreign.seconds, 20.0, "s")
        yield Figure("its memory", foreign.megabytes, 150.0, "MB")
        again = min(run("-c", READY, str(project), acknowledged) for _ in range(3))
        yield Figure("start over a known log", again.seconds, 2.0, "s")
        yield Figure("its memory", again.megabytes, 150.0, "MB")
        status = min(run("-m", "mlxterp_agent.cli", "status", str(project)) for _ in range(3))
        yield Figure("status", status.seconds, 0.5, "s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=LINES)
    chosen = parser.parse_args()
    for figure in starts(chosen.lines):
        print(f"{figure.name}: {figure.value:.3g} {figure.unit} (goal {figure.goal:g})", flush=True)


if __name__ == "__main__":
    main()
