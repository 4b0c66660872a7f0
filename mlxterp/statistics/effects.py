"""From a metric per example to an effect: ratio of means, each example by itself, and a bootstrap interval.

Lives here: the arithmetic, on numpy. What doesn't: how the metrics were measured (`sweep.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mlxterp.metrics import Floats, recovered

DRAWS = 1000
"""Bootstrap samples behind an interval."""

_ROWS = 1024  # effects per block: bounds the bootstrap's memory at DRAWS × 1024 numbers


@dataclass(frozen=True)
class Effects:
    """Effects over a dataset of n examples.

    Attributes:
        effects: (mean value − mean zero) / (mean one − mean zero): the ratio of means, not the mean of ratios
            (which a single pair with a small gap can dominate).
        per_example: the same for each example, `[n, *effects.shape]`; NaN for an example without a gap.
        low, high: 95 % percentile interval from resampling examples; None for a single example.
    """

    effects: Floats
    per_example: Floats
    low: Floats | None
    high: Floats | None


def effects(values: ArrayLike, *, one: ArrayLike, zero: ArrayLike, seed: int) -> Effects:
    """Effects of `values [n, …]`, where the run `one [n]` counts as 1 and the run `zero [n]` as 0."""
    v, c, x = (np.asarray(a, dtype=np.float64) for a in (values, one, zero))
    n, shape = len(v), v.shape[1:]
    flat = v.reshape(n, -1)
    ratio = recovered(flat.mean(axis=0), c.mean(), x.mean())
    each = recovered(flat, c[:, None], x[:, None])
    low = high = None
    if n > 1:
        low, high = (bound.reshape(shape) for bound in _interval(flat, c, x, seed))
    return Effects(ratio.reshape(shape), each.reshape(v.shape), low, high)


def _interval(flat: Floats, one: Floats, zero: Floats, seed: int) -> tuple[Floats, Floats]:
    n, rng = len(flat), np.random.default_rng(seed)
    # How often each example is drawn, so that a resampled mean is one matrix product.
    counts = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n
    counts = counts[counts @ one != counts @ zero]  # a draw without a gap says nothing
    top, bottom, by_effect = counts @ one, counts @ zero, np.ascontiguousarray(flat.T)
    bounds = [
        np.percentile(recovered(some @ counts.T, top, bottom), [2.5, 97.5], axis=1)
        for some in (by_effect[start : start + _ROWS] for start in range(0, len(by_effect), _ROWS))
    ]
    low, high = np.concatenate(bounds, axis=1)
    return low, high
