"""A long night in little time: `python -m tests.agent.soak COUNT [SEED]`.

One supervised run of COUNT fast experiments in the jail, through the real loop. One of 100 crashes, one hangs
until its time box ends, one floods its output, one tries to change the contract's files, and before one of
100 the researcher's service fails. Whatever happens, nothing is lost or doubled, the dollars are exact, and
memory, descriptors, threads and the time of one experiment do not grow.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import psutil

from mlxterp.autointerpret.contract import digest, state_dir
from mlxterp_agent.events import Event
from mlxterp_agent.integrity.verify import verify
from mlxterp_agent.researchers.base import IDLE, Done, ExperimentOutcome, ResearcherState, Situation, Working
from mlxterp_agent.run_config import Options
from mlxterp_agent.storage.state_dir import State
from mlxterp_agent.supervisor.loop import run
from tests.agent.fakes import entries, make_project, source

FAULTS = {
    "crash": "import os\nos.abort()",
    "hang": "import time\nwhile True:\n    time.sleep(1)",
    "flood": "import os\nwhile True:\n    os.write(1, b'x' * 1_000_000)",
    "tamper": "for name in ('setup.py', 'results.jsonl'):\n    open(name, 'w')",
}
STATUSES = {"crash": "crashed", "hang": "timeout", "flood": "output_limit", "tamper": "error"}
CALL_USD = 0.001
TIME_BOX = 5.0


class Sample(NamedTuple):
    """What the supervisor used after so many experiments."""

    number: int
    megabytes: float
    descriptors: int
    threads: int
    at: float


class Night:
    """The researcher: one experiment a turn, each one with one charged call."""

    name = "soak"
    model: str | None = None
    session: str | None = None
    answered = True

    def __init__(self, count: int, seed: int, every: int) -> None:
        self.kinds: list[str] = []
        self.samples: list[Sample] = []
        self.calls = 0
        self._count, self._every = count, every
        self._chance = random.Random(seed)
        self._away = 0
        self._situation: Situation | None = None
        self._process = psutil.Process()
        self._state: ResearcherState = IDLE

    def begin_turn(self, situation: Situation) -> None:
        self._situation = situation
        if len(self.kinds) >= self._count:
            self._state = Done("the night is over")
            return
        number = len(self.kinds)
        if number % self._every == 0:
            self._sample(number)
        fails = self._chance.random() < 0.01
        self._call(situation, lost=fails)
        self._away = 2 if fails else 0
        chosen = self._chance.random()
        kind = next((name for at, name in enumerate(FAULTS, 1) if chosen < 0.01 * at), "fast")
        self.kinds.append(kind)
        text = FAULTS.get(kind, "")
        if kind == "fast":
            spread = [(number * step) % 999_983 + 0.5 for step in (7919, 104_729, 1_299_709)]
            text = (
                f"log('n{number}', {dict(zip('abc', spread, strict=True))}, informative={number % 10 == 0})"
            )
        (situation.project / "experiment.py").write_text(source(f"# {number}\n{text}"))

    def poll(self) -> ResearcherState:
        if self._away:
            self._away -= 1
            return Working("its service is away", offers=False)
        return self._state

    def tell(self, outcome: ExperimentOutcome) -> None:
        """Nothing is learned here."""

    def close(self) -> None:
        self._sample(len(self.kinds))

    def _call(self, situation: Situation, *, lost: bool) -> None:
        """A call of the service; one whose answer was lost is charged what was reserved for it."""
        self.calls += 1
        call = f"call-{self.calls}"
        situation.hold(call, CALL_USD, 10)
        situation.charge(CALL_USD, 10, call=call, details={"lost": lost})

    def _sample(self, number: int) -> None:
        with self._process.oneshot():
            megabytes = self._process.memory_info().rss / 1e6
            fds, threads = self._process.num_fds(), self._process.num_threads()
        self.samples.append(Sample(number, megabytes, fds, threads, time.monotonic()))


class Report(NamedTuple):
    """What a night did, and what is wrong after it.

    Attributes:
        seconds: of one experiment, median over the samples of the first and of the last third.
    """

    experiments: int
    statuses: dict[str, int]
    samples: list[Sample]
    seconds: tuple[float, float]
    problems: list[str]


def soak(root: Path, count: int, seed: int) -> Report:
    """One night in `root`."""
    project = make_project(root / "project", max_experiments=2 * count)
    every = max(count // 20, 5)
    night, told = Night(count, seed, every), Counter[str]()

    def emit(event: Event) -> None:
        told[type(event).__name__] += 1

    ended = run(project, night, Options(time_per_experiment=TIME_BOX), emit)
    problems = [] if ended.exit_code == 0 else [f"it ended with {ended.exit_code}: {ended.reason}"]
    log = entries(project)
    ran = [entry.record or {} for entry in log]
    statuses = [str((record.get("execution") or {}).get("status")) for record in ran]
    expected = [STATUSES.get(kind, "ok") for kind in night.kinds]
    problems += [
        f"experiment {number} ({kind}) ended as {status}"
        for number, (kind, wanted, status) in enumerate(zip(night.kinds, expected, statuses, strict=False))
        if status != wanted
    ][:5]
    if len(log) != count:
        problems.append(f"{count} experiments ran, and the log has {len(log)} lines")
    if len({record.get("uid") for record in ran}) != len(log):
        problems.append("a line is there twice")
    state = State(state_dir(project))
    problems += [check.text for check in verify(project, state) if check.result == "problem"][:5]
    usd = (ran[-1].get("spent") or {}).get("usd") if ran else None
    if usd is None or abs(usd - CALL_USD * count) > 1e-9:
        problems.append(f"${usd} are counted after {count} calls of ${CALL_USD}")
    setup = digest((project / "setup.py").read_bytes())
    if any((record.get("digests") or {}).get("setup") != setup for record in ran):
        problems.append("setup.py was changed")
    if left := [child.pid for child in psutil.Process().children(recursive=True)]:
        problems.append(f"processes are left: {left}")
    if left := os.listdir(state.tmp_dir):
        problems.append(f"temporary directories are left: {left}")
    problems += _growth(night.samples)
    return Report(len(log), dict(Counter(statuses)), night.samples, _seconds(night.samples), problems)


def _seconds(samples: list[Sample]) -> tuple[float, float]:
    each = [
        (after.at - before.at) / (after.number - before.number)
        for before, after in itertools.pairwise(samples)
        if after.number > before.number
    ]
    third = max(len(each) // 3, 1)
    return statistics.median(each[:third]), statistics.median(each[-third:])


def _growth(samples: list[Sample]) -> list[str]:
    """Descriptors and threads stay the same; memory grows by 5 MB for 10,000 experiments at most."""
    first, last = samples[min(2, len(samples) - 1)], samples[-2]
    found = []
    if last.descriptors > first.descriptors + 2:
        found.append(f"descriptors grew from {first.descriptors} to {last.descriptors}")
    if last.threads > first.threads + 1:
        found.append(f"threads grew from {first.threads} to {last.threads}")
    allowed = 3.0 + 5.0 * (last.number - first.number) / 10_000
    if last.megabytes > first.megabytes + allowed:
        found.append(f"memory grew from {first.megabytes:.1f} to {last.megabytes:.1f} MB")
    return found


def main() -> None:
    count = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as root:
        os.environ["AUTOINTERP_STATE_DIR"] = f"{root}/state"
        began = time.monotonic()
        report = soak(Path(root), count, seed)
        for sample in report.samples:
            sys.stdout.write(
                f"{sample.number:6} {sample.megabytes:6.1f} MB {sample.descriptors:3} descriptors "
                f"{sample.threads:3} threads {sample.at - began:8.1f} s\n"
            )
        early, late = report.seconds
        sys.stdout.write(f"{report.experiments} lines: {report.statuses}\n")
        sys.stdout.write(f"an experiment took {early:.3f} s at first and {late:.3f} s at the end\n")
        sys.stdout.write("\n".join(report.problems or ["nothing is wrong"]) + "\n")
        sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
