"""Many sites, one conclusion: corrections for how many were searched, and winners measured again.

With no effect anywhere, the best of 36 heads looks strong in most sweeps over few pairs. Three remedies:
p-values corrected for the number of sites (`holm`, `benjamini_hochberg`), intervals that hold for all sites
at once (`max_t`), and the winner's effect on pairs that did not choose it (`confirm_winners`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mlxterp.errors import StatisticsError
from mlxterp.statistics.arrays import Flags, Floats, Ints, finite, finite_row
from mlxterp.statistics.clusters import halves
from mlxterp.statistics.distributions import t_sf, upper_t_quantile
from mlxterp.statistics.ratio import (
    LEVEL,
    MIN_CLUSTERS,
    SE_FLOOR,
    Estimate,
    Jackknife,
    by_cluster,
    jackknife,
    ratio_of_means,
    skewness,
)
from mlxterp.statistics.significance import sign_flips

NEGLIGIBLE = 0.05
"""The effect that a site has to exceed, for all sites searched at once, to be called established. With enough
pairs a quarter of all heads differ from 0, so that a difference from 0 is evidence of nothing."""

SKEWED_SEARCH = (
    "If effects are skewed, 8 to 53 % of sweeps without any real one have a site that looks established; "
    "measure it on other pairs."
)
"""Of 4,000 sweeps over 36 heads, exponential to lognormal effects over 16 clusters."""

DRAWS = 4999
_SITES_AT_ONCE = 512


def holm(p: ArrayLike) -> Floats:
    """p-values adjusted for all of them (Holm 1979): at most alpha false rejections with probability alpha,
    whatever their dependence.

    Raises:
        StatisticsError: none, or one that is no probability.
    """
    values = _probabilities(p)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return _unsorted(np.minimum(stepped, 1.0), order)


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """p-values adjusted so that, of those at most q, a share of at most q is false on average (1995).

    For independent or positively dependent tests.

    Raises:
        StatisticsError: none, or one that is no probability.
    """
    values = _probabilities(p)
    n, order = len(values), np.argsort(values, kind="stable")
    scaled = values[order] * (n / np.arange(1, n + 1))  # the largest p itself, to the last bit
    return _unsorted(np.minimum.accumulate(scaled[::-1])[::-1], order)


@dataclass(frozen=True, eq=False)
class Simultaneous:
    """Effects of all sites searched, with intervals that hold for all of them at once.

    Attributes:
        effect: `[sites]`.
        low, high: intervals that all hold together in `level` of datasets; None below four clusters.
        p: the probability, with no effect at any site, that the best of all sites looks as strong as this
            one.
        sites: how many were searched.
        n: independent clusters.
        cautions: why there are no intervals, or why they are wide; and, where effects are skewed or too few
            to see whether they are, how often the best of many is then beyond its interval.
    """

    effect: Floats
    low: Floats | None
    high: Floats | None
    p: Floats
    sites: int
    n: int
    level: float
    cautions: tuple[str, ...] = ()

    def beyond(self, size: float) -> Flags:
        """The sites whose effect is larger than `size` in magnitude, all of them together at `level`."""
        if self.low is None or self.high is None:
            return np.zeros(self.sites, dtype=bool)
        return np.asarray((self.low > size) | (self.high < -size))


def max_t(
    change: ArrayLike,
    gap: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
    se_floor: float = SE_FLOOR,
) -> Simultaneous:
    """Simultaneous inference over all sites of a sweep by the largest |t| under flipped signs.

    Under no effect the clusters' changes are as likely with either sign; the same flips for all sites keep
    their dependence. p compares each site's |t| with the largest |t| over all sites under each flip. The
    intervals use the same for the residuals a − R g, and at least Student's t of a single site. Four and five
    clusters have too few flips for 95 %: there p and intervals are Student's with Bonferroni's correction for
    the number of sites.

    Cost: draws × sites × clusters multiplications.

    Args:
        change, gap, clusters, se_floor: as in `ratio_of_means`; `change` is `[n, sites]`.
        draws: random flips, where there are more than that in all.

    Raises:
        StatisticsError: as `ratio_of_means`; one cluster.

    Source: Westfall and Young 1993, "Resampling-based multiple testing"; Romano and Wolf 2005.
    """
    a, g = by_cluster(change, gap, clusters)
    if a.ndim != 2 or len(g) < 2:
        raise StatisticsError(
            f"changes of shape {a.shape}: give [clusters, sites] with at least two clusters."
        )
    n, sites = a.shape
    found = jackknife(a, g)
    se = np.maximum(found.se, se_floor)
    signs = sign_flips(n, seed=seed, draws=draws)
    mean_gap = g.mean()  # stays as it is when the signs of the changes are flipped
    own = np.abs(a.mean(axis=0) / mean_gap) / _t_scale(a / mean_gap, se_floor)

    def simultaneous(p: Floats, half: Floats | None, cautions: tuple[str, ...]) -> Simultaneous:
        low, high = (None, None) if half is None else (found.effect - half, found.effect + half)
        return Simultaneous(found.effect, low, high, p, sites, n, level, cautions)

    if 1 / len(signs) > 1 - level:
        p = np.minimum(1.0, 2 * sites * t_sf(own, n - 1))
        few = f"{n} clusters give {len(signs)} sign flips, too few for intervals over {sites} sites at once"
        if n < MIN_CLUSTERS:
            return simultaneous(p, None, (f"{few}. Give at least {MIN_CLUSTERS} clusters.",))
        cautions = _skew_cautions(found, se_floor)
        half = upper_t_quantile((1 - level) / 2 / sites, n - 1) * se
        why = f"{few}: these are Student's with Bonferroni's correction, very wide. Give at least 6 clusters."
        return simultaneous(p, half, (why, *cautions))
    flipped = np.zeros(len(signs))
    centred = np.zeros(len(signs))
    for start in range(0, sites, _SITES_AT_ONCE):
        part = slice(start, start + _SITES_AT_ONCE)
        residual = a[:, part] - g[:, None] * found.effect[part]
        np.maximum(flipped, _largest_t(signs, a[:, part] / mean_gap, se_floor), out=flipped)
        np.maximum(centred, _largest_t(signs, residual / mean_gap, se_floor), out=centred)
    as_large = len(flipped) - np.searchsorted(np.sort(flipped), own * (1 - 1e-9), side="left")
    p = as_large / len(flipped)
    # Where the floor holds, residuals are within it and flips of them too: never narrower than for one site.
    one_site = upper_t_quantile((1 - level) / 2, n - 1)
    critical = max(one_site, float(np.sort(centred)[int(np.ceil(level * len(centred))) - 1]))
    return simultaneous(p, critical * se, _skew_cautions(found, se_floor))


def _skew_cautions(found: Jackknife, se_floor: float) -> tuple[str, ...]:
    _, cautions = skewness(found, se_floor)
    return (*cautions, SKEWED_SEARCH) if cautions else ()


@dataclass(frozen=True, eq=False)
class Winners:
    """The strongest sites of a search, and their effects on clusters that did not choose them.

    Attributes:
        chosen: their indices, strongest first.
        searched: their effects where they were chosen: too large on average.
        confirmed: their effects on the other clusters; the intervals hold for all winners together.
        sites: how many were searched.
    """

    chosen: Ints
    searched: Floats
    confirmed: Estimate
    sites: int


def confirm_winners(
    change: ArrayLike,
    gap: ArrayLike,
    *,
    winners: int,
    clusters: ArrayLike | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> Winners:
    """Chooses the strongest sites on half of the clusters, and measures them on the other half.

    The intervals are corrected for the number of winners (Bonferroni), not for the number of sites searched:
    the pairs that measure did not choose.

    Args:
        change: `[n, sites]`; the rest as in `ratio_of_means`.
        winners: how many to choose, at most as many as there are sites.
        seed: of the split.

    Raises:
        StatisticsError: as `ratio_of_means` and `halves`; more winners than sites, or none.
    """
    rows, gaps = finite(change, "change"), finite_row(gap, "gap")
    if rows.ndim != 2 or not 1 <= winners <= rows.shape[1]:
        raise StatisticsError(
            f"{winners} winners among changes of shape {rows.shape}. Give [n, sites], and fewer."
        )
    of = np.arange(len(rows)) if clusters is None else np.asarray(clusters)
    search, confirm = halves(of, seed)
    found = ratio_of_means(rows[search], gaps[search], clusters=of[search])
    chosen = np.argsort(-np.abs(found.effect), kind="stable")[:winners]
    confirmed = ratio_of_means(
        rows[np.ix_(confirm, chosen)], gaps[confirm], clusters=of[confirm], level=1 - (1 - level) / winners
    )
    return Winners(chosen, found.effect[chosen], confirmed, rows.shape[1])


def _t_scale(values: Floats, se_floor: float) -> Floats:
    n = len(values)
    return np.asarray(np.maximum(values.std(axis=0, ddof=1) / np.sqrt(n), se_floor))


def _largest_t(signs: Floats, values: Floats, se_floor: float) -> Floats:
    """The largest |t| over sites of `values [n, sites]` under each row of signs."""
    n = len(values)
    means = signs @ values / n
    variance = ((values**2).sum(axis=0) - n * means**2) / (n - 1)
    t = np.abs(means) / np.maximum(np.sqrt(np.maximum(variance, 0.0) / n), se_floor)
    return np.asarray(t.max(axis=1))


def _probabilities(p: ArrayLike) -> Floats:
    values = finite_row(p, "p-values")
    if values.min() < 0 or values.max() > 1:
        raise StatisticsError(f"p-values from {values.min():g} to {values.max():g}. Give probabilities.")
    return values


def _unsorted(values: Floats, order: Ints) -> Floats:
    result = np.empty_like(values)
    result[order] = values
    return result
