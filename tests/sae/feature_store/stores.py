"""Texts, an SAE and a comparison that the tests of feature stores share."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxterp.sae.feature_store.store import FeatureStore
from mlxterp.sae.sae import SAE, TopK

D = 32
TEXTS = [
    "the cat sat",
    "on",
    "a mat and then it went away again, far over the hills",
    "x",
    "to be or not" * 9,
]
ARRAYS = ("tokens", "document", "position", "counted", "indptr", "token_index", "activation", "token_ids")


def random_sae(d_sae: int = 24, *, d: int = D, point: str = "L1.resid_post", activation=None) -> SAE:
    random = np.random.default_rng(0)
    return SAE(
        W_enc=mx.array(random.normal(size=(d, d_sae)).astype(np.float32)),
        b_enc=mx.array(random.normal(size=d_sae).astype(np.float32)),
        W_dec=mx.array(random.normal(size=(d_sae, d)).astype(np.float32)),
        b_dec=mx.zeros(d),
        activation=TopK(5) if activation is None else activation,
        hook_point=point,
        model="tiny",
    )


def same(a: FeatureStore, b: FeatureStore) -> bool:
    """Bit for bit."""
    equal = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)
    return equal and a.strings == b.strings and a.context == b.context
