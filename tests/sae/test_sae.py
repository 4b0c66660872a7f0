"""An SAE as a value: what it computes, token by token, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.errors import SAEError, UnknownHookPoint
from mlxterp.sae import SAE, JumpRelu, Relu, TopK
from mlxterp.sae.sae import Activation
from tests.rounding import UNIT, product_error

X = mx.array([[1.0, 2.0], [-1.0, 0.5]])


def by_hand(activation: Activation, **differs: object) -> SAE:
    """Two inputs, three features; pre-activations of X are [[1, 2, 2], [-1, .5, -2.5]]."""
    parts: dict[str, object] = {
        "W_enc": mx.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]),
        "b_enc": mx.array([0.0, 0.0, -1.0]),
        "W_dec": mx.array([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5]]),
        "b_dec": mx.array([0.25, -0.25]),
        "activation": activation,
        "hook_point": "L3.resid_post",
        "model": "none",
    }
    return SAE(**(parts | differs))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (Relu(), [[1.0, 2.0, 2.0], [0.0, 0.5, 0.0]]),
        (TopK(3), [[1.0, 2.0, 2.0], [0.0, 0.5, 0.0]]),
        (TopK(2), [[0.0, 2.0, 2.0], [0.0, 0.5, 0.0]]),
        (JumpRelu(mx.array([1.0, 0.4, 1.9])), [[0.0, 2.0, 2.0], [0.0, 0.5, 0.0]]),
    ],
)
def test_activations_are_those_computed_by_hand(activation, expected):
    assert by_hand(activation).encode(X).tolist() == expected


def test_a_reconstruction_is_bias_plus_directions_plus_skip():
    sae = by_hand(Relu(), W_skip=mx.array([[0.0, 1.0], [1.0, 0.0]]), hook_point_out="L3.mlp_out")

    assert sae.decode(mx.array([1.0, 2.0, 2.0])).tolist() == [2.25, 0.75]
    assert sae.reconstruct(X)[0].tolist() == [4.25, 1.75]


def test_the_decoder_bias_is_taken_off_the_input_only_if_asked():
    centred = by_hand(Relu(), subtract_b_dec=True)

    assert centred.encode(X)[0].tolist() == [0.75, 2.25, 2.0]


def test_equal_pre_activations_still_give_exactly_k():
    sae = by_hand(TopK(1), W_enc=mx.ones((2, 3)), b_enc=mx.zeros(3))

    assert (np.array(sae.encode(X)) > 0).sum(axis=1).tolist() == [1, 0]


@pytest.mark.parametrize("k", range(1, 7))
def test_every_k_up_to_all_features_gives_the_k_largest(k):
    key = mx.random.key(k)
    W = mx.random.normal((4, 6), key=key)
    sae = SAE(
        W_enc=W,
        b_enc=mx.ones(6),
        W_dec=W.T,
        b_dec=mx.zeros(4),
        activation=TopK(k),
        hook_point="embed",
        model="",
    )
    x = mx.random.normal((3, 5, 4), key=key)

    pre = np.array(sae.pre_activations(x))
    kept = np.where(pre >= np.sort(pre)[..., -k : pre.shape[-1] - k + 1], np.maximum(pre, 0), 0)
    assert np.array_equal(np.array(sae.encode(x)), kept)


@pytest.mark.parametrize("activation", [TopK(4), JumpRelu(mx.full((64,), 0.8)), Relu()])
def test_a_token_has_the_same_features_alone_and_in_a_batch(activation):
    W = mx.random.normal((16, 64), key=mx.random.key(0)) / 4
    sae = SAE(
        W_enc=W,
        b_enc=mx.zeros(64),
        W_dec=W.T,
        b_dec=mx.zeros(16),
        activation=activation,
        hook_point="embed",
        model="",
    )
    x = mx.random.normal((32, 16), key=mx.random.key(1))

    together = np.array(sae.encode(x))
    alone = np.concatenate([np.array(sae.encode(x[i : i + 1])) for i in range(32)])

    assert np.array_equal(together > 0, alone > 0)
    assert np.all(np.abs(alone - together) <= 2 * product_error(x, W) + UNIT * np.abs(together))


def test_weights_of_wrong_shapes_are_all_named():
    with pytest.raises(SAEError, match=r"b_enc.*\(4,\).*must be.*'b_enc': \(3,\)"):
        by_hand(Relu(), b_enc=mx.zeros(4))
    with pytest.raises(SAEError, match="threshold"):
        by_hand(JumpRelu(mx.zeros(5)))
    with pytest.raises(SAEError, match="Choose k from 1 to 3"):
        by_hand(TopK(4))
    with pytest.raises(SAEError, match="Transcoders read their input as it is"):
        by_hand(Relu(), W_dec=mx.zeros((3, 5)), b_dec=mx.zeros(5), subtract_b_dec=True)
    with pytest.raises(UnknownHookPoint):
        by_hand(Relu(), hook_point="layer 3")


def test_activations_of_another_width_are_refused():
    with pytest.raises(SAEError, match=r"d_in = 2 at none L3.resid_post"):
        by_hand(Relu()).encode(mx.zeros((4, 3)))


def test_the_layer_is_that_of_the_hook_point_and_outside_layers_there_is_none():
    assert by_hand(Relu()).layer == 3
    with pytest.raises(SAEError, match="in no layer"):
        _ = by_hand(Relu(), hook_point="embed").layer


def test_the_digest_tells_weights_places_and_thresholds_apart():
    sae = by_hand(TopK(2))
    others = [
        replace(sae, b_enc=sae.b_enc + 1e-6),
        replace(sae, activation=TopK(1)),
        replace(sae, activation=JumpRelu(mx.zeros(3))),
        replace(sae, activation=JumpRelu(mx.ones(3))),
        replace(sae, hook_point="L4.resid_post"),
        replace(sae, subtract_b_dec=True),
    ]

    assert len({each.digest for each in [sae, *others]}) == 7
    assert by_hand(TopK(2)).digest == sae.digest
