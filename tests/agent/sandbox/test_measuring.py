"""The judge's processes: one that lives on and gives the numbers of a fresh one, and what ends it."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from mlxterp.autointerpret import Hypothesis, InterventionClaim
from mlxterp.worlds import toy_induction
from mlxterp_agent.sandbox import measuring
from mlxterp_agent.sandbox.jail import protection
from mlxterp_agent.sandbox.measuring import MeasurementFailed, Measurer, Place
from mlxterp_agent.storage.state_dir import open_state
from tests.agent.judge.claims import TOY
from tests.agent.sandbox.test_runner import eventually, is_gone

pytestmark = pytest.mark.slow  # each process loads the toy


def _never():
    return None


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    project = tmp_path / "toy"
    project.mkdir()
    state = open_state(project)
    for setup in (state.sealed_dir / "setup.py", project / "setup.py"):
        setup.write_text(TOY.format(n=24))
    return Place(
        project=project, state=state, setup=state.sealed_dir / "setup.py", isolation=protection().kind
    )


@pytest.fixture
def measurer(place):
    made = Measurer(place)
    yield made
    made.close()


def _job(site="L1.H1", **more):
    claim = Hypothesis(
        id="H1",
        claim="It copies.",
        site=[site],
        intervention=InterventionClaim("patch"),
        metric="logit_diff",
        direction="increase",
        sesoi=0.1,
        forecast={"supported": 0.5, "refuted": 0.2, "ruled_out": 0.3},
        rivals=["Any head does."],
        falsified_if="below 0.1",
    )
    return {
        "claims": [claim.to_dict()],
        "pairs": {"dataset": list(range(24))},
        "measure": ["claim", "placebos"],
        "seed": 5,
        **more,
    }


def _processes() -> list[psutil.Process]:
    below = psutil.Process().children(recursive=True)
    return [each for each in below if "measurer.py" in " ".join(each.cmdline()[:5])]


def test_one_process_serves_the_claims_of_a_night_with_the_numbers_of_a_fresh_one(measurer):
    first = measurer.measure(_job(), stop=_never)
    (process,) = _processes()
    for i in range(8):
        measurer.measure(_job(f"L{i % 2}.H{i // 2}", seed=i), stop=_never)
    tenth = measurer.measure(_job(), stop=_never)
    computed = measurer.cpu_seconds
    cold, cold_again = measurer.measure_cold([_job(), _job()], stop=_never)

    assert first == tenth == cold == cold_again
    assert _processes() == [process]
    assert measurer.cpu_seconds > computed > 0
    measurer.close()
    assert is_gone(process.pid)
    assert list(measurer._place.state.tmp_dir.iterdir()) == []


def test_a_process_that_was_ended_between_two_claims_is_replaced(measurer):
    before = measurer.measure(_job(), stop=_never)
    _processes()[-1].kill()

    assert measurer.measure(_job(), stop=_never) == before


def test_a_person_who_ends_the_run_does_not_wait_for_a_measurement(measurer):
    measurer.measure(_job(), stop=_never)
    processes = _processes()

    with pytest.raises(MeasurementFailed) as ended:
        measurer.measure(_job(measure=["gate"], metric="logit_diff", twin_seed=0), stop=lambda: "Ctrl-C")

    assert ended.value.kind == "interrupted"
    assert all(is_gone(each.pid) for each in processes)
    assert _processes() == []


def test_what_fails_says_its_kind_and_the_next_claim_is_measured_by_a_new_process(measurer):
    measurer.measure(_job(), stop=_never)
    (process,) = _processes()

    with pytest.raises(MeasurementFailed) as failed:
        measurer.measure(_job("L7.H1"), stop=_never)

    assert failed.value.kind == "bad_claim"
    assert is_gone(process.pid)
    assert measurer.measure(_job(), stop=_never)["claims"]


def test_a_setup_that_is_sealed_anew_is_the_one_that_is_measured(measurer, place):
    before = measurer.measure(_job(), stop=_never)
    place.setup.write_text(TOY.format(n=25))

    after = measurer.measure(_job(pairs={"dataset": list(range(25))}), stop=_never)

    assert len(before["pairs"]) == 24
    assert len(after["pairs"]) == len(toy_induction(25).pairs)


def test_a_process_that_memory_does_not_hold_several_times_is_ended_after_each_claim(measurer, monkeypatch):
    monkeypatch.setattr(measuring, "MODELS_AT_ONCE", 10**9)

    first, second = (measurer.measure(_job(), stop=_never) for _ in range(2))

    assert first == second
    assert _processes() == []


def test_the_processes_of_a_supervisor_that_was_killed_end(place):
    script = (
        "from mlxterp_agent.sandbox.measuring import *\n"
        "from mlxterp_agent.storage.state_dir import open_state\n"
        "from pathlib import Path\nimport json, sys\n"
        "project, setup, isolation = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]\n"
        "place = Place(project=project, state=open_state(project), setup=setup, isolation=isolation)\n"
        "measurer = Measurer(place)\nmeasurer.measure(json.loads(sys.argv[4]), stop=lambda: None)\n"
        "print('measured', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            script,
            *map(str, (place.project, place.setup, place.isolation)),
            json.dumps(_job()),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as supervisor:
        assert supervisor.stdout.readline() == b"measured\n"
        below = psutil.Process(supervisor.pid).children(recursive=True)
        supervisor.kill()

    assert len(below) >= 2
    assert eventually(lambda: all(is_gone(each.pid) for each in below))
