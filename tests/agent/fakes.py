"""A contract-complete project without a model, a researcher that proposes a list, and a supervisor to kill.

`python -m tests.agent.fakes DIR NAME ...` supervises DIR in a process of its own with the experiments of
these names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mlxterp.autointerpret.contract import ProjectConfig, write_config
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.log import ExperimentLog
from mlxterp_agent.events import Event
from mlxterp_agent.exit_codes import Ended
from mlxterp_agent.researchers.base import (
    IDLE,
    Done,
    ExperimentOutcome,
    ResearcherState,
    Situation,
)
from mlxterp_agent.run_config import Options
from mlxterp_agent.supervisor.loop import run

ROOT = Path(__file__).resolve().parents[2]

SETUP = '''"""No model: numbers only."""

import json  # what an experiment finds already imported


class Fake:
    name = "no-model"
    digest = "0" * 64
    blas = "none"


model = Fake()
dataset = [1.0, 2.0, 3.0]
metrics = {"mean": sum}
QUESTION = "What is the mean?"
'''

_LOGS = """
from mlxterp.autointerpret import ExperimentEntry, ExperimentLog
from mlxterp.measurements import recorder

def log(name, numbers, informative=True):
    recorder.add_method("counting")  # stands for the analysis that a model would be run for
    ExperimentLog("results.jsonl").append(
        ExperimentEntry(
            hypothesis=f"{name} holds",
            method="counting",
            result={"numbers": numbers},
            informative=informative,
            conclusion=f"{name} was found",
            duration_seconds=0.1,
        )
    )

from setup import dataset
"""

SOURCES = {
    "alpha": 'log("alpha", {"a": 1.0, "b": 2.0, "c": 3.5})',
    "beta": 'log("beta", {"a": 4.0, "b": 5.0, "c": 6.5})',
    "gamma": 'log("gamma", {"a": 7.0, "b": 8.0, "c": 9.5})',
    "dull": 'log("dull", {"a": 0.1, "b": 0.2, "c": 0.3}, informative=False)',
    "copy-of-alpha": '# in other words\nlog("something else", {"x": 1.0, "y": 2.0, "z": 3.5})',
    "two": """
log("first of two", {"a": 1.1, "b": 2.1, "c": 3.1})
log("second of two", {"a": 1.2, "b": 2.2, "c": 3.2})
""",
    "crash": """
log("before the crash", {"a": 9.1, "b": 9.2, "c": 9.3})
raise ZeroDivisionError("on purpose")
""",
    "crash-at-once": '"""Does it crash?"""\n\nraise ZeroDivisionError("on purpose")',
    "silent": 'print("only printed")',
    "nan": 'log("nan", {"a": float("nan"), "b": 1.0})',
    "hang": """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    time.sleep(0.05)
""",
    "gated": """
import os, time
from pathlib import Path
while not Path(__file__).with_name("gate").exists():
    time.sleep(0.02)
log("gated", {"a": 6.1, "b": 6.2, "c": 6.3})
""",
    "slow": 'import time\ntime.sleep(1.0)\nlog("slow", {"a": 3.1, "b": 3.2, "c": 3.3})',
    "edits-setup": """
with open("setup.py", "a") as file:
    file.write("dataset = []")
log("edited", {"a": 5.1, "b": 5.2, "c": 5.3})
""",
    "edits-setup-again": """
with open("setup.py", "w"):
    pass
log("edited more", {"a": 6.1, "b": 6.2, "c": 6.3})
""",
    "forges-log": """
import os, pathlib
pathlib.Path("results.jsonl").write_text('{"experiment_id": "0001", "forged": true}' + chr(10))
os._exit(0)
""",
    "declared": """
from mlxterp.autointerpret import Hypothesis, InterventionClaim
HYPOTHESIS = Hypothesis(
    id="H001",
    claim="It is the mean.",
    site=["L0.z"],
    intervention=InterventionClaim("patch", source="clean"),
    metric="mean",
    direction="increase",
    sesoi=0.1,
    forecast={"supported": 0.6, "refuted": 0.1, "ruled_out": 0.3},
    rivals=["It is the median."],
    falsified_if="below 0.1",
)
log("declared", {"a": 2.5, "b": 2.6, "c": 2.7})
""",
    "declared-wrong": """
from mlxterp.autointerpret import Hypothesis
HYPOTHESIS = Hypothesis(id="H002", claim="no forecast")
""",
    "analysis": """
recorder.add_method("counting")
ExperimentLog("results.jsonl").append(
    ExperimentEntry(
        hypothesis="h",
        method="activation_patching",
        result={"analysis": {"kind": "patching", "effects": "nonsense"}, "numbers": {"x": 1.5}},
        informative=True,
        conclusion="an analysis",
        duration_seconds=None,
    )
)
""",
}


def source(name: str) -> str:
    """The experiment.py of this name, or this text, which then begins with a docstring."""
    text = SOURCES.get(name, name)
    return f"{text}\n" if text.startswith('"""') else f"{_LOGS}\n{text}\n"


def make_project(path: Path, *, setup: str = SETUP, max_experiments: int = 100) -> Path:
    """The files of an investigation, as a scaffold leaves them."""
    path.mkdir(parents=True)
    (path / "setup.py").write_text(setup)
    (path / "experiment.py").write_text("# nothing to run yet\n")
    (path / "program.md").write_text("# What is the mean?\n")
    (path / ".gitignore").write_text(".autointerp/\nSTATE.md\nreport*\n")
    (path / "results.jsonl").touch()
    (path / "findings").mkdir()
    (path / "findings" / ".gitkeep").touch()
    write_config(
        path,
        ProjectConfig(max_experiments=max_experiments, model="no-model", question="What is the mean?"),
    )
    return path


class Proposals:
    """A researcher that proposes these experiments, one a turn; what has run already only if `again`."""

    name = "proposals"
    model: str | None = None
    session: str | None = None
    answered = True

    def __init__(
        self,
        names: Sequence[str],
        *,
        before: Callable[[str, Path], None] | None = None,
        again: bool = False,
    ) -> None:
        self.told: list[ExperimentOutcome] = []
        self.situations: list[Situation] = []
        self.closed = False
        self._waiting = list(names)
        self._before = before
        self._again = again
        self._state: ResearcherState = IDLE

    def begin_turn(self, situation: Situation) -> None:
        self.situations.append(situation)
        done = {_experiment_of(entry) for entry in situation.entries}
        while self._waiting:
            name = self._waiting.pop(0)
            if digest_of(name) in done and not self._again:
                continue
            if self._before is not None:
                self._before(name, situation.project)
            (situation.project / "experiment.py").write_text(source(name))
            return
        self._state = Done("every proposal was made")

    def poll(self) -> ResearcherState:
        return self._state

    def tell(self, told: ExperimentOutcome) -> None:
        self.told.append(told)

    def close(self) -> None:
        self.closed = True


def digest_of(name: str) -> str:
    from mlxterp.autointerpret.contract import digest

    return digest(source(name).encode())


def _experiment_of(entry: ExperimentEntry) -> str | None:
    record = entry.record or {}
    ended = (record.get("execution") or {}).get("status") not in ("interrupted", "refused")
    return (record.get("digests") or {}).get("experiment") if ended else None


WITHOUT_JAIL = Options(allow_unsandboxed=True)
"""For experiments that break the contract: in the jail they cannot, and what notices them is behind it."""


def supervise(
    project: Path, names: Sequence[str], *, options: Options | None = None
) -> tuple[Ended, list[Event], Proposals]:
    """Runs these experiments under a real supervisor, in this process."""
    researcher, events = Proposals(names), list[Event]()
    ended = run(project, researcher, options or Options(), events.append)
    return ended, events, researcher


def finished_run(root: Path, names: Sequence[str]) -> tuple[Path, list[Event], Proposals]:
    """A project in `root` after a run of these experiments, its private state in `root/state`. For fixtures
    of a whole module."""
    import pytest  # not in the processes that `supervise_apart` starts

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOINTERP_STATE_DIR", str(root / "state"))
        project = make_project(root / "project")
        _, events, researcher = supervise(project, names)
    return project, events, researcher


def supervise_apart(project: Path, names: Sequence[str], *, fault: str = "") -> subprocess.Popen[str]:
    """The same in a process of its own, which dies at `fault`."""
    environment = {**os.environ, "AUTOINTERP_FAULT": fault}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.agent.fakes", str(project), *names],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def entries(project: Path) -> list[ExperimentEntry]:
    return ExperimentLog(project / "results.jsonl").entries()


def verdicts(project: Path) -> list[str]:
    return [str((entry.record or {})["verdict"]) for entry in entries(project)]


def git(project: Path, *arguments: str) -> str:
    """What git says about the project."""
    return subprocess.run(
        ["git", *arguments], cwd=project, check=True, capture_output=True, text=True
    ).stdout.strip()


if __name__ == "__main__":

    def tell(event: Event) -> None:
        sys.stdout.write(json.dumps(type(event).__name__) + "\n")
        sys.stdout.flush()

    sys.exit(run(Path(sys.argv[1]), Proposals(sys.argv[2:]), Options(), tell).exit_code)
