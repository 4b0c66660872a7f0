"""A project begun with version 0.1.0 is resumed, reported and verified as that version would have done it.

`tests/data/project-0.1.0/project.tar.xz` holds what version 0.1.0 left: the scaffold `induction` after six
experiments (scripted, declared, crashed, logged by hand), the last of them killed between the journal and the
log. `expected.json` holds what version 0.1.0 itself then answered to the commands in `answers`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mlxterp.autointerpret.contract import digest, state_dir

DATA = Path(__file__).resolve().parents[1] / "data" / "project-0.1.0"

NEW_EXPERIMENT = """
from setup import dataset, model

from mlxterp.autointerpret import ExperimentEntry, ExperimentLog

model.logits(dataset[0].clean)
ExperimentLog("results.jsonl").append(
    ExperimentEntry("h", "counting", {"n": len(dataset), "x": 0.5, "y": 0.25}, True, "c", None)
)
"""


def unpack(directory: Path) -> Path:
    """The project and, where AUTOINTERP_STATE_DIR says, the journal and the seal that belong to it."""
    with tarfile.open(DATA / "project.tar.xz") as archive:
        archive.extractall(directory, filter="data")
    state = state_dir(directory / "project")
    state.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(directory / "state", state)
    return directory / "project"


def answers(project: Path) -> dict[str, Any]:
    """What the command answers and leaves behind: exit codes, keys, and the bytes that must not change."""
    found: dict[str, Any] = {"verify before the resume": _verify(project)}
    known = len(_events(project))
    found["resume"] = _keys(project, "start", "--agent", "none")
    found["results.jsonl"] = digest((project / "results.jsonl").read_bytes())
    found["findings"] = _digests(project / "findings")
    found["journal of the resume"] = _events(project)[known:]
    found["verify"] = _verify(project)
    found["status"] = _status(project)
    found["log"] = _keys(project, "log")
    found["kept"] = [line["experiment_id"] for line in _run(project, "log", "--kept")["lines"]]
    found["record"] = sorted(_run(project, "log", "-n", "1")["lines"][0]["record"])
    found["report"] = _keys(project, "report")
    known = len(_events(project))
    (project / "experiment.py").write_text(NEW_EXPERIMENT)
    found["another experiment"] = _keys(project, "start", "--agent", "none", "--max-experiments", "7")
    found["journal of another experiment"] = _events(project)[known:]
    found["its line"] = _shape(_run(project, "log", "-n", "1")["lines"][0])
    found["a run beyond the budget"] = _keys(project, "run")
    (project / "setup.py").write_text("model = None\n")
    found["start with another setup.py"] = _run(project, "start", "--agent", "none")["exit_code"]
    found["verify with another setup.py"] = _verify(project)
    return found


def _run(project: Path, command: str, *options: str) -> dict[str, Any]:
    line = [sys.executable, "-P", "-m", "mlxterp_agent.cli", command, str(project), *options, "--json"]
    ended = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return {"exit_code": ended.returncode, "lines": [json.loads(text) for text in ended.stdout.splitlines()]}


def _keys(project: Path, command: str, *options: str) -> dict[str, Any]:
    ran = _run(project, command, *options)
    # What a line says of the held-out pairs ("evidence"), and of progress, came with later versions.
    said = [line for line in ran["lines"] if line.get("event") != "progress"]
    lines = [{"event": line.get("event"), "keys": sorted({*line} - {"evidence"})} for line in said]
    return {"exit_code": ran["exit_code"], "lines": lines}


def _verify(project: Path) -> dict[str, Any]:
    ran = _run(project, "verify")
    return {"exit_code": ran["exit_code"], "checks": [[x["check"], x["result"]] for x in ran["lines"]]}


def _status(project: Path) -> dict[str, Any]:
    (status,) = _run(project, "status")["lines"]
    assert status.pop("cpu_seconds") == {"exploring": 0.0, "judging": 0.0}  # that version did not measure it
    return {**status, "spent": {**status["spent"], "seconds": "time passes"}}


def _events(project: Path) -> list[list[Any]]:
    """Each event of the journal by its name and its keys, without the clock that a slow machine adds."""
    lines = (state_dir(project) / "journal.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if event["event"] != "clock"]
    return [[event["event"], sorted(event.keys() - set(_STAMPS))] for event in events]


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in files}


_STAMPS = ("prev", "mac", "uncounted_s")
"""Keys of an event that came with later versions: they authenticate it."""

_ADDED = ("isolation", "files", "measured", "predicted", "cpu_seconds")
"""Keys of a record that came with later versions, and what version 0.1.0 left empty."""


def _shape(value: Any) -> Any:
    """The keys of nested objects, and the kind of what they hold; of the lists, how long they are."""
    if isinstance(value, dict):
        # Which BLAS computes, and whether it has a name at all, is the machine's affair.
        return {name: _shape(item) for name, item in value.items() if name not in ("blas", *_ADDED)}
    return f"list of {len(value)}" if isinstance(value, list) else type(value).__name__


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "states"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    return unpack(tmp_path)


@pytest.mark.slow
def test_a_project_of_version_0_1_0_goes_on_as_it_would_have_with_that_version(project):
    expected = json.loads((DATA / "expected.json").read_text())
    assert expected["its line"]["record"].pop("measured") == "NoneType"
    # Bytes that ran before get their old verdict also beyond the budget; that version denied it.
    assert expected.pop("a run beyond the budget")["lines"] == [{"event": None, "keys": ["not_run"]}]

    found = answers(project)

    (old,) = found.pop("a run beyond the budget")["lines"]
    assert {"experiment_id", "record"} <= set(old["keys"])
    assert found == expected
