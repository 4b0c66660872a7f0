"""Clean, corrupted and patched runs are read at one precision, whatever the weights are."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp.causal import activation_patching
from mlxterp.core.model import InterpretableModel
from tests.tiny_models import FAMILIES, tiny_module

CLEAN = [3, 14, 15, 9, 2, 6, 5, 3, 5, 8, 9, 7]
CORRUPTED = [3, 14, 15, 9, 33, 6, 5, 3, 5, 8, 9, 7]


def half(module: nn.Module) -> InterpretableModel:
    return InterpretableModel(module, dtype=mx.bfloat16)


def last_stream(model: InterpretableModel, direction: str) -> float:
    found = activation_patching(
        model,
        CLEAN,
        CORRUPTED,
        component="resid_post",
        by="layer",
        direction=direction,
        answer=5,
        foil=9,
    )
    return float(np.ravel(found.effects)[-1])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"mixtral"}))  # MLX's CPU has no 16-bit experts
def test_with_16_bits_the_last_residual_stream_recovers_everything(family, direction):
    assert last_stream(half(tiny_module(family)), direction) == pytest.approx(1.0, abs=1e-3)


def test_so_does_it_where_the_unembedding_is_quantised():
    module = tiny_module("llama")
    nn.quantize(
        module,
        group_size=32,
        bits=8,
        class_predicate=lambda _, part: hasattr(part, "to_quantized") and part.weight.shape[-1] % 32 == 0,
    )

    assert last_stream(half(module), "denoising") == pytest.approx(1.0, abs=1e-3)
