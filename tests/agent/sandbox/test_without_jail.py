"""Every hostile file that aims at the project or at the state directory, run without a jail under a real
supervisor: what it did is noticed, and what the supervisor promises to keep is there afterwards.

What a jail alone prevents is in `NOT_PROMISED`, with the reason.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from mlxterp.autointerpret.contract import state_dir
from mlxterp.errors import MlxterpError
from mlxterp_agent.events import Event, Repaired, Violated, Waiting
from mlxterp_agent.integrity.verify import verify
from mlxterp_agent.storage.state_dir import State
from tests.agent.fakes import WITHOUT_JAIL, finished_run, source, supervise

HOSTILE = sorted((Path(__file__).resolve().parents[2] / "hostile").glob("*.py"))
AIMED = [file for file in HOSTILE if re.search(r"\b(project|state)\b", file.read_text())]

NOT_PROMISED: dict[str, str] = {}
"""Why what this attack did is neither noticed nor put back without a jail."""


class After(NamedTuple):
    """What is there after an attack and one more start."""

    told: list[Event]
    stopped: str | None


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after one kept experiment; its state directory is copied with it."""
    project, _, _ = finished_run(tmp_path_factory.mktemp("finished"), ["alpha", "dull"])
    return project


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    project = tmp_path / "project"
    shutil.copytree(finished, project, symlinks=True)
    former = next((finished.parent / "state").rglob("journal.jsonl")).parent
    shutil.copytree(former, state_dir(project))
    return project


def attacked(place: Path, file: Path) -> After:
    names = {name: str(place.parent / name) for name in ("home", "other", "library", "scratch")}
    for path in names.values():
        Path(path).mkdir()
    names |= {"project": str(place), "state": str(state_dir(place))}
    header = "\n".join(f"{name} = {value!r}" for name, value in names.items()) + "\nvictim = port = 0\n"
    body = source(header + file.read_text())
    told: list[Event] = []
    stopped = None
    for proposals in ([body], ["beta"]):
        try:
            _, events, _ = supervise(place, proposals, options=WITHOUT_JAIL)
            told += events
        except MlxterpError as problem:
            stopped = str(problem)
    return After(told, stopped)


@pytest.mark.slow
@pytest.mark.parametrize("file", AIMED, ids=lambda file: file.stem)
def test_without_a_jail_an_attack_is_noticed_and_what_was_promised_is_put_back(place: Path, file: Path):
    kept = {
        name: (place / name).read_bytes() for name in ("setup.py", "results.jsonl", ".autointerp/config.json")
    }

    after = attacked(place, file)

    said = [e for e in after.told if isinstance(e, Violated | Repaired | Waiting)]
    if file.stem in NOT_PROMISED:
        return
    assert after.stopped is None or "Traceback" not in after.stopped
    assert (place / "setup.py").read_bytes() == kept["setup.py"]
    assert (place / ".autointerp/config.json").read_bytes() == kept[".autointerp/config.json"]
    assert (place / "results.jsonl").read_bytes().startswith(kept["results.jsonl"])
    assert said or after.stopped, "nothing was noticed"
    problems = [c for c in verify(place, State(state_dir(place))) if c.result == "problem"]
    assert problems == []
