"""The attribution adds up to the model's own logit, head by head, on every family and when quantised."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp.causal import direct_logit_attribution
from mlxterp.core.interventions import edit
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import PromptPairError, TokenError
from tests.causal.conftest import CLEAN, logit_difference
from tests.tiny_models import ByteTokenizer, tiny_module


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
