"""How much of a planted truth an SAE found: each true direction matched with one feature; absorption.

Lives here: the matching, and numbers that follow from it. Does not live here: making planted data (tests,
benchmarks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from mlxterp.errors import SAEError
from mlxterp.results.sae_quality import Quality
from mlxterp.sae.sae import SAE

FOUND = 0.9
COVERS = 0.25
_DRAWS = 1000
_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class Recovery:
    """True directions matched one to one with features so that the sum of cosines is largest.

    Attributes:
        mcc: mean cosine of the matched pairs.
        recovered: share of true directions whose match has a cosine above 0.9.
        features: [true], the matched feature of each, −1 where there are fewer features.
        cosines: [true], 0 where there is none.
    """

    mcc: Quality
    recovered: Quality
    features: NDArray[np.int64]
    cosines: NDArray[np.float64]


def recovery(sae: SAE, directions: ArrayLike, *, seed: int = 0) -> Recovery:
    """Matches the rows of `directions` [true, d_out] with decoder rows (Hungarian method).

    A feature stands for one direction only, so that a feature between two does not count twice. Intervals are
    bootstraps over the true directions.

    Raises:
        SAEError: directions of another width.
    """
    true: NDArray[Any] = np.asarray(directions, dtype=np.float64)
    if true.ndim != 2 or true.shape[1] != sae.d_out:
        raise SAEError(
            f"Directions of shape {true.shape} for an SAE that writes {sae.d_out} values; give [true, d_out]."
        )
    rows = np.array(sae.W_dec).astype(np.float64)
    cosines = _unit(true) @ _unit(rows).T
    of, feature = linear_sum_assignment(-cosines)
    matched, features = np.zeros(len(true)), np.full(len(true), -1, dtype=np.int64)
    matched[of], features[of] = cosines[of, feature], feature
    drawn = np.random.default_rng(seed).integers(0, len(true), size=(_DRAWS, len(true)))
    return Recovery(
        _mean("mcc", matched, drawn),
        _mean("recovered", (matched > FOUND).astype(float), drawn),
        features,
        matched,
    )


def absorption(
    sae: SAE, x: ArrayLike, directions: ArrayLike, fires: ArrayLike, parents: ArrayLike, *, seed: int = 0
) -> Quality:
    """How often a general feature is silent because a special one has taken it over; 0 is best.

    A parent is a true feature that others, its children, only fire together with. On a token where it fires
    in truth, it is absorbed if the feature matched with it (`recovery`) does not fire, and a feature matched
    with one of its children fires that writes the parent too: the cosine of its decoder row with the part of
    the parent's direction that is orthogonal to that child's is at least 0.25. (Of a clean child it is 0; of
    a sum of orthogonal parent and child 0.71.)

    The value is the share of such tokens among those where the parent fires, averaged over the parents; the
    interval is a bootstrap over them.

    Args:
        x: activations [tokens, d_in].
        directions: [true, d_out].
        fires: [tokens, true], whether each true feature fires.
        parents: [true], the index of each feature's parent, −1 where it has none.

    Raises:
        SAEError: shapes that do not go together; no parent, or one that never fires.

    Source: Chanin et al. 2024, "A is for Absorption", arXiv:2409.14507. Deviations: truth is planted, so it
    stands in for their probe and for the choice of the feature's own latents; a child's latent stands in for
    the one with the largest effect.
    """
    true, on = np.asarray(directions, dtype=np.float64), np.asarray(fires, dtype=bool)
    of, rows_in = np.asarray(parents, dtype=np.int64), np.asarray(x, dtype=np.float32)
    if on.shape != (len(rows_in), len(true)) or of.shape != (len(true),):
        raise SAEError(
            f"Absorption of {len(true)} features on {len(rows_in)} tokens with fires {on.shape} and parents "
            f"{of.shape}; give [tokens, true] and [true]."
        )
    every = [int(parent) for parent in np.unique(of[of >= 0])]
    silent = [parent for parent in every if not on[:, parent].any()]
    if not every or silent:
        raise SAEError(
            f"Absorption of parents {every}, of which {silent} never fire. Give features with children "
            "(parents[child] = parent), and tokens on which they fire."
        )
    matched = recovery(sae, true, seed=seed).features
    active = _active(sae, rows_in)
    rows, unit = _unit(np.array(sae.W_dec).astype(np.float64)), _unit(true)
    shares = []
    for parent in every:
        own = matched[parent]
        missed = on[:, parent] & (~active[:, own] if own >= 0 else True)
        covered = np.zeros(len(on), dtype=bool)
        for child in np.flatnonzero(of == parent):
            rest = unit[parent] - (unit[parent] @ unit[child]) * unit[child]
            feature = matched[child]
            if feature >= 0 and rows[feature] @ _unit(rest[None])[0] >= COVERS:
                covered |= active[:, feature]
        shares.append((missed & covered).sum() / on[:, parent].sum())
    drawn = np.random.default_rng(seed).integers(0, len(every), size=(_DRAWS, len(every)))
    return _mean("absorption", np.array(shares), drawn)


def _active(sae: SAE, x: NDArray[np.float32]) -> NDArray[np.bool_]:
    pieces = [np.array(sae.encode(mx.array(x[low : low + _TOKENS])) > 0) for low in range(0, len(x), _TOKENS)]
    return np.concatenate(pieces)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def _mean(name: str, values: NDArray[np.float64], drawn: NDArray[np.int64]) -> Quality:
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return Quality(name=name, value=float(values.mean()), low=float(low), high=float(high))
