"""Datasets with a known effect, for tests of coverage."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mlxterp.statistics.arrays import Floats
from mlxterp.statistics.ratio import Estimate, ratio_of_means

CLUSTERS = (4, 6, 8, 10, 16, 24, 48)
PER_GAP = 100

NOISE: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "t3": lambda rng, shape: rng.standard_t(3, size=shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1.0,
    "lognormal": lambda rng, shape: rng.lognormal(size=shape) - math.exp(0.5),
}


def datasets(kind: str, n: int, *, effect: float, count: int, seed: int) -> list[Estimate]:
    """`count` datasets of n clusters whose true effect is `effect`, in groups of 100 that share their gaps.

    Gaps vary by a quarter of their mean; the noise of the changes has that spread too.
    """
    rng = np.random.default_rng([seed, n])
    found = []
    for _ in range(count // PER_GAP):
        gap = 3.0 + 0.75 * rng.normal(size=n)
        change = effect * gap[:, None] + 0.75 * NOISE[kind](rng, (n, PER_GAP))
        found.append(ratio_of_means(change, gap))
    return found


def coverage(estimates: list[Estimate], truth: float) -> float:
    """The share of intervals that hold the truth."""
    return float(np.mean([(each.low <= truth) & (truth <= each.high) for each in estimates]))


def flagged(estimates: list[Estimate]) -> float:
    """The share of datasets called skewed."""
    return float(np.mean([each.skewed for each in estimates]))
