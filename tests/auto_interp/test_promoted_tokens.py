"""Promoted tokens and neighbours, against a full sort; the words of a label."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxterp.auto_interp.promoted_tokens import _largest, neighbours, promotion
from mlxterp.core.model import InterpretableModel
from tests.sae.planted import random_sae
from tests.tiny_models import ByteTokenizer, tiny_module


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_promoted_tokens_are_those_whose_logits_rise_when_the_direction_is_added_at_the_end(family):
    model = InterpretableModel(tiny_module(family), ByteTokenizer())
    sae = random_sae("L2.resid_post", width=model.d_model, d_sae=9, k=None)
    found = promotion(model, sae, [0, 5], k=4)

    for feature_id in (0, 5):
        # The norm's scale is frozen: it is that of the direction alone, which no token's rank depends on.
        direction = sae.W_dec[feature_id][None, None]
        logits = np.array(model.architecture.final(direction)[0, 0])
        if family == "gpt2":
            logits -= np.array(model.architecture.final(mx.zeros_like(direction))[0, 0])
        best = [model.to_str_tokens([int(i)])[0] for i in np.argsort(-logits)[:4]]
        worst = [model.to_str_tokens([int(i)])[0] for i in np.argsort(logits)[:4]]
        assert [token for token, _ in found.promoted[feature_id]] == best
        assert [token for token, _ in found.suppressed[feature_id]] == worst
        assert found.promoted[feature_id][0][1] > 0 > found.suppressed[feature_id][0][1]


def test_an_sae_that_does_not_write_to_the_stream_promotes_nothing(tiny_llama):
    sae = random_sae("L1.z", d_sae=9, k=None)

    assert promotion(tiny_llama, sae, [0]) == ({}, {})


def test_neighbours_are_the_nearest_by_cosine():
    sae = random_sae("L0.resid_post", width=16, d_sae=30, k=None)
    rows = np.array(sae.W_dec)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    found = neighbours(sae, [4, 7], k=3)

    for feature_id in (4, 7):
        order = [int(i) for i in np.argsort(-(unit @ unit[feature_id])) if i != feature_id]
        assert list(found[feature_id]) == order[:3]


@settings(deadline=None)
@given(st.integers(12, 400), st.integers(1, 10), st.integers(0, 99))
def test_the_largest_are_found_as_by_a_sort(width, k, seed):
    values = np.random.default_rng(seed).permutation(width)[None].astype(np.float32)

    assert set(_largest(values, k)[0].tolist()) == set(np.argsort(-values[0])[:k].tolist())
