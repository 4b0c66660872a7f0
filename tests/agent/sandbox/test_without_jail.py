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

from mlxterp.autointerpret.contract import CONFIG, state_dir
from mlxterp.errors import MlxterpError
from mlxterp_agent.events import Decided, Event, Repaired, Violated, Waiting
from mlxterp_agent.integrity.verify import verify
from mlxterp_agent.storage.state_dir import State
from tests.agent.fakes import WITHOUT_JAIL, finished_run, make_project, source, supervise

HOSTILE = sorted((Path(__file__).resolve().parents[2] / "hostile").glob("*.py"))
AIMED = [file for file in HOSTILE if re.search(r"\b(project|state)\b", file.read_text())]

_READS = "what is read leaves no trace; only a jail hides it"
_UNUSED = "it stays where it was planted, and nothing of the supervisor reads, imports or runs it"
_OWN = "it belongs to the researcher or to a person, who may change it at any time"
NOT_PROMISED = {
    **dict.fromkeys(("list_state", "read_journal", "read_salt", "read_key_file"), _READS),
    **dict.fromkeys(
        (
            *("plant_alternates", "plant_attributes", "plant_bytecode", "plant_gitmodules", "plant_index"),
            *("plant_history", "plant_pytest_plugin", "plant_replace_ref", "plant_sitecustomize"),
            *("fill_state", "shadow_a_module"),
        ),
        _UNUSED,
    ),
    "write_experiment": _OWN,
    "link_for_report": "it is moved aside, with a notice, when the report is written",
    "change_mode": "times and modes are not compared, and decide nothing",
    "change_times": "times and modes are not compared, and decide nothing",
    "mount_over": "it mounts in a namespace of its own, which ends with it",
    "plant_key": "a journal that has another key does not count; the log does not rest on it",
    "turn_back_heartbeat": "it hides time only if the supervisor is killed before its next beat",
}
"""Why what this attack did is neither noticed nor put back without a jail."""

COMES_BY_ITSELF = ("does not count", "autointerp start` commits it")
"""What `verify` says of damage that needs nothing, and of a commit that waits for a lock of git."""


class After(NamedTuple):
    """What is there after an attack and one more start."""

    told: list[Event]
    said: list[str]
    status: str | None


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after one kept experiment; its state directory is copied with it."""
    project, _, _ = finished_run(tmp_path_factory.mktemp("finished"), ["alpha", "dull"])
    return project


@pytest.fixture
def places(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A project with results, and one without; some attacks need a name that is not taken yet."""
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "states"))
    old = tmp_path / "old"
    shutil.copytree(finished, old, symlinks=True)
    shutil.copytree(next((finished.parent / "state").rglob("journal.jsonl")).parent, state_dir(old))
    new = make_project(tmp_path / "new")
    (new / "findings" / ".gitkeep").unlink()
    return [old, new]


def attacked(place: Path, file: Path) -> After:
    folder = place.with_name(f"{place.name}-around")
    names = {name: str(folder / name) for name in ("home", "other", "library", "scratch")}
    for path in names.values():
        Path(path).mkdir(parents=True)
    names |= {"project": str(place), "state": str(state_dir(place))}
    header = "\n".join(f"{name} = {value!r}" for name, value in names.items()) + "\nvictim = port = 0\n"
    after = After([], [], None)
    for proposals in ([source(header + file.read_text())], ["beta"]):
        try:
            ended, events, _ = supervise(place, proposals, options=WITHOUT_JAIL)
        except (MlxterpError, OSError) as problem:
            after.said.append(str(problem))  # the command says it in one sentence
            continue
        after.told.extend(events)
        after.said.append(ended.reason)
    statuses = [e.entry.record["execution"]["status"] for e in after.told if isinstance(e, Decided)]
    return after._replace(status=statuses[0] if statuses else None)


@pytest.mark.slow
@pytest.mark.parametrize("file", AIMED, ids=lambda file: file.stem)
def test_an_attack_is_noticed_and_what_was_promised_is_put_back(places: list[Path], file: Path):
    for place in places:
        kept = {name: (place / name).read_bytes() for name in ("setup.py", "results.jsonl", CONFIG)}
        after = attacked(place, file)
        if after.status != "error":
            break
    else:
        pytest.fail("the attack works in neither project")

    if place.exists():
        assert (place / "setup.py").read_bytes() == kept["setup.py"]
        assert (place / CONFIG).read_bytes() == kept[CONFIG]
        assert (place / "results.jsonl").read_bytes().startswith(kept["results.jsonl"])
        problems = [c.text for c in verify(place, State(state_dir(place))) if c.result == "problem"]
        assert [each for each in problems if not any(words in each for words in COMES_BY_ITSELF)] == []
    if file.stem not in NOT_PROMISED:
        quiet = after.said == ["every proposal was made"] * 2
        noticed = [e for e in after.told if isinstance(e, Violated | Repaired | Waiting)]
        assert noticed or not quiet, "nothing was noticed"
