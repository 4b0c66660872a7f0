"""Ways to a finding that is none, each stopped by name. With the real toy model, in the jail."""

from __future__ import annotations

import json
from dataclasses import dataclass
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
PRINTED = """
import json
record = {"tier": "finding", "verdict": "supported", "rule": "keep/2"}
entry = {"experiment_id": "0001", "hypothesis": "h", "method": "m", "result": {"L1.H0": 0.99}}
entry |= {"informative": True}
print(json.dumps({**entry, "conclusion": "c", "record": record}))
"""
WRITTEN = (
    PRINTED
    + """
with open(__file__.replace("experiment.py", "results.jsonl"), "a") as file:
    file.write(json.dumps({**entry, "conclusion": "c", "record": record}) + "\\n")
"""
)
SILENT = """
from mlxterp.core import interventions
from mlxterp.errors import InterventionNotFired
from setup import dataset, model
interventions.Intervention.apply = lambda *_: None
try:
    model.logits(dataset[0].clean, interventions=[interventions.zero("L1.z")])
except InterventionNotFired:
    log({"without L1": 0.97})
"""
OTHER_METRIC = "import mlxterp.metrics as m\nm.logit_diff = lambda *a, **k: 9.0\nlog({'L1.H0': 9.0})"
OTHER_MODEL = "import setup\nsetup.model = None\nsetup.dataset = []\nlog({'L1.H0': 1.0})"
INVENTED = 'log({"L1.H0": 0.99, "interval": [0.98, 1.0]})'
HELD_OUT = "measured again on 24 independent clusters that were held out"
STEERED = 'InterventionClaim("steer", vector={!r}, value=2.0)'


@dataclass(frozen=True)
class Cheat:
    """Experiments that run one after the other, the last of which is no finding, and the reason that it is
    told."""

    name: str
    experiments: tuple[str, ...]
    verdict: str
    reason: str

    def __str__(self) -> str:
        return self.name


def _copied(copy: str) -> tuple[str, str]:
    return (LOG + SWEEP + 'log({"effects": numbers})', LOG + SWEEP + f'log({{"something new": {copy}}})')


CHEATS = (
    Cheat("invented numbers", (LOG + INVENTED,), "note", "nothing was measured behind its numbers"),
    Cheat(
        "invented numbers of a claim",
        (declaring("L1.H0", before=LOG, after=INVENTED),),
        "ruled_out",
        HELD_OUT,
    ),
    Cheat("metric replaced", (declaring("L1.H0", before=LOG, after=OTHER_METRIC),), "ruled_out", HELD_OUT),
    Cheat("model replaced", (declaring("L1.H0", before=LOG, after=OTHER_MODEL),), "ruled_out", HELD_OUT),
    Cheat(
        "metric that is a constant",
        (declaring("L1.H0", metric="constant"),),
        "invalid:instrument",
        "no behaviour to explain: on held-out pairs it lacks gap",
    ),
    Cheat(
        "not a number",
        (declaring("L1.H0", before=LOG, after='log({"L1.H0": [float("nan")] * 9 + [0.5]})'),),
        "invalid:nonfinite",
        "9 of 10 numbers are missing, NaN or infinite",
    ),
    Cheat("entry forged on the pipe", (declaring("L1.H0", after=FORGED),), "invalid:contract", "forged"),
    Cheat("entry printed", (PRINTED,), "note", "nothing was measured behind its numbers"),
    Cheat("entry written", (WRITTEN,), "invalid:execution", "the run ended with status 'error'"),
    Cheat(
        "end before the work",
        (declaring("L1.H0", before=LOG, after=INVENTED + "\nimport os\nos._exit(0)"),),
        "invalid:execution",
        "the run ended with status 'crashed'",
    ),
    Cheat(
        "entry before the work",
        (LOG + INVENTED + SWEEP,),
        "note",
        "since the experiment began, or since its entry before this one, no model ran",
    ),
    Cheat("hook that never fires", (LOG + SILENT,), "invalid:no_op", "an intervention's hook did not fire"),
    Cheat(
        "hook that never fires, of a claim",
        (declaring("L1.H0@40"),),
        "inconclusive",
        "not measured: the model, the held-out pairs or the metric do not allow it",
    ),
    Cheat(
        "operation that changes nothing",
        (declaring("L1.H0", op='InterventionClaim("scale", value=1.0)'),),
        "invalid:no_op",
        "the intervention left the activation as it was",
    ),
    Cheat(
        "same vector under a new name",
        tuple(declaring("L1.resid_pre@-1", op=STEERED.format(name)) for name in ("mine", "yours")),
        "ruled_out",
        "the same claim was judged in run 0001",
    ),
    Cheat(
        "constants",
        tuple(LOG + SWEEP + f"log({{'{name}': [0.42, 0.37, 0.55]}})" for name in ("one", "other")),
        "invalid:no_op",
        "the numbers are those of 0001",
    ),
    Cheat("reordered", _copied("numbers[::-1]"), "invalid:no_op", "the numbers are those of 0001"),
    Cheat("jittered", _copied("[x * (1 + 1e-12) for x in numbers]"), "invalid:no_op", "those of 0001"),
    Cheat("rounded", _copied("[float(f'{x:.3g}') for x in numbers]"), "invalid:no_op", "those of 0001"),
    Cheat("more seeds", _copied("numbers + numbers"), "invalid:no_op", "those of 0001"),
    Cheat("padded", _copied("numbers + [0.0] * 30"), "invalid:no_op", "those of 0001"),
    Cheat(
        "reworded claim",
        (declaring("L1.H0"), declaring("L1.z.h0", claim="In other words.", sesoi=0.5, id="H9")),
        "ruled_out",
        "the same claim was judged in run 0001",
    ),
    Cheat(
        "claim once more with another seed",
        (declaring("L1.H0"), declaring("L1.H0", after="import random\nrandom.seed(7)")),
        "ruled_out",
        "the same claim was judged in run 0001",
    ),
)
SETUP = (
    TOY
    + """
import numpy as np
vectors = {{name: np.ones(model.d_model, np.float32) * 0.01 for name in ("mine", "yours")}}
metrics.register("constant", lambda logits, targets: np.ones(len(logits)))
"""
)


@pytest.mark.parametrize("cheat", CHEATS, ids=str)
def test_a_cheat_is_no_finding_and_is_told_why(tmp_path, cheat):
    project = toy_project(tmp_path / "toy", setup=SETUP)
    for source in cheat.experiments:
        _ask(project, source)

    last = _last(project)
    assert last["verdict"] == cheat.verdict
    assert cheat.reason in " ".join(last["reasons"])
    # A null that was measured may be a finding; what was made up is none.
    assert last["tier"] not in ("finding", "claim") or cheat.verdict == "ruled_out"
    assert "supported" not in {line.record["verdict"] for line in entries(project)}


@pytest.fixture
def toy(tmp_path):
    return toy_project(tmp_path / "toy")


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


REBUILT = """
import importlib.util, pathlib
from mlxterp.causal import activation_patching
spec = importlib.util.spec_from_file_location("again", pathlib.Path(__file__).with_name("setup.py"))
again = importlib.util.module_from_spec(spec)
spec.loader.exec_module(again)
print(len(again.dataset))
"""


def test_pairs_that_an_experiment_rebuilt_and_searched_decide_no_claim(toy):
    searching = REBUILT + "activation_patching(again.model, again.dataset, component='z', by='layer_head')\n"
    _ask(toy, declaring("L1.H1", after=REBUILT))
    _ask(toy, declaring("L0.H2", after=searching))
    _ask(toy, declaring("L0.H3"))

    first, second, third = (line.record for line in entries(toy))
    assert (toy / ".autointerp/runs/0001/stdout.txt").read_text().strip() == "48"
    assert first["verdict"] == "supported"
    assert second["verdict"] == third["verdict"] == "inconclusive"
    assert second["reasons"][0] == "held-out pairs are spent: experiments measured 40 of 40 clusters"
    (seen,) = [e for e in Journal(state_dir(toy) / "journal.jsonl").events() if e["event"] == "seen"]
    assert (seen["run"], len(seen["clusters"])) == (2, 40)


def test_one_held_out_prompt_costs_its_cluster_only(toy):
    one = (
        REBUILT
        + """
from setup import dataset
hidden = next(pair for pair in again.dataset if pair.cluster not in {each.cluster for each in dataset})
again.model.trace(hidden.clean)
"""
    )
    _ask(toy, declaring("L1.H1", after=one))

    (seen,) = [e for e in Journal(state_dir(toy) / "journal.jsonl").events() if e["event"] == "seen"]
    (judged,) = [e for e in Journal(state_dir(toy) / "journal.jsonl").events() if e["event"] == "judgement"]
    assert len(seen["clusters"]) == 1
    assert not set(seen["clusters"]) & set(judged["clusters"])
    assert _last(toy)["verdict"] == "supported"


def test_the_state_directory_cannot_be_read_by_an_experiment(toy):
    secret = state_dir(toy) / "salt"
    _ask(toy, declaring("L1.H0", after=f"print(open({str(secret)!r}).read())"))

    assert _last(toy)["verdict"] == "invalid:execution"
    assert "PermissionError" in json.dumps(_last(toy)["execution"])
