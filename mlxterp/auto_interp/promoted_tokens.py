"""What features do to the logits directly, and which have similar directions: from the weights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.auto_interp.evidence.evidence import Weighted
from mlxterp.core.linux_blas import blas
from mlxterp.core.model import InterpretableModel
from mlxterp.sae.sae import SAE

_WRITES_TO_RESIDUAL = ("embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
_AT_ONCE = 256


class Promotion(NamedTuple):
    """By feature: the tokens whose logits it raises most, and lowers most, with by how much."""

    promoted: Mapping[int, Weighted]
    suppressed: Mapping[int, Weighted]


@blas.pinned_threads()
def promotion(model: InterpretableModel, sae: SAE, feature_ids: Sequence[int], *, k: int = 10) -> Promotion:
    """The k tokens that each feature's decoder row raises and lowers most, by the unembedding alone.

    W_dec[f] times the final norm's weight times W_U, less its mean over the vocabulary, as if the norm's
    scale were 1: comparable within a feature. Says little of early layers, whose writing later layers read.
    Empty where the SAE does not write to the residual stream, or the model has no norm and unembedding we can
    read. Costs 2 · d_out · d_vocab operations a feature.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    if not _readable(model, sae) or not len(feature_ids):
        return Promotion({}, {})
    centred, k = _centred_directions(model), min(k, model.d_vocab)
    high: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
    low: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
    for i in range(0, len(feature_ids), _AT_ONCE):
        ids = list(feature_ids[i : i + _AT_ONCE])
        logits = np.array(sae.W_dec[mx.array(ids)] @ centred.T)
        for signed, found in ((logits, high), (-logits, low)):
            best = _largest(signed, k)
            for feature_id, tokens, row in zip(ids, best, signed, strict=True):
                tokens = tokens[np.lexsort((tokens, -row[tokens]))]
                found[feature_id] = (tokens, row[tokens])
    names: dict[int, str] = {}
    for tokens, _ in (*high.values(), *low.values()):
        for token in tokens.tolist():
            if token not in names:
                names[token] = model.to_str_tokens([token])[0]
    return Promotion(_named(high, names, 1.0), _named(low, names, -1.0))


def promoted_ids(model: InterpretableModel, sae: SAE, feature_id: int, *, k: int = 10) -> NDArray[np.int64]:
    """The ids of the k tokens that one feature raises most, by the same rule; none where it cannot be read.

    Only such as it raises at all, and of a small vocabulary no more than a quarter.
    """
    if not _readable(model, sae):
        return np.zeros(0, dtype=np.int64)
    logits = np.array(_centred_directions(model) @ sae.W_dec[feature_id])
    best = np.argsort(-logits, kind="stable")[: min(k, max(1, model.d_vocab // 4))]
    return best[logits[best] > 0].astype(np.int64)


def _readable(model: InterpretableModel, sae: SAE) -> bool:
    parts = [model.capabilities.get(name) for name in ("unembedding", "final_norm_formula")]
    readable = all(part is None or part.available for part in parts)
    return readable and sae.point_out.name in _WRITES_TO_RESIDUAL


def _centred_directions(model: InterpretableModel) -> mx.array:
    """[d_vocab, d_model] what makes each token's logit, less its mean over the vocabulary."""
    directions, _ = model.architecture.logit_directions(mx.arange(model.d_vocab))
    return directions - directions.mean(axis=0)


def _largest(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """[n, k] where the k largest of each row are: they lie in the k blocks of the largest maxima."""
    n, width = values.shape
    size = max(k, int(width**0.5))
    whole = width // size * size
    if whole // size <= k:
        return np.argpartition(values, width - k, axis=-1)[:, width - k :]
    maxima = values[:, :whole].reshape(n, -1, size).max(axis=-1)
    blocks = np.argpartition(maxima, -k, axis=-1)[:, -k:]
    inside = (blocks[:, :, None] * size + np.arange(size)).reshape(n, -1)
    places = np.concatenate([inside, np.broadcast_to(np.arange(whole, width), (n, width - whole))], axis=1)
    best = np.argpartition(np.take_along_axis(values, places, axis=1), -k, axis=-1)[:, -k:]
    return np.take_along_axis(places, best, axis=1)


def _named(
    found: Mapping[int, tuple[NDArray[np.int64], NDArray[np.float32]]], names: Mapping[int, str], sign: float
) -> dict[int, Weighted]:
    return {
        feature_id: tuple(
            (names[token], sign * value) for token, value in zip(tokens.tolist(), row.tolist(), strict=True)
        )
        for feature_id, (tokens, row) in found.items()
    }


@blas.pinned_threads()
def neighbours(sae: SAE, feature_ids: Sequence[int], *, k: int = 5) -> dict[int, tuple[int, ...]]:
    """The k features whose decoder rows point most nearly the same way, most similar first, by cosine."""
    rows = sae.W_dec / mx.maximum(mx.linalg.norm(sae.W_dec, axis=-1, keepdims=True), 1e-12)
    found: dict[int, tuple[int, ...]] = {}
    k = min(k, sae.d_sae - 1)
    for i in range(0, len(feature_ids), _AT_ONCE):
        ids = list(feature_ids[i : i + _AT_ONCE])
        cosines = np.array(rows[mx.array(ids)] @ rows.T)
        cosines[np.arange(len(ids)), ids] = -np.inf
        for feature_id, row in zip(ids, cosines, strict=True):
            found[feature_id] = tuple(int(j) for j in np.argsort(-row, kind="stable")[:k])
    return found
