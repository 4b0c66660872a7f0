"""Clean, corrupted and patched runs are read at one precision, whatever the weights are."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp import InterpretableModel
from mlxterp.causal import EdgeRun, activation_patching, direct_logit_attribution
from tests.tiny_models import FAMILIES, tiny_module

CLEAN = [3, 14, 15, 9, 2, 6, 5, 3, 5, 8, 9, 7]
CORRUPTED = [3, 14, 15, 9, 33, 6, 5, 3, 5, 8, 9, 7]


def half(module: nn.Module, dtype: mx.Dtype = mx.bfloat16) -> InterpretableModel:
    return InterpretableModel(module, dtype=dtype)


def stream_recovers(model: InterpretableModel, component: str, direction: str) -> float:
    """The effect of patching the whole of the first or the last residual stream."""
    found = activation_patching(
        model,
        CLEAN,
        CORRUPTED,
        component=component,
        by="layer",
        direction=direction,
        answer=5,
        foil=9,
    )
    return float(np.ravel(found.effects)[0 if component == "resid_pre" else -1])


SIXTEEN_BITS = sorted(set(FAMILIES) - {"mixtral"})  # MLX's CPU has no 16-bit experts


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("family", SIXTEEN_BITS)
def test_with_16_bits_the_first_and_the_last_residual_stream_recover_everything(family, dtype):
    model = half(tiny_module(family), dtype)

    for component in ("resid_pre", "resid_post"):
        for direction in ("denoising", "noising"):
            assert stream_recovers(model, component, direction) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "olmo2", "gpt_neox"])
def test_with_16_bits_corrupting_every_edge_gives_the_corrupted_run(family):
    model = half(tiny_module(family))
    edges = EdgeRun(model, np.array([CLEAN]), np.array([CORRUPTED]))
    every = np.ones((1, edges.n_edges), dtype=bool)

    found = edges.logits(every)[0, 0]
    model.model.set_dtype(mx.float32)  # the same weights
    assert np.allclose(found, np.array(model.logits(CORRUPTED)[0, -1]), atol=2e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_with_16_bits_contributions_add_up_to_the_logit(family):
    found = direct_logit_attribution(half(tiny_module(family)), CLEAN, answer=5)

    assert found.total == pytest.approx(found.logit, abs=1e-3)


def test_a_16_bit_model_computes_in_16_bits_again_afterwards():
    model = half(tiny_module("llama"))
    before = model.trace(CLEAN, capture=["resid_pre"])

    stream_recovers(model, "resid_post", "denoising")

    after = model.trace(CLEAN, capture=["resid_pre"])
    assert after["L1.resid_pre"].dtype == mx.bfloat16
    assert mx.array_equal(after.logits, before.logits)


def test_so_does_it_where_the_unembedding_is_quantised():
    module = tiny_module("llama")
    nn.quantize(
        module,
        group_size=32,
        bits=8,
        class_predicate=lambda _, part: hasattr(part, "to_quantized") and part.weight.shape[-1] % 32 == 0,
    )

    assert stream_recovers(half(module), "resid_post", "denoising") == pytest.approx(1.0, abs=1e-3)
