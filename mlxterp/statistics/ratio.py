"""The estimator of the project: an effect as a ratio of means over independent clusters, with its interval.

For cluster c, a_c is what the intervention changed and g_c the gap it could have closed, both means over the
cluster's pairs. The effect is R = Σ a / Σ g; a mean is the case g = 1. The standard error is the jackknife's,
the interval R ± t · se with n − 1 degrees of freedom. docs/how_sure.md has the coverage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mlxterp.errors import StatisticsError
from mlxterp.statistics.arrays import Flags, Floats, finite
from mlxterp.statistics.clusters import mean_by_cluster
from mlxterp.statistics.distributions import upper_t_quantile

SE_FLOOR = 5e-4
"""The least standard error of an effect: runs of one model repeat to about this."""

MIN_CLUSTERS = 4
"""Fewer clusters than this give no interval."""

LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Estimate:
    """Effects over clusters. Arrays have the shape of one cluster's effects: `()` for a single site.

    Attributes:
        effect: Σ a / Σ g.
        se: jackknife standard error, at least the floor; None if the effect rests on one cluster.
        low, high: the interval at `level`; None below four clusters.
        n: independent clusters.
        level: of the interval.
        skewed: where the clusters' effects are so skewed that the interval covers less than 93 %.
        cautions: why there is no interval, and what limits it.
    """

    effect: Floats
    se: Floats | None
    low: Floats | None
    high: Floats | None
    n: int
    level: float
    skewed: Flags
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Jackknife:
    """A ratio of means, its standard error without a floor, and each cluster's influence on it, `[n, …]`."""

    effect: Floats
    se: Floats
    influence: Floats


def ratio_of_means(
    change: ArrayLike,
    gap: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    level: float = LEVEL,
    se_floor: float = SE_FLOOR,
) -> Estimate:
    """R = Σ change / Σ gap over clusters, with a jackknife standard error and a t interval.

    Many sites cost one pass over `change`; nothing is drawn at random.

    Args:
        change: `[n, …]`, what the intervention changed, per pair and site.
        gap: `[n]`, what there was to change.
        clusters: `[n]`, which cluster each pair belongs to; None: pairs are independent.
        level: of the interval, both sides together.
        se_floor: the least standard error, in units of the effect.

    Raises:
        StatisticsError: a number that is not finite (with its position), shapes that do not go together, or
            gaps that add up to 0.

    Source: Cochran 1977, "Sampling Techniques", 6.17; the floor is ours.
    """
    a, g = by_cluster(change, gap, clusters)
    n = len(g)
    none = np.zeros(a.shape[1:], dtype=bool)
    if n < 2:
        return Estimate(effect_of(a, g), None, None, None, n, level, none, (too_few_clusters(n),))
    if (alone := rests_on(g)) is not None:
        why = f"No interval: {_on_one(alone)}."
        return Estimate(effect_of(a, g), None, None, None, n, level, none, (why,))
    found = jackknife(a, g)
    se = np.maximum(found.se, se_floor)
    if n < MIN_CLUSTERS:
        return Estimate(found.effect, se, None, None, n, level, none, (too_few_clusters(n),))
    half = upper_t_quantile((1 - level) / 2, n - 1) * se
    skewed, cautions = skewness(found, se_floor)
    return Estimate(
        effect=found.effect,
        se=se,
        low=found.effect - half,
        high=found.effect + half,
        n=n,
        level=level,
        skewed=skewed,
        cautions=cautions,
    )


def mean_of(
    values: ArrayLike, *, clusters: ArrayLike | None = None, level: float = LEVEL, se_floor: float = 0.0
) -> Estimate:
    """The mean over clusters with its t interval: `ratio_of_means` with a gap of 1, and no floor."""
    rows = np.asarray(values, dtype=np.float64)
    if not rows.ndim:
        raise StatisticsError("the mean of one number without an axis. Give [n, …].")
    return ratio_of_means(rows, np.ones(len(rows)), clusters=clusters, level=level, se_floor=se_floor)


def by_cluster(change: ArrayLike, gap: ArrayLike, clusters: ArrayLike | None) -> tuple[Floats, Floats]:
    """`change` and `gap` as one row per cluster, checked.

    Raises:
        StatisticsError: as `ratio_of_means`.
    """
    a, g = finite(change, "change"), finite(gap, "gap")
    if g.ndim != 1 or a.shape[:1] != g.shape or not len(g):
        raise StatisticsError(
            f"change of shape {a.shape} and gap of shape {g.shape}. Give [n, …] and [n], n at least 1."
        )
    if clusters is not None:
        a, g = mean_by_cluster(a, clusters), mean_by_cluster(g, clusters)
    total = g.sum()
    if total == 0:
        raise StatisticsError("the gaps add up to 0, so there is nothing an effect could be a share of.")
    return a, g


def effect_of(change: Floats, gap: Floats) -> Floats:
    """Σ change / Σ gap."""
    return np.asarray(change.sum(axis=0) / gap.sum())


def rests_on(gap: Floats) -> int | None:
    """The cluster without which the gaps add up to 0, so that the effect rests on it alone; None if there is
    none.
    """
    alone = np.flatnonzero(gap.sum() - gap == 0)
    return int(alone[0]) if len(alone) else None


def jackknife(change: Floats, gap: Floats) -> Jackknife:
    """The ratio with the jackknife's standard error, of rows that `by_cluster` has checked; n at least 2.

    se² = (n − 1)/n · Σ (R₍₋c₎ − mean R₍₋c₎)², where R₍₋c₎ leaves cluster c out.

    Raises:
        StatisticsError: the effect rests on one cluster.
    """
    n = len(gap)
    if (alone := rests_on(gap)) is not None:
        raise StatisticsError(f"{_on_one(alone)}. Give pairs on which the model shows the behaviour.")
    column = gap.reshape(-1, *[1] * (change.ndim - 1))
    effect = effect_of(change, gap)
    # R(-c) - R, written as a residual over the remaining gap: no difference of two nearly equal ratios.
    left_out = (column * effect - change) / (gap.sum() - column)
    centred = left_out - left_out.mean(axis=0)
    return Jackknife(effect, np.sqrt((n - 1) / n * (centred**2).sum(axis=0)), -(n - 1) * centred)


SKEW_LIMIT = 1.0
"""Sample skewness beyond which effects are called skewed: 1 to 6 % of normal datasets of 16 to 24 clusters,
half to nine tenths of exponential and lognormal ones."""

SKEW_VISIBLE = 16
"""From this many clusters on skewness can be seen in the data; below it every result says that it was not."""


def is_skewed(influence: Floats) -> Flags:
    """Where the clusters are so skewed that a 95 % interval covers less than 93 %.

    The coverage of a t interval is 95 % − 0.25 γ²/n to first order (Hall 1992, "The Bootstrap and Edgeworth
    Expansion", 2.5); measured, data with γ ≥ 1.75 cover less than 93 % up to 24 clusters. γ is estimated from
    the clusters, corrected for small n. Below 16 clusters the estimate says little: `Estimate.cautions` says
    so.
    """
    n = len(influence)
    centred = influence - influence.mean(axis=0)
    second, third = (centred**2).mean(axis=0), (centred**3).mean(axis=0)
    scale = np.where(second > 0, second, 1.0) ** 1.5
    skewness = np.where(second > 0, third / scale, 0.0) * np.sqrt(n * (n - 1)) / (n - 2)
    return np.asarray(np.abs(skewness) > SKEW_LIMIT)


def _on_one(cluster: int) -> str:
    return f"without cluster {cluster} the gaps add up to 0, so the effect rests on it alone"


def too_few_clusters(n: int) -> str:
    """Why there is no interval."""
    there = "1 independent cluster" if n == 1 else f"{n} independent clusters"
    return (
        f"No interval: {there}, and it takes {MIN_CLUSTERS} (pairs that share a prompt are one). "
        "Give more pairs."
    )


def skewness(found: Jackknife, se_floor: float) -> tuple[Flags, tuple[str, ...]]:
    """Which effects are skewed, and what a reader should know of it; nothing where no effect varies by more
    than the floor of the standard error."""
    varies = found.se > se_floor
    skewed = is_skewed(found.influence) & varies
    return skewed, _skew_cautions(skewed, len(found.influence)) if varies.any() else ()


def _skew_cautions(skewed: Flags, n: int) -> tuple[str, ...]:
    """What a reader should know of intervals over clusters that are skewed, or too few to see whether they
    are.
    """
    if n < SKEW_VISIBLE:
        return (
            f"{n} clusters: the interval assumes that effects are not skewed, which takes {SKEW_VISIBLE} "
            "to see. If they are, a 95 % interval covers 83 to 93 %.",
        )
    if not skewed.any():
        return ()
    which = "The effect is" if skewed.size == 1 else f"{int(skewed.sum())} of {skewed.size} effects are"
    return (
        f"{which} skewed over {n} clusters (a few clusters carry most of it): there a 95 % interval covers "
        "less than 93 %.",
    )
