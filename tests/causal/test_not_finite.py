"""No result leads with a number when a part of it is NaN or infinite: it refuses and names the sites."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import mlxterp.sae
from mlxterp import InterpretableModel
from mlxterp.causal import (
    PromptPair,
    ablate,
    acdc,
    activation_patching,
    attention_patterns,
    attribution_patching,
    behaviour,
    causal_tracing,
    direct_logit_attribution,
    edge_attribution,
    faithfulness,
    logit_lens,
    path_patching,
    train_tuned_lens,
)
from mlxterp.errors import MlxterpError
from tests.small_models import small_module
from tests.tiny_models import ByteTokenizer, tiny_module

CLEAN = [3, 14, 15, 9, 2, 6, 5, 8]
CORRUPTED = [3, 14, 15, 9, 33, 6, 5, 8]
TARGETS = {"answer": 5, "foil": 9}


def broken_in_layer_1() -> InterpretableModel:
    """A llama whose second layer's output projection holds a NaN, put there after the check at load."""
    model = InterpretableModel(tiny_module("llama"))
    projection = model.model.layers[1].self_attn.o_proj
    weight = np.array(projection.weight)
    weight[0, 0] = np.nan
    projection.weight = mx.array(weight)
    return model


@pytest.mark.filterwarnings("ignore:invalid value")
class TestAModelWithNanInALayer:
    @pytest.mark.parametrize(
        "measure",
        [
            lambda m: activation_patching(m, CLEAN, CORRUPTED, component="z", **TARGETS),
            lambda m: attribution_patching(m, CLEAN, CORRUPTED, component="z", **TARGETS),
            lambda m: edge_attribution(m, CLEAN, CORRUPTED, **TARGETS),
            lambda m: path_patching(m, CLEAN, CORRUPTED, receivers="logits", **TARGETS),
            lambda m: acdc(m, CLEAN, CORRUPTED, threshold=0.1),
            lambda m: faithfulness(m, PromptPair(CLEAN, CORRUPTED, 5, 9), ["input→logits"]),
            lambda m: ablate(m, CLEAN, ["L0.H1"], kind="zero", metric="prob", answer=5),
            lambda m: causal_tracing(m, CLEAN, [4], samples=2),
            lambda m: behaviour(m, PromptPair(CLEAN, CORRUPTED, 5, 9)),
        ],
    )
    def test_is_refused_with_the_layer_where_it_begins(self, measure):
        with pytest.raises(MlxterpError, match=r"not finite from L1\.resid_post on"):
            measure(broken_in_layer_1())

    def test_has_no_contributions_to_the_logit(self):
        with pytest.raises(MlxterpError, match=r"not finite from L1\.resid_post on"):
            direct_logit_attribution(broken_in_layer_1(), CLEAN, answer=5)

    def test_has_no_lens_behind_that_layer(self):
        with pytest.raises(MlxterpError, match=r"at L1\.resid_post pos 0"):
            logit_lens(broken_in_layer_1(), CLEAN, answer=5)

    def test_has_no_attention_patterns_behind_that_layer(self):
        model = broken_in_layer_1()

        assert attention_patterns(model, CLEAN, layers=[0, 1]).patterns.shape[0] == 8
        with pytest.raises(MlxterpError, match=r"at L2\.H0, L2\.H1, L2\.H2, L2\.H3"):
            attention_patterns(model, CLEAN)


def test_patching_refuses_where_some_sites_have_no_finite_metric_and_names_them():
    model = InterpretableModel(tiny_module("llama"))
    named = activation_patching(model, CLEAN, CORRUPTED, component="z", **TARGETS)
    values = named.corrupted_metric + named.effects * (named.clean_metric - named.corrupted_metric)
    beyond = float(values.min()), min(named.clean_metric, named.corrupted_metric)
    assert beyond[0] < beyond[1]  # a head moves the metric away from both runs
    layer, head = np.unravel_index(int(values.argmin()), values.shape)

    def root(logits):  # defined for both runs, and not with that head patched
        return np.sqrt(np.asarray(logits)[:, 5] - np.asarray(logits)[:, 9] - sum(beyond) / 2)

    with np.errstate(invalid="ignore"), pytest.raises(MlxterpError, match=rf"at .*L{layer}\.H{head}"):
        activation_patching(model, CLEAN, CORRUPTED, component="z", metric=root)


@pytest.mark.filterwarnings("ignore:recurrent_gemma")  # every patch takes a whole forward there
def test_a_model_without_finite_gradients_is_patched_and_not_estimated():
    model = InterpretableModel(small_module("recurrent_gemma"))
    clean, corrupted = [3, 50, 7, 90, 21, 64, 8, 33], [3, 50, 7, 91, 21, 64, 8, 33]

    patched = activation_patching(model, clean, corrupted, component="resid_post", **TARGETS)

    assert patched.effects[-1] == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(MlxterpError, match=r"estimates for resid_post by gradients.*at L0, L1"):
        attribution_patching(model, clean, corrupted, component="resid_post", **TARGETS)
    behind = attribution_patching(model, clean, corrupted, component="resid_post", layers=[2], **TARGETS)
    assert np.isfinite(behind.effects).all()
    assert any("gradient at the input is NaN" in text for text in behind.cautions)
    assert "nan" not in behind.summary()


def random_sae(*, broken: bool) -> mlxterp.sae.SAE:
    """16 random features of the last residual stream; one reads NaN if it is broken."""
    keys = mx.random.split(mx.random.key(0), 2)
    weights = mx.random.normal((32, 16), key=keys[0])
    if broken:
        weights[0, 3] = mx.nan
    return mlxterp.sae.SAE(
        W_enc=weights,
        b_enc=mx.zeros(16),
        W_dec=mx.random.normal((16, 32), key=keys[1]),
        b_dec=mx.zeros(32),
        activation=mlxterp.sae.Relu(),
        hook_point="L2.resid_post",
        model="llama",
    )


TEXTS = ["the cat sat on the mat", "a dog ran"]


@pytest.mark.parametrize(
    "measure",
    [
        lambda m, s: mlxterp.sae.feature_effects(m, s, CLEAN),
        lambda m, s: mlxterp.sae.feature_attribution(m, s, CLEAN),
        lambda m, s: mlxterp.sae.active_features(m, s, CLEAN),
        lambda m, s: mlxterp.sae.build_store(m, s, TEXTS),
    ],
    ids=["effects", "attribution", "active", "store"],
)
def test_features_of_an_sae_that_gives_nan_are_refused(tiny_llama, measure):
    with pytest.raises(MlxterpError, match="NaN or infinity at the SAE's features"):
        measure(tiny_llama, random_sae(broken=True))


@pytest.mark.parametrize(
    "measure",
    [
        lambda m: mlxterp.sae.sae_quality(m, random_sae(broken=False), TEXTS),
        lambda m: mlxterp.sae.build_store(m, random_sae(broken=False), TEXTS),
        lambda m: train_tuned_lens(m, TEXTS, steps=1),
    ],
    ids=["quality", "store", "tuned lens"],
)
def test_nothing_is_trained_or_counted_on_activations_that_are_nan(measure):
    broken = broken_in_layer_1()
    model = InterpretableModel(broken.model, ByteTokenizer(), verify=False)

    with pytest.raises(MlxterpError, match=r"NaN or infinity at L[12]\.resid_post"):
        measure(model)
