"""An entry of a supervised experiment is worth what the library measured behind it, on a real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxterp.autointerpret import ExperimentEntry
from mlxterp.autointerpret.keep_rule import NOT_MEASURED
from mlxterp.autointerpret.scaffold import init_autointerpret
from tests.agent.fakes import entries, supervise

_HEAD = '''"""{about}"""

import mlx.core as mx
import numpy as np
from setup import dataset, metrics, model

from mlxterp.autointerpret import ExperimentEntry, ExperimentLog
from mlxterp.core import interventions
from mlxterp.errors import InterventionNotFired

def log(about, **numbers):
    ExperimentLog("results.jsonl").append(
        ExperimentEntry(about, "by hand", {{"numbers": numbers}}, True, about, 0.1)
    )

'''

EXPERIMENTS = {
    "by hand": """
row = np.array(model.trace(dataset[0].clean).last_logits)[0]
edited = np.array(model.run(model.to_tokens(dataset[0].clean), interventions=[interventions.zero("L1.z")])[0])
log("by hand", top=float(row.max()), without=float(edited[0, -1].max()))
""",
    "invented": 'log("invented", effect=0.98765, other=0.12345)',
    "no model": """
logits = np.random.default_rng(0).normal(size=(4, model.d_vocab))
log("no model", spread=float(logits.std()), largest=float(logits.max()))
""",
    "one of two": """
row = np.array(model.logits(dataset[1].clean))[0, -1]
log("one of two", top=float(row.max()))
log("two of two", bottom=float(row.min()))
""",
    "writes what is there": """
own = model.trace(dataset[0].clean, capture=["L1.z"])["L1.z"]
row = np.array(model.logits(dataset[0].clean, interventions=[interventions.replace("L1.z", own)]))[0, -1]
log("writes what is there", nothing=float(row.mean()) + 0.25)
""",
    "logs first": """
log("logs first", effect=0.31415)
model.logits(dataset[2].clean)
""",
}


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExperimentEntry]:
    """The line of each of these experiments, by what it is about."""
    root = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOINTERP_STATE_DIR", str(root / "state"))
        project = Path(init_autointerpret(root / "project", scaffold="induction"))
        supervise(project, [_HEAD.format(about=about) + text for about, text in EXPERIMENTS.items()])
    return {entry.hypothesis: entry for entry in entries(project)}


def verdict(entry: ExperimentEntry) -> str:
    assert entry.record is not None
    return str(entry.record["verdict"])


def reasons(entry: ExperimentEntry) -> str:
    assert entry.record is not None
    return " ".join(entry.record["reasons"])


def test_an_experiment_that_runs_the_model_by_hand_is_measured(logged):
    entry = logged["by hand"]

    assert verdict(entry) == "lead"
    assert entry.record["checks"]["hook_fired"] is True
    measured = entry.record["measured"]["explore"]
    assert measured["models"] == [entry.record["digests"]["model"]]
    assert (measured["forwards"], measured["hook_points"]) == (2, {"L1.z": 1})


@pytest.mark.parametrize("about", ["invented", "no model", "logs first"])
def test_numbers_without_a_measurement_are_a_note_that_says_so(logged, about):
    assert verdict(logged[about]) == "note"
    assert NOT_MEASURED in reasons(logged[about])


def test_what_is_measured_belongs_to_the_next_entry_alone(logged):
    assert (verdict(logged["one of two"]), verdict(logged["two of two"])) == ("lead", "note")
    assert NOT_MEASURED in reasons(logged["two of two"])


def test_an_intervention_that_writes_what_is_there_is_a_no_op(logged):
    assert verdict(logged["writes what is there"]) == "invalid:no_op"
    assert "left the activation as it was" in reasons(logged["writes what is there"])
