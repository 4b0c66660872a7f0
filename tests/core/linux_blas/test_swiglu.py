"""The arithmetic SwiGLU is as accurate as MLX's, has its gradient, and leaves a model what it was."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp.causal import PromptPair, attribution_patching
from mlxterp.core.linux_blas import swiglu as fast_math
from mlxterp.core.model import InterpretableModel
from tests.rounding import backward_error
from tests.tiny_models import ByteTokenizer, tiny_module

pytestmark = pytest.mark.skipif(not fast_math.allowed(), reason="for a Linux CPU, and not turned off here")


def relative_error(got: mx.array, exact: np.ndarray) -> float:
    return float(np.max(np.abs(np.array(got, dtype=np.float64) - exact) / np.maximum(np.abs(exact), 1e-30)))


def test_swiglu_is_as_accurate_as_mlx_s_own_from_minus_80_to_80():
    gate = mx.concatenate([mx.linspace(-80, 80, 100_001), mx.linspace(-2, 2, 100_001)])
    x = mx.random.normal(gate.shape, key=mx.random.key(0))
    g, u = np.array(gate, dtype=np.float64), np.array(x, dtype=np.float64)
    exact = g * u / (1.0 + np.exp(-g))

    ours, theirs = (relative_error(f, exact) for f in (fast_math.swiglu(gate, x), nn.silu(gate) * x))

    assert ours <= 1.2e-6
    assert ours <= theirs


def test_beyond_80_it_is_the_identity_or_nothing():
    assert np.array(fast_math.swiglu(mx.array([-1e4, -90.0, 90.0, 1e4]), mx.ones(4))) == pytest.approx(
        [0.0, 0.0, 90.0, 1e4], abs=1e-30
    )


def test_the_gradient_is_that_of_silu():
    gate, x = (mx.random.normal((64,), key=mx.random.key(k)) * 4 for k in (1, 2))

    ours = mx.grad(lambda g, u: mx.sum(fast_math.swiglu(g, u)), argnums=(0, 1))(gate, x)

    theirs = mx.grad(lambda g, u: mx.sum(nn.silu(g) * u), argnums=(0, 1))(gate, x)
    for a, b in zip(ours, theirs, strict=True):
        assert np.array(a) == pytest.approx(np.array(b), abs=1e-5)


def test_a_model_uses_it_inside_the_block_only_also_after_an_exception():
    model = InterpretableModel(tiny_module("llama"), ByteTokenizer())
    names = type(model.architecture.layers[0].mlp).__call__.__globals__
    own = names["swiglu"]

    def fail_while_in_use() -> None:
        with fast_math.used(model.architecture):
            assert names["swiglu"] is not own
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_while_in_use()

    assert names["swiglu"] is own


def test_some_tokens_at_a_time_it_gives_the_same_with_the_same_gradient(monkeypatch):
    model = InterpretableModel(tiny_module("llama"), ByteTokenizer())
    pair = PromptPair("the cat sat", "the dog sat", answer="x", foil="y")

    def logits() -> np.ndarray:
        with fast_math.used(model.architecture):
            return np.array(model.logits(["the cat sat", "the dog ran"]))

    def effects() -> np.ndarray:
        return attribution_patching(model, pair, component="mlp_out").effects

    whole = logits(), effects()
    monkeypatch.setattr(fast_math, "PIECE", 3 * model.model.args.intermediate_size)
    in_pieces = logits(), effects()

    assert in_pieces[0] == pytest.approx(whole[0], abs=backward_error(model, logits))
    assert in_pieces[1] == pytest.approx(whole[1], abs=backward_error(model, effects))


@pytest.mark.usefixtures("pinned_threads")
def test_other_types_than_float32_stay_with_mlx():
    model = InterpretableModel(tiny_module("llama"), ByteTokenizer(), dtype=mx.bfloat16)
    before = np.array(model.logits("abc").astype(mx.float32))

    with fast_math.used(model.architecture):
        inside = np.array(model.logits("abc").astype(mx.float32))

    assert np.array_equal(inside, before)


def test_the_environment_turns_it_off(monkeypatch):
    architecture = InterpretableModel(tiny_module("llama"), ByteTokenizer()).architecture
    assert fast_math.used_by(architecture)

    monkeypatch.setenv("MLXTERP_FAST_MATH", "off")

    assert not fast_math.used_by(architecture)
