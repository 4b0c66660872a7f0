"""From the metric of patched runs to effects: the ratio of means over clusters, each example by itself,
intervals.

Lives here: what the causal methods call. Does not live here: the estimator (`ratio.py`), how metrics were
measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxterp.statistics.arrays import Floats, finite
from mlxterp.statistics.clusters import halves, mean_by_cluster
from mlxterp.statistics.multiple import confirm_winners, max_t
from mlxterp.statistics.ratio import MIN_CLUSTERS, ratio_of_means

WINNERS = 5
"""How many of the strongest sites of a search are measured again."""


@dataclass(frozen=True, eq=False)
class Winner:
    """One of the strongest sites of a search on half of the clusters, measured on the other half.

    Attributes:
        site: its index in the flattened effects.
        searched: its effect where it was chosen: too large on average.
        effect, low, high: its effect on the other half; the intervals hold for all winners together.
    """

    site: int
    searched: float
    effect: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Search:
    """What may be said of the strongest of all sites.

    Attributes:
        low, high: intervals that hold for all sites at once, in the shape of the effects.
        winners: the strongest sites of half of the clusters, measured on the other half; empty where a half
            would have fewer than four clusters.
        chosen_on: the examples of the half that chose them.
        cautions: what limits these intervals.
    """

    low: Floats
    high: Floats
    winners: tuple[Winner, ...] = ()
    chosen_on: tuple[int, ...] = ()
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects over a dataset of n examples.

    Attributes:
        effects: (mean value − mean zero) / (mean one − mean zero) over clusters: the ratio of means, not the
            mean of ratios (which a single pair with a small gap can dominate). NaN where a value is not
            finite.
        per_example: the same for each example, `[n, *effects.shape]`; NaN for an example without a gap.
        low, high: 95 % interval; None below four independent clusters.
        clusters: how many independent ones there are.
        cautions: why there is no interval, and what limits it.
        search: of sites that were searched for the strongest, from four independent clusters on.
    """

    effects: Floats
    per_example: Floats
    low: Floats | None
    high: Floats | None
    clusters: int
    cautions: tuple[str, ...] = ()
    search: Search | None = None

    def facts(self) -> dict[str, Any]:
        """What the numbers rest on, for a result's `measured_on`."""
        said = {"intervals": " ".join(self.cautions)} if self.cautions else {}
        return {"clusters": self.clusters} | said


def effects(
    values: ArrayLike,
    *,
    one: ArrayLike,
    zero: ArrayLike,
    clusters: ArrayLike | None = None,
    search: bool = False,
    seed: int = 0,
) -> Effects:
    """Effects of `values [n, …]`, where the run `one [n]` counts as 1 and the run `zero [n]` as 0.

    Args:
        clusters: `[n]`, which examples are one observation (`mlxterp.statistics.clusters`); None: each is
            its own.
        search: whether the sites are searched for the strongest ones: adds intervals that hold for all of
            them at once, and measures the winners on examples that did not choose them.
        seed: which half of the clusters chooses the winners, and the sign flips where not all are taken.

    Raises:
        StatisticsError: a baseline that is not finite, or gaps that add up to 0.
    """
    v = np.asarray(values, dtype=np.float64)
    top, bottom = finite(one, "the run that counts as 1"), finite(zero, "the run that counts as 0")
    n, shape = len(v), v.shape[1:]
    flat = v.reshape(n, -1)
    change, gap = flat - bottom[:, None], top - bottom
    own_gap = gap != 0
    each = np.full(flat.shape, np.nan)
    each[own_gap] = change[own_gap] / gap[own_gap, None]
    known = np.isfinite(flat).all(axis=0)
    found = ratio_of_means(change[:, known], gap, clusters=clusters)
    cautions = found.cautions
    if not known.all():
        cautions += (f"{int((~known).sum())} of {known.size} effects are not finite numbers.",)

    def everywhere(part: Floats) -> Floats:
        whole = np.full(known.size, np.nan)
        whole[known] = part
        return whole.reshape(shape)

    searched = None
    if search and found.low is not None and known.any():
        of = np.arange(n) if clusters is None else np.asarray(clusters)
        at_once = max_t(change[:, known], gap, clusters=of, seed=seed)
        if at_once.low is not None and at_once.high is not None:
            winners, chosen_on = _winners(change[:, known], gap, of, seed)
            searched = Search(
                low=everywhere(at_once.low),
                high=everywhere(at_once.high),
                winners=tuple(replace(each, site=int(np.flatnonzero(known)[each.site])) for each in winners),
                chosen_on=chosen_on,
                cautions=at_once.cautions,
            )
    return Effects(
        effects=everywhere(found.effect),
        per_example=each.reshape(v.shape),
        low=None if found.low is None else everywhere(found.low),
        high=None if found.high is None else everywhere(found.high),
        clusters=found.n,
        cautions=cautions,
        search=searched,
    )


def strongest_elsewhere(
    values: ArrayLike,
    *,
    one: ArrayLike,
    zero: ArrayLike,
    clusters: ArrayLike | None = None,
    seed: int = 0,
) -> tuple[tuple[Winner, ...], tuple[int, ...]]:
    """The strongest sites of half of the clusters on the other half, and the examples that chose them, as
    `effects(search=True)` finds them, without intervals for all sites at once, which many sites make long.

    Empty where there are fewer than eight clusters, a half without a gap, or a value that is not finite.
    """
    v = np.asarray(values, dtype=np.float64)
    top, bottom = finite(one, "the run that counts as 1"), finite(zero, "the run that counts as 0")
    change = v.reshape(len(v), -1) - bottom[:, None]
    if not np.isfinite(change).all():
        return (), ()
    of = np.arange(len(v)) if clusters is None else np.asarray(clusters)
    return _winners(change, top - bottom, of, seed)


def _winners(
    change: Floats, gap: Floats, clusters: NDArray[Any], seed: int
) -> tuple[tuple[Winner, ...], tuple[int, ...]]:
    """The strongest sites of half of the clusters on the other half, and the examples that chose them.

    Nothing where a half has too few clusters, or no gap of the sign of the whole.
    """
    if len(np.unique(clusters)) < 2 * MIN_CLUSTERS:
        return (), ()
    parts = halves(clusters, seed)
    whole = mean_by_cluster(gap, clusters).sum()
    if any(mean_by_cluster(gap[part], clusters[part]).sum() * whole <= 0 for part in parts):
        return (), ()
    found = confirm_winners(change, gap, winners=min(WINNERS, change.shape[1]), clusters=clusters, seed=seed)
    again = found.confirmed
    if again.low is None or again.high is None:
        return (), ()
    rows = zip(found.chosen, found.searched, again.effect, again.low, again.high, strict=True)
    winners = tuple(Winner(int(site), *map(float, numbers)) for site, *numbers in rows if numbers[0] != 0.0)
    return winners, tuple(parts[0].tolist())
