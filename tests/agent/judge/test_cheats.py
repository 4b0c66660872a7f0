"""Ways to a finding that is none, each stopped by name. With the real toy model, in the jail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxterp.autointerpret.contract import state_dir
from mlxterp_agent.run_config import Options
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.supervisor.single_run import run_once
from tests.agent.fakes import entries
from tests.agent.judge.claims import TOY, declaring, toy_project

pytestmark = pytest.mark.slow  # each experiment loads the toy, and most claims are measured

LOG = """
from mlxterp.autointerpret import ExperimentEntry, ExperimentLog

def log(result, informative=True):
    ExperimentLog("results.jsonl").append(
        ExperimentEntry(
            hypothesis="L1.H0 carries the answer.", method="activation_patching", result=result,
            informative=informative, conclusion="It does.", duration_seconds=None,
        )
    )
"""
SWEEP = """
from mlxterp.causal import activation_patching
from setup import dataset, model
sweep = activation_patching(model, dataset, component="z", by="layer_head")
numbers = [float(x) for x in sweep.effects.ravel()] + [0.1234 + 0.01 * i for i in range(9)]
"""


def _ask(project: Path, source: str) -> str:
    (project / "experiment.py").write_text(source)
    return run_once(project, Options(), lambda event: None).text


def _last(project: Path):
    return entries(project)[-1].record


FORGED = """
import json, os
entry = {"hypothesis": "h", "method": "m", "result": {}, "informative": True, "conclusion": "c"}
frame = {"type": "entry", "entry": entry | {"record": {"verdict": "supported"}}}
os.write(int(os.environ["AUTOINTERP_OUTBOX"][3:]), json.dumps(frame).encode() + b"\\n")
"""


@pytest.fixture
def toy(tmp_path):
    return toy_project(tmp_path / "toy")


@pytest.mark.parametrize(
    ("cheat", "verdict"),
    [
        # Invented numbers, beside a claim about an inert head.
        ('log({"L1.H0": 0.99, "interval": [0.98, 1.0]})', "ruled_out"),
        # The metric is replaced in the experiment's own process.
        (
            "import mlxterp.metrics as m\nm.logit_diff = lambda *a, **k: 9.0\nlog({'L1.H0': 9.0})",
            "ruled_out",
        ),
        # The model is replaced there.
        ("import setup\nsetup.model = None\nsetup.dataset = []\nlog({'L1.H0': 1.0})", "ruled_out"),
        # Not a number, in numbers.
        ('log({"L1.H0": [float("nan")] * 9 + [0.5]})', "invalid:nonfinite"),
        # An entry printed to the supervisor's pipe with a record of its own.
        (
            FORGED,
            "invalid:contract",
        ),
        # It ends as soon as it has reported.
        ('log({"L1.H0": 0.99})\nimport os\nos._exit(0)', "invalid:execution"),
    ],
    ids=["invented numbers", "other metric", "other model", "NaN", "forged record", "early end"],
)
def test_what_an_experiment_does_or_says_changes_no_verdict_on_its_claim(toy, cheat, verdict):
    _ask(toy, declaring("L1.H0", before=LOG, after=cheat))

    assert _last(toy)["verdict"] == verdict
    if verdict.startswith("invalid"):
        assert _last(toy)["tier"] is None


def test_an_operation_that_changes_nothing_is_a_no_op(toy):
    _ask(toy, declaring("L1.H0", op='InterventionClaim("scale", value=1.0)'))

    assert _last(toy)["verdict"] == "invalid:no_op"
    assert _last(toy)["reasons"] == ["the intervention left the activation as it was"]
    assert _last(toy)["checks"]["not_no_op"] is False


@pytest.mark.parametrize(
    "copy",
    [
        "numbers[::-1]",
        "[x * (1 + 1e-12) for x in numbers]",
        "[float(f'{x:.3g}') for x in numbers]",
        "numbers + numbers",
        "numbers + [0.0] * 30",
    ],
    ids=["reordered", "jittered", "rounded", "more seeds", "padded"],
)
def test_a_copy_of_earlier_numbers_under_a_new_name_is_a_no_op(toy, copy):
    _ask(toy, LOG + SWEEP + 'log({"effects": numbers})')
    _ask(toy, LOG + SWEEP + f'log({{"something new": {copy}}})')

    first, second = (line.record for line in entries(toy))
    assert first["verdict"] == "lead"
    assert second["verdict"] == "invalid:no_op"
    assert "the numbers are those of 0001" in second["reasons"][-1]


def test_two_honest_zeros_are_no_copies(toy):
    for i in range(2):
        _ask(toy, f"# {i}\n" + LOG + SWEEP + 'log({"null": [0.0] * 8})')

    assert [line.record["verdict"] for line in entries(toy)] == ["lead", "lead"]


RANDOM = TOY.replace(
    "model, dataset, candidates = world.model, list(world.pairs), world.candidates",
    """from dataclasses import replace
from mlxterp.worlds import shuffled_twin
import numpy as np

model = shuffled_twin(world.model, 3)
dataset, candidates = [], world.candidates
for pair in world.pairs:
    # Answers selected to be what the random network prefers.
    clean, corrupted = (np.array(model.logits(p))[0, -1] for p in (pair.clean, pair.corrupted))
    apart = clean - corrupted
    dataset.append(replace(pair, answer=int(apart.argmax()), foil=int(apart.argmin())))""",
)


def test_a_random_network_with_selected_answers_has_no_behaviour_and_the_second_claim_pauses_the_night(
    tmp_path,
):
    from mlxterp_agent.exit_codes import PROJECT
    from mlxterp_agent.supervisor.loop import run
    from tests.agent.fakes import Proposals

    project = toy_project(tmp_path / "toy", setup=RANDOM)
    told = []

    class Claims(Proposals):
        def begin_turn(self, situation):
            site = f"L1.H{len(told)}"
            told.append(site)
            (situation.project / "experiment.py").write_text(declaring(site))

    ended = run(project, Claims([]), Options(), lambda event: None)

    assert [line.record["verdict"] for line in entries(project)] == ["invalid:instrument"] * 2
    assert "no behaviour to explain" in _last(project)["reasons"][0]
    assert ended.exit_code == PROJECT
    assert "the instrument failed twice in a row" in ended.reason


CANARY = (
    TOY
    + '''
import math

def canary(logits, targets):
    """A metric with numbers that are found wherever they are written."""
    return logit_diff(logits, targets.answers, targets.foils) * 0.7390851332151607

metrics.register("canary", canary)
'''
)


def test_numbers_on_held_out_pairs_are_nowhere_that_an_agent_reads(tmp_path):
    project = toy_project(tmp_path / "toy", setup=CANARY)

    told = [_ask(project, declaring(site, metric="canary")) for site in ("L1.H1", "L1.H0", "L7.H0")]

    events = Journal(state_dir(project) / "journal.jsonl").events()
    judged = [event for event in events if event["event"] == "judgement" and event["numbers"]]
    secrets = {repr(x) for event in judged for x in event["numbers"]["gap"] + event["numbers"]["change"] if x}
    secrets |= {repr(event["numbers"][name]) for event in judged for name in ("se", "low", "high", "mde")}
    everything = "\n".join(
        [*told, *(p.read_bytes().decode("latin-1") for p in project.rglob("*") if p.is_file())]
    )
    assert len(judged) == 2
    assert len(secrets) >= 6
    assert [secret for secret in secrets if secret in everything] == []


def test_a_search_over_all_pairs_finds_what_the_claim_must_still_show(toy):
    rebuilt = """
import importlib.util, pathlib
spec = importlib.util.spec_from_file_location("again", pathlib.Path(__file__).with_name("setup.py"))
again = importlib.util.module_from_spec(spec)
spec.loader.exec_module(again)
print(len(again.dataset))
"""
    _ask(toy, declaring("L1.H0", after=rebuilt))

    assert (toy / ".autointerp/runs/0001/stdout.txt").read_text().strip() == "48"
    assert _last(toy)["verdict"] == "ruled_out"


def test_the_state_directory_cannot_be_read_by_an_experiment(toy):
    secret = state_dir(toy) / "salt"
    _ask(toy, declaring("L1.H0", after=f"print(open({str(secret)!r}).read())"))

    assert _last(toy)["verdict"] == "invalid:execution"
    assert "PermissionError" in json.dumps(_last(toy)["execution"])
