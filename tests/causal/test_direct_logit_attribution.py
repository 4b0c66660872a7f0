"""The attribution adds up to the model's own logit, head by head, on every family and when quantised."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp.causal import direct_logit_attribution, direct_logit_neurons
from mlxterp.core.interventions import edit
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import CapabilityUnavailable, PromptPairError, TokenError, UnknownHookPoint
from mlxterp.results import AnalysisResult
from tests.causal.conftest import CLEAN, logit_difference
from tests.tiny_models import FAMILIES, ByteTokenizer, tiny_module


def parts(result):
    mlp = 0.0 if result.mlp_contributions is None else result.mlp_contributions.sum()
    return result.embed_contribution + result.attn_contributions.sum() + mlp + result.bias_contribution


def test_the_contributions_add_up_to_the_logit_the_model_computes(any_family):
    result = direct_logit_attribution(any_family, CLEAN, answer="x")

    cap = any_family.architecture.softcap
    own = float(any_family.logits(CLEAN)[0, -1, ord("x")])
    own = own if cap is None else cap * np.arctanh(own / cap)
    assert result.total == pytest.approx(own, abs=1e-4)
    assert result.logit == pytest.approx(own, abs=1e-4)
    assert parts(result) == pytest.approx(result.total, abs=1e-9)


def test_with_a_foil_they_add_up_to_the_logit_difference(any_family):
    result = direct_logit_attribution(any_family, CLEAN, answer="x", foil="y")

    if any_family.architecture.softcap is None:
        assert result.total == pytest.approx(logit_difference(any_family, CLEAN), abs=1e-4)
    assert result.total == pytest.approx(result.logit, abs=1e-4)
    assert result.foil_token_str == "y"


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_is_attributed_with_its_dequantised_rows(bits):
    module = tiny_module("mistral", hidden_size=64, intermediate_size=64, head_dim=16)
    nn.quantize(module, group_size=32, bits=bits)
    model = InterpretableModel(module, ByteTokenizer())

    result = direct_logit_attribution(model, CLEAN, answer="x", foil="y")

    assert result.total == pytest.approx(logit_difference(model, CLEAN), abs=1e-3)


def test_heads_and_the_output_bias_add_up_to_the_attention(any_family):
    architecture, last = any_family.architecture, any_family.n_layers - 1
    resid = any_family.trace(CLEAN, capture=[f"L{last}.resid_post"])[f"L{last}.resid_post"][0, -1]
    direction = architecture.logit_directions(mx.array([ord("x")]))[0][0] * architecture.norm_scale(resid)

    result = direct_logit_attribution(any_family, CLEAN, answer="x")

    assert result.head_contributions.shape == (any_family.n_layers, any_family.n_heads)
    for layer in range(any_family.n_layers):
        b_o = architecture.b_o(layer)
        bias = 0.0 if b_o is None else float((b_o * architecture.attn_scale) @ direction)
        heads = result.head_contributions[layer].sum()
        assert heads + bias == pytest.approx(result.attn_contributions[layer], abs=1e-4)


def test_a_component_is_worth_what_the_logit_loses_without_it_when_the_norm_is_frozen(tiny_llama):
    """The direct effect by another way: one MLP's output taken out of the last residual, the scale kept."""
    trace = tiny_llama.trace(CLEAN, capture=["resid_post", "mlp_out"])
    resid = trace["L2.resid_post"]
    weight = tiny_llama.model.model.norm.weight
    scale = mx.rsqrt(mx.mean(resid * resid, axis=-1, keepdims=True) + 1e-5)

    def frozen_without_mlp_1(normed):
        return normed - scale * trace["L1.mlp_out"] * weight

    lost = logit_difference(tiny_llama, CLEAN) - logit_difference(
        tiny_llama, CLEAN, edit("final_norm", frozen_without_mlp_1)
    )

    result = direct_logit_attribution(tiny_llama, CLEAN, answer="x", foil="y")
    assert result.mlp_contributions[1] == pytest.approx(lost, abs=1e-4)


def test_the_answer_is_the_models_first_choice_unless_it_is_given(tiny_llama):
    result = direct_logit_attribution(tiny_llama, CLEAN)

    first = int(mx.argmax(tiny_llama.logits(CLEAN)[0, -1]))
    assert result.target_token == first
    assert result.target_token_str == chr(first)
    assert result.foil_token is None


def test_an_earlier_position_is_attributed_at_that_position(tiny_llama):
    result = direct_logit_attribution(tiny_llama, CLEAN, answer="x", position=3)

    assert result.total == pytest.approx(float(tiny_llama.logits(CLEAN)[0, 3, ord("x")]), abs=1e-4)
    assert result.position == 3
    assert result.tokens == tuple(CLEAN)


def test_a_model_without_mlps_has_no_mlp_contributions(toy_model):
    result = direct_logit_attribution(toy_model, [1, 2, 3, 1], answer=2)

    assert result.mlp_contributions is None
    assert result.total == pytest.approx(result.logit, abs=1e-4)


def test_what_cannot_be_attributed_is_refused(tiny_llama):
    with pytest.raises(TokenError, match=r"position 11 does not exist.*0 to 10"):
        direct_logit_attribution(tiny_llama, CLEAN, position=11)
    with pytest.raises(PromptPairError, match="the same token, 'x'"):
        direct_logit_attribution(tiny_llama, CLEAN, answer="x", foil="x")


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"mixtral"}))
def test_neurons_add_up_to_their_mlps_contribution(family):
    model = InterpretableModel(tiny_module(family), ByteTokenizer())
    whole = direct_logit_attribution(model, CLEAN, answer="x", foil="y")

    for layer in range(model.n_layers):
        result = direct_logit_neurons(model, CLEAN, layer=layer, answer="x", foil="y", k=5)

        parts = result.contributions.sum() + result.rest + result.bias
        assert parts == pytest.approx(whole.mlp_contributions[layer], abs=1e-4)
        assert result.total == pytest.approx(parts, abs=1e-9)
        assert len(result.neurons) == 5 < result.n_neurons


def test_a_neuron_is_worth_what_the_mlp_loses_without_it(tiny_llama):
    """By another way: one column of the down projection set to zero in a copy of the model."""
    result = direct_logit_neurons(tiny_llama, CLEAN, layer=2, answer="x", foil="y", k=1)
    copy = tiny_module("llama")
    weight = copy.layers[2].mlp.down_proj.weight
    copy.layers[2].mlp.down_proj.weight = weight * (mx.arange(weight.shape[1]) != result.neurons[0])
    without = InterpretableModel(copy, ByteTokenizer())

    lost = (
        tiny_llama.trace(CLEAN, capture=["L2.mlp_out"])["L2.mlp_out"][0, -1]
        - without.trace(CLEAN, capture=["L2.mlp_out"])["L2.mlp_out"][0, -1]
    )
    resid = tiny_llama.trace(CLEAN, capture=["L2.resid_post"])["L2.resid_post"][0, -1]
    scale = mx.rsqrt(mx.mean(resid * resid) + 1e-5)
    rows = copy.lm_head.weight[ord("x")] - copy.lm_head.weight[ord("y")]
    assert result.contributions[0] == pytest.approx(
        float((lost * scale * copy.model.norm.weight) @ rows), abs=1e-4
    )


def test_neurons_of_a_quantised_model_add_up_too():
    module = tiny_module("mistral", hidden_size=64, intermediate_size=64, head_dim=16)
    nn.quantize(module, group_size=32, bits=4)
    model = InterpretableModel(module, ByteTokenizer())
    whole = direct_logit_attribution(model, CLEAN, answer="x")

    result = direct_logit_neurons(model, CLEAN, layer=1, answer="x")

    assert result.total == pytest.approx(whole.mlp_contributions[1], abs=1e-3)
    assert result.n_neurons == 64


def test_the_strongest_neurons_come_first_and_survive_json(tiny_llama):
    result = direct_logit_neurons(tiny_llama, CLEAN, layer=0, k=7)

    assert (np.diff(np.abs(result.contributions)) <= 0).all()
    assert result.top_components(1)[0].label == f"L0.N{result.neurons[0]}"
    assert AnalysisResult.from_json(result.to_json()) == result
    assert "by the 7 strongest of 48 neurons" in result.summary()
    assert result.shows()[1].rows[-1] == ("the MLP", None, result.total)


def test_a_mixture_of_experts_has_no_neurons_that_can_be_read():
    model = InterpretableModel(tiny_module("mixtral"), ByteTokenizer())

    with pytest.raises(CapabilityUnavailable, match="no down projection"):
        direct_logit_neurons(model, CLEAN, layer=0)


def test_an_mlp_that_does_more_behind_its_down_projection_is_refused():
    class Doubled(nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.mlp, self.down_proj = mlp, mlp.down_proj

        def __call__(self, x):
            return 2 * self.mlp(x)

    module = tiny_module("llama")
    module.layers[1].mlp = Doubled(module.layers[1].mlp)
    model = InterpretableModel(module, ByteTokenizer())

    with pytest.raises(CapabilityUnavailable, match=r"layer 1's MLP .* do not add up to mlp_out"):
        direct_logit_neurons(model, CLEAN, layer=1)


def test_neurons_of_a_layer_or_an_mlp_that_is_not_there_are_refused(tiny_llama, toy_model):
    with pytest.raises(UnknownHookPoint, match="3 layers, 0 to 2"):
        direct_logit_neurons(tiny_llama, CLEAN, layer=3)
    with pytest.raises(CapabilityUnavailable, match="mlp_out"):
        direct_logit_neurons(toy_model, [1, 2, 3, 1], layer=0)


@pytest.mark.parametrize(
    "down",
    [
        lambda project, h: project(0.5 * h) + project(0.5 * h),
        lambda project, h: project(h.reshape(-1, h.shape[-1])).reshape(*h.shape[:2], -1),
    ],
    ids=["twice", "without the batch axis"],
)
def test_neurons_of_an_mlp_that_does_not_project_each_token_once_are_refused(down):
    module = tiny_module("llama")
    mlp = module.model.layers[1].mlp

    class Odd(type(mlp)):
        def __call__(self, x):
            return down(self.down_proj, nn.silu(self.gate_proj(x)) * self.up_proj(x))

    mlp.__class__ = Odd
    model = InterpretableModel(module, ByteTokenizer())

    with pytest.raises(CapabilityUnavailable, match="does not see each token once"):
        direct_logit_neurons(model, "the cat", layer=1, answer="x")
