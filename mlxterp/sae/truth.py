"""How much of a planted truth an SAE found: each true direction matched with one feature.

Lives here: the matching and its numbers. Does not live here: making planted data (tests, benchmarks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from mlxterp.errors import SAEError
from mlxterp.results.sae_quality import Quality
from mlxterp.sae.sae import SAE

FOUND = 0.9
_DRAWS = 1000


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


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def _mean(name: str, values: NDArray[np.float64], drawn: NDArray[np.int64]) -> Quality:
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return Quality(name=name, value=float(values.mean()), low=float(low), high=float(high))
