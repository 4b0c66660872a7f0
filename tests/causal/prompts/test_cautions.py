"""What limits every number that is measured on some prompts is said in the results of all methods."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxterp import InterpretableModel
from mlxterp.causal import (
    PromptPair,
    ablate,
    acdc,
    activation_patching,
    attribution_patching,
    causal_tracing,
    direct_logit_attribution,
    edge_attribution,
    path_patching,
)
from mlxterp.sae import bundled_sae, feature_attribution, feature_effects
from tests.small_models import small_module
from tests.tiny_models import tiny_module

JOHN = PromptPair("John is tired because", "Mary is tired because", " he", " she")
TOWER = PromptPair("The Eiffel Tower is in the city of", "The Colosseum is in the city of", "Paris", "Rome")


@pytest.fixture(scope="module")
def smollm2() -> InterpretableModel:
    return InterpretableModel("smollm2-135m")


def said(result) -> str:
    return result.summary()


@pytest.mark.parametrize(
    "measure",
    [
        lambda m, p: activation_patching(m, p, component="attn_out", layers=[29]),
        lambda m, p: attribution_patching(m, p, component="attn_out"),
        lambda m, p: path_patching(m, p, receivers="logits", senders=["L29.H1"], positions=-1),
        lambda m, p: ablate(m, p, ["L29.H1"], kind="resample"),
    ],
    ids=["activation", "attribution", "path", "ablate"],
)
def test_prompts_that_differ_at_position_0_without_a_bos_token_are_named_with_the_option_to_try(
    smollm2, measure
):
    result = measure(smollm2, JOHN)

    assert "differ at position 0" in said(result)
    assert "prepend_bos=True" in said(result)
    assert result.measured_on["prepend_bos"] is False


def test_with_the_token_in_front_there_is_no_such_caution_and_the_gap_is_what_other_tools_measure():
    model = InterpretableModel("smollm2-135m", prepend_bos="<|endoftext|>", verify=False)

    result = activation_patching(model, JOHN, component="attn_out", layers=[29])

    assert "position 0" not in said(result)
    assert result.measured_on["prepend_bos"] is True
    assert result.clean_metric == pytest.approx(3.52, abs=0.05)


@pytest.mark.filterwarnings("ignore::mlxterp.errors.PositionsAligned")
def test_an_answer_whose_other_form_is_far_more_probable_is_named_with_that_form(smollm2):
    result = activation_patching(smollm2, TOWER, component="attn_out", layers=[29], align="auto")
    attributed = direct_logit_attribution(smollm2, TOWER.clean, answer="Paris")
    traced = causal_tracing(
        smollm2, TOWER.clean, " Eiffel Tower", answer="Paris", layers=[3], samples=2, metric="log_prob"
    )

    for each in (result, attributed, traced):
        assert "pass answer=' Paris'" in said(each)
    assert "pass foil=' Rome'" in said(result)


def test_effects_of_features_carry_the_same_cautions(smollm2):
    sae = bundled_sae()

    effects = feature_effects(smollm2, sae, JOHN, top_k=1, controls=1)
    scores = feature_attribution(smollm2, sae, TOWER.clean, answer="Paris")

    assert "differ at position 0" in said(effects)
    assert "pass answer=' Paris'" in said(scores)


def test_the_form_that_follows_is_not_named(smollm2):
    attributed = direct_logit_attribution(smollm2, TOWER.clean, answer=" Paris")

    assert "pass answer" not in said(attributed)


def of_gap(scale: float, dtype: mx.Dtype) -> tuple[float, str]:
    """The gap in units of 100 roundings of the largest logit, and the summary, where logits are scaled."""
    module = tiny_module("llama")
    weight = np.array(module.lm_head.weight)
    weight[5] = weight[9] + scale * (weight[5] - weight[9])
    module.lm_head.weight = mx.array(weight)
    model = InterpretableModel(module, dtype=dtype)
    clean, corrupted = [3, 14, 15, 9, 2, 6, 5, 8], [3, 14, 15, 9, 33, 6, 5, 8]
    result = activation_patching(model, clean, corrupted, component="z", answer=5, foil=9)
    logits = max(float(mx.max(mx.abs(model.logits(each)[0, -1]))) for each in (clean, corrupted))
    limit = 100 * mx.finfo(dtype).eps * logits
    return abs(result.clean_metric - result.corrupted_metric) / limit, said(result)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["f16", "bf16"])
def test_a_gap_below_100_roundings_of_16_bits_gets_a_caution_and_one_above_does_not(dtype):
    unit, _ = of_gap(1.0, dtype)

    below, with_caution = of_gap(0.9 / unit if unit > 0.9 else 1.0, dtype)
    assert below < 1
    assert "100 roundings" in with_caution
    if dtype == mx.float16:
        above, without = of_gap(1.3 / unit, dtype)
        assert above > 1
        assert "roundings" not in without


def test_in_float32_a_small_gap_is_no_matter_of_roundings():
    _, summary = of_gap(0.05, mx.float32)

    assert "roundings" not in summary


@pytest.mark.filterwarnings("ignore::mlxterp.errors.SlowSweep")
@pytest.mark.parametrize("family", ["talkie", "gemma4_text"])
def test_a_stream_that_tokens_enter_again_is_named_in_sweeps_of_it(family):
    pytest.importorskip(f"mlx_lm.models.{family}", reason="this mlx-lm does not have the architecture")
    model = InterpretableModel(small_module(family))
    clean, corrupted = [3, 50, 7, 90, 21, 64, 8, 33], [3, 50, 7, 91, 21, 64, 8, 33]
    targets = {"answer": 5, "foil": 9}

    stream = activation_patching(model, clean, corrupted, component="resid_pre", **targets)
    heads = activation_patching(model, clean, corrupted, component="z", **targets)

    assert abs(stream.effects[0] - 1) > 1e-3
    assert "tokens enter the residual stream again" in said(stream)
    assert "tokens enter the residual stream again" not in said(heads)


def test_circuits_and_edge_scores_carry_what_the_pair_has(tiny_llama):
    module = tiny_module("llama")
    model = InterpretableModel(module, dtype=mx.bfloat16)
    pair = PromptPair([3, 14, 15, 9], [3, 14, 16, 9], 5, 9)

    scores = edge_attribution(model, pair)
    circuit = acdc(model, pair, threshold=100.0, metric="logit_diff")

    for each in (scores, circuit):
        assert "roundings" in said(each)
    assert "roundings" not in said(edge_attribution(tiny_llama, pair))
