"""From the metric of patched runs to effects: the ratio of means over clusters, each example by itself,
intervals.

Lives here: what the causal methods call. Does not live here: the estimator (`ratio.py`), how metrics were
measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mlxterp.statistics.arrays import Floats, finite
from mlxterp.statistics.ratio import ratio_of_means


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
    """

    effects: Floats
    per_example: Floats
    low: Floats | None
    high: Floats | None
    clusters: int
    cautions: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What the numbers rest on, for a result's `measured_on`."""
        said = {"intervals": " ".join(self.cautions)} if self.cautions else {}
        return {"clusters": self.clusters} | said


def effects(
    values: ArrayLike, *, one: ArrayLike, zero: ArrayLike, clusters: ArrayLike | None = None, seed: int = 0
) -> Effects:
    """Effects of `values [n, …]`, where the run `one [n]` counts as 1 and the run `zero [n]` as 0.

    Args:
        clusters: `[n]`, which examples are one observation (`mlxterp.statistics.clusters`); None: each is
            its own.
        seed: of earlier versions, whose intervals were drawn; changes nothing.

    Raises:
        StatisticsError: a baseline that is not finite, or gaps that add up to 0.
    """
    del seed
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

    return Effects(
        effects=everywhere(found.effect),
        per_example=each.reshape(v.shape),
        low=None if found.low is None else everywhere(found.low),
        high=None if found.high is None else everywhere(found.high),
        clusters=found.n,
        cautions=cautions,
    )
