"""What the library counts as measured, and what it says of interventions that did nothing."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from mlxterp.causal import PromptPair, activation_patching
from mlxterp.core import interventions
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import InterventionNotFired
from mlxterp.measurements import LISTED, Measurements, recorder
from tests.tiny_models import ByteTokenizer, tiny_module

PROMPT = "the cat sat"
PAIR = PromptPair("the cat sat", "the dog sat", answer="x", foil="y")


@pytest.fixture(autouse=True)
def nothing_measured_before():
    recorder.take()


def test_loading_a_model_and_computing_numbers_measures_nothing():
    InterpretableModel(tiny_module("llama"), ByteTokenizer())
    np.linalg.svd(np.eye(8))

    found = recorder.take()

    assert not found.measured
    assert (found.forwards, found.tokens, found.models) == (0, "", ())


def test_a_trace_is_measured_with_its_model_and_its_tokens(tiny_llama):
    tiny_llama.trace(PROMPT, capture=["L0.z"])
    first = recorder.take()
    tiny_llama.logits(PROMPT)
    same = recorder.take()
    tiny_llama.logits("the dog sat")
    other = recorder.take()

    assert first.measured
    assert first.models == (tiny_llama.digest,)
    assert (first.forwards, first.prompts) == (1, 1)
    assert first.tokens == same.tokens != other.tokens
    assert (first.hook_fired, first.activation_changed) == (None, None)


def test_generation_is_measured(tiny_llama):
    tiny_llama.generate(PROMPT, max_new_tokens=2, interventions=[interventions.zero("L0.mlp_out")])

    found = recorder.take()

    assert found.measured
    assert (found.models, found.hook_fired) == ((tiny_llama.digest,), True)


def test_what_is_taken_is_taken_once(tiny_llama):
    tiny_llama.logits(PROMPT)
    recorder.take()

    assert recorder.take() == Measurements()


def test_an_intervention_that_writes_what_is_there_changes_nothing(tiny_llama):
    own = tiny_llama.trace(PROMPT, capture=["L1.z"])["L1.z"]
    tiny_llama.trace(PROMPT, interventions=[interventions.replace("L1.z", own)])
    same = recorder.take()
    tiny_llama.trace(PROMPT, interventions=[interventions.replace("L1.z", own + 0.01)])
    other = recorder.take()

    assert (same.hook_fired, same.activation_changed, same.unchanged) == (True, False, ("L1.z",))
    assert (other.hook_fired, other.activation_changed, other.changed) == (True, True, ("L1.z",))


def test_one_change_is_enough_for_a_stretch_with_changes(tiny_llama):
    own = tiny_llama.trace(PROMPT, capture=["L1.z"])["L1.z"]
    tiny_llama.trace(PROMPT, interventions=[interventions.replace("L1.z", own)])
    tiny_llama.trace(PROMPT, interventions=[interventions.zero("L0.mlp_out")])

    assert recorder.take().activation_changed is True


def test_an_intervention_that_was_never_made_is_named_also_when_its_error_is_caught(tiny_llama, monkeypatch):
    monkeypatch.setattr(interventions.Intervention, "apply", lambda *_: None)
    with pytest.raises(InterventionNotFired):
        tiny_llama.logits(PROMPT, interventions=[interventions.zero("L0.mlp_out")])

    found = recorder.take()

    assert (found.hook_fired, found.never_fired) == (False, ("L0.mlp_out",))


def test_a_sweep_names_its_method_its_pairs_and_where_it_patched(tiny_llama):
    activation_patching(tiny_llama, [PAIR, PromptPair("a cow ran", "a pig ran", answer="a", foil="b")][:1])
    recorder.take()

    activation_patching(tiny_llama, PAIR, component="z", by="layer_head", layers=[1])
    found = recorder.take()

    assert (dict(found.methods), found.pairs) == ({"activation_patching": 1}, 1)
    assert dict(found.hook_points) == {"L1.z": tiny_llama.n_heads}
    assert found.activation_changed is True


def test_what_an_analysis_does_not_run_again_is_still_measured():
    recorder.add_method("feature_examples")

    assert recorder.take().measured


def test_a_model_that_is_gone_is_not_kept_alive():
    model = InterpretableModel(tiny_module("llama"), ByteTokenizer())
    model.logits(PROMPT)
    del model
    gc.collect()

    found = recorder.take()

    assert found.measured
    assert found.models == ()


def test_measurements_survive_a_line_of_json():
    found = Measurements(
        models=("a" * 64,),
        forwards=3,
        prompts=12,
        tokens="b" * 64,
        hook_points={"L0.z": 2},
        changed=("L0.z",),
        methods={"ablate": 1},
        pairs=4,
    )

    assert Measurements.from_dict(found.to_dict()) == found


def test_a_record_lists_a_bounded_number_of_hook_points():
    found = Measurements(forwards=1, hook_points={f"L{i}.z": 1 for i in range(10 * LISTED)})

    assert len(found.to_dict()["hook_points"]) == LISTED


@pytest.mark.parametrize(
    "data",
    [
        {"forwards": -1},
        {"forwards": True},
        {"forwards": "many"},
        {"methods": {"x": 1.5}},
        {"methods": ["x"]},
        {"models": "abc"},
        {"changed": [1]},
        {"hook_points": {f"{i}": 1 for i in range(LISTED + 1)}},
        {"tokens": "x" * 1000},
        {"kept": True},
    ],
)
def test_measurements_of_another_shape_are_refused(data):
    with pytest.raises(ValueError, match=r"is|no field"):
        Measurements.from_dict(data)
