"""Models in which only some layers have attention heads: those layers keep every analysis of heads."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp import InterpretableModel
from mlxterp.causal import (
    ablate,
    activation_patching,
    attention_patterns,
    attention_scores,
    attribution_patching,
    causal_tracing,
    direct_logit_attribution,
    random_head_sets,
)
from mlxterp.core.interventions import replace
from mlxterp.errors import CapabilityUnavailable
from tests.small_models import small_module

CLEAN, CORRUPTED = [3, 50, 7, 90, 21, 64, 8, 33], [3, 50, 7, 91, 21, 64, 8, 33]
TARGETS = {"answer": 5, "foil": 9}
ATTENTION = 1  # the layer with attention heads, of three

pytestmark = pytest.mark.filterwarnings("ignore::mlxterp.errors.SlowSweep")


@pytest.fixture(scope="module", params=["lfm2", "jamba", "qwen3_next"])
def hybrid(request) -> InterpretableModel:
    return InterpretableModel(small_module(request.param))


def test_a_sweep_of_heads_is_over_the_layers_that_have_them_and_says_so(hybrid):
    found = activation_patching(hybrid, CLEAN, CORRUPTED, component="z", **TARGETS)

    assert found.indices_of("layer") == (ATTENTION,)
    assert "Only L1 of 3 layers have z" in found.summary()
    clean = hybrid.trace(CLEAN, capture=["L1.z"])
    runs = {
        "clean": hybrid.logits(CLEAN),
        "corrupted": hybrid.logits(CORRUPTED),
        "patched": hybrid.logits(CORRUPTED, interventions=[replace("L1.z", clean["L1.z"], heads=2)]),
    }
    diff = {name: float(x[0, -1, 5] - x[0, -1, 9]) for name, x in runs.items()}
    by_hand = (diff["patched"] - diff["corrupted"]) / (diff["clean"] - diff["corrupted"])
    assert found.effects[0, 2] == pytest.approx(by_hand, abs=1e-3)


def test_a_layer_without_heads_is_refused_by_name(hybrid):
    with pytest.raises(CapabilityUnavailable, match=r"no 'z' in layer 0.*Layers that have it: L1"):
        activation_patching(hybrid, CLEAN, CORRUPTED, component="z", layers=[0, 1], **TARGETS)
    with pytest.raises(CapabilityUnavailable, match="no 'z' in layer 2"):
        ablate(hybrid, CLEAN, ["L2.H0"], kind="zero", metric="log_prob", answer=5)


def test_estimates_of_heads_are_of_the_same_layers(hybrid):
    found = attribution_patching(hybrid, CLEAN, CORRUPTED, component="z", verify=4, **TARGETS)
    patched = activation_patching(hybrid, CLEAN, CORRUPTED, component="z", **TARGETS)

    assert found.indices_of("layer") == (ATTENTION,)
    assert found.measured.all()
    assert np.allclose(found.effects, patched.effects, atol=1e-4)


def test_contributions_add_up_to_the_logit_and_heads_are_split_where_there_are_any(hybrid):
    found = direct_logit_attribution(hybrid, CLEAN, answer=5)

    assert found.total == pytest.approx(found.logit, abs=1e-3)
    assert np.isfinite(found.head_contributions[ATTENTION]).all()
    assert np.isnan(found.head_contributions[[0, 2]]).all()
    assert found.find("L0.attn_out").effect == pytest.approx(found.attn_contributions[0])
    assert "Only layers L1 are split into heads" in found.summary()


def test_patterns_scores_and_random_sets_are_of_the_layers_with_heads(hybrid):
    assert attention_patterns(hybrid, CLEAN).heads == tuple((ATTENTION, i) for i in range(4))
    scores = attention_scores(hybrid).score("induction")
    assert np.isfinite(scores[ATTENTION]).all()
    assert np.isnan(scores[[0, 2]]).all()
    assert {layer for heads in random_head_sets(hybrid, 2, 5) for layer, _ in heads} == {ATTENTION}


def test_tracing_restores_heads_where_they_are(hybrid):
    found = causal_tracing(
        hybrid, CLEAN, [3], component="z", samples=2, metric="log_prob", answer=5, noise=5.0
    )

    assert found.layers == (ATTENTION,)


@pytest.mark.parametrize("name", ["dbrx", "recurrent_gemma"])
def test_the_stream_is_swept_in_a_model_whose_heads_are_not_known(name):
    model = InterpretableModel(small_module(name))

    found = activation_patching(model, CLEAN, CORRUPTED, component="resid_post", **TARGETS)

    assert found.effects[-1] == pytest.approx(1.0, abs=1e-3)
