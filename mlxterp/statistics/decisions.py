"""The statistics of the keep rule: from cells measured on held-out clusters to supported, refuted, ruled out
or inconclusive.

Lives here: the split, the behaviour gate, the placebo bar, a look, the decision. Does not live here:
measuring, hiding numbers while a run is open, which other checks come first
(`mlxterp.autointerpret.keep_rule`).

The null is the smallest effect of interest S, not 0: with enough pairs a quarter of all heads differ from 0.
The nulls R ≤ S/2, R ≥ −S/2 and |R| ≥ S exclude each other's rejections, so one level serves all three
verdicts; two looks share it by halves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mlxterp.errors import StatisticsError
from mlxterp.statistics.arrays import Floats, finite, finite_row
from mlxterp.statistics.clusters import Split, hashed_order
from mlxterp.statistics.distributions import upper_t_quantile
from mlxterp.statistics.outcome import (
    N_MIN,
    PLACEBOS_MIN,
    Comparison,
    Direction,
    Outcome,
    missing,
    outcome_of,
)
from mlxterp.statistics.ratio import SE_FLOOR, by_cluster, effect_of, jackknife
from mlxterp.text import percent

N_FIRST = 24
N_MOST = 48
EXPLORE_MIN = 8
CLUSTERS_NEEDED = EXPLORE_MIN + N_MIN
"""Independent clusters of a dataset from which on declared claims are decided."""
PLACEBOS = 24
SESOI = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Smallest effects of interest that may be declared: a grid, so that verdicts do not bisect an effect."""

POWER_QUANTILE = 1.645
"""Of the normal distribution at 95 %: the effect that is found in 19 of 20 cases."""


@dataclass(frozen=True, eq=False)
class Cells:
    """One row per cluster: what the intervention changed, the gap, and the cluster's name, in the order of
    looks.
    """

    change: Floats
    gap: Floats
    clusters: tuple[str, ...]

    def __post_init__(self) -> None:
        change, gap = finite_row(self.change, "change"), finite_row(self.gap, "gap")
        if not len(change) == len(gap) == len(set(self.clusters)) == len(self.clusters):
            raise StatisticsError(
                f"{len(change)} changes, {len(gap)} gaps and {len(set(self.clusters))} distinct clusters. "
                "Give one of each per cluster: join pairs with `cells_of`."
            )
        object.__setattr__(self, "change", change)
        object.__setattr__(self, "gap", gap)

    def __len__(self) -> int:
        return len(self.clusters)

    def of(self, clusters: Sequence[str]) -> Cells | None:
        """The rows of these clusters; None if there are none."""
        wanted = set(clusters)
        kept = [i for i, each in enumerate(self.clusters) if each in wanted]
        if not kept:
            return None
        return Cells(self.change[kept], self.gap[kept], tuple(self.clusters[i] for i in kept))


def cells_of(change: ArrayLike, gap: ArrayLike, clusters: Sequence[str]) -> Cells:
    """Pairs joined by cluster, each the mean over its pairs, in order of the clusters' first appearance.

    Raises:
        StatisticsError: a number that is not finite, or lengths that differ.
    """
    order = {each: k for k, each in enumerate(dict.fromkeys(clusters))}
    index = np.array([order[each] for each in clusters], dtype=np.int64)
    a, g = by_cluster(change, gap, index)
    return Cells(a, g, tuple(order))


def split(clusters: Sequence[str], salt: str) -> Split:
    """The clusters to explore and those to confirm on, by cluster and never by pair.

    From 72 clusters on 24 are explored, from 24 on 8; the next 48 at most confirm. Below 24 there is no
    confirm part, and declared claims end inconclusive.
    """
    order = hashed_order(clusters, salt)
    n = len(order)
    if n < CLUSTERS_NEEDED:
        why = f"needs at least {CLUSTERS_NEEDED} independent clusters, setup.py has {n}"
        return Split(order, (), reason=why)
    explored = N_FIRST if n >= N_FIRST + N_MOST else EXPLORE_MIN
    return Split(order[:explored], order[explored : explored + N_MOST], order[explored + N_MOST :])


def placebo_bar(effects: ArrayLike) -> float | None:
    """median + 3 · 1.4826 · median absolute deviation of |effect| at sites that were not claimed.

    None for fewer than six placebos: then nothing can be compared with them.

    Raises:
        StatisticsError: an effect that is not finite.
    """
    size = np.abs(finite(effects, "placebo effects")).ravel()
    if len(size) < PLACEBOS_MIN:
        return None
    middle = float(np.median(size))
    return middle + 3 * 1.4826 * float(np.median(np.abs(size - middle)))


@dataclass(frozen=True)
class Claim:
    """What a look is held against.

    Attributes:
        sesoi: the smallest effect of interest S, one of the grid.
        direction: of the effect: "increase" (R > 0), "decrease", "either", or "none" (the claim is that there
            is none).
        bar: what |R| must exceed: see `placebo_bar`; None if too few placebos were measured.
        slices: the cells of each declared slice; the sign must hold in all.
    """

    sesoi: float
    direction: Direction = "increase"
    bar: float | None = None
    slices: Mapping[str, Cells] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(math.isclose(self.sesoi, each) for each in SESOI):
            raise StatisticsError(f"a smallest effect of interest of {self.sesoi:g}. Choose one of {SESOI}.")
        if self.direction not in ("increase", "decrease", "either", "none"):
            raise StatisticsError(
                f"direction {self.direction!r}. Choose 'increase', 'decrease', 'either' or 'none'."
            )
        if self.bar is not None and not (math.isfinite(self.bar) and self.bar >= 0):
            raise StatisticsError(f"a placebo bar of {self.bar}. It is a size: 0 or more, or None.")


@dataclass(frozen=True)
class Look:
    """One look at the cells.

    Attributes:
        outcome: the verdict at this look.
        comparison: R in its own sign, the ends at `alpha` on each side, and what they were held against.
        se: the standard error of R.
        n: clusters looked at.
        alpha: the level of each side.
        mde: the effect that would be supported in 19 of 20 cases with this many clusters and this spread.
        missing: of an inconclusive look, what kept it from a verdict.
    """

    outcome: Outcome
    comparison: Comparison
    se: float
    n: int
    alpha: float
    mde: float
    missing: tuple[str, ...] = ()

    @property
    def effect(self) -> float:
        return self.comparison.effect

    @property
    def low(self) -> float:
        return self.comparison.low

    @property
    def high(self) -> float:
        return self.comparison.high


def look(cells: Cells, claim: Claim, alpha: float) -> Look:
    """The verdict on these cells at level `alpha` of each side.

    supported: the lower end exceeds S/2, R ≥ S, |R| exceeds the bar, and R > 0 in every slice, all in the
    predicted direction. refuted: its mirror image. ruled_out: both ends inside ±S (two one-sided tests). With
    direction "none", ruling out supports the claim and an effect on either side refutes it. With "either", an
    effect on either side supports it, and each side gets half of `alpha`.

    Raises:
        StatisticsError: alpha outside (0, 0.5), or fewer than two clusters.
    """
    if not 0 < alpha < 0.5:
        raise StatisticsError(f"a look at level {alpha!r}. Give one between 0 and 0.5.")
    if len(cells) < 2:
        raise StatisticsError(f"a look at {len(cells)} cluster. Give at least two, {N_MIN} for a verdict.")
    a, g = by_cluster(cells.change, cells.gap, None)
    each_side = alpha / 2 if claim.direction == "either" else alpha
    found = jackknife(a, g)
    effect, se = float(found.effect), max(float(found.se), SE_FLOOR)
    q = upper_t_quantile(each_side, len(cells) - 1)
    low, high = effect - q * se, effect + q * se
    slices = {name: _effect_in(rows.of(cells.clusters)) for name, rows in claim.slices.items()}
    comparison = Comparison(
        effect=effect,
        low=low,
        high=high,
        sesoi=claim.sesoi,
        direction=claim.direction,
        bar=claim.bar,
        slices=slices,
    )
    outcome = outcome_of(comparison)
    why = missing(comparison) if outcome == "inconclusive" else ()
    mde = claim.sesoi / 2 + (q + POWER_QUANTILE) * se
    return Look(outcome, comparison, se, len(cells), each_side, mde, why)


def judge(cells: Cells, claim: Claim, alpha: float) -> Look:
    """The decision on a claim: a look at the first 24 clusters, and if that is inconclusive one at up to 48.

    Each look has half of `alpha` (the claim's level from `sequential.level`). Fewer than 16 clusters decide
    nothing.

    Args:
        cells: confirm clusters, in an order that does not depend on their effects.

    Raises:
        StatisticsError: as `look`.
    """
    first = look(_first(cells, N_FIRST), claim, alpha / 2)
    if len(cells) < N_MIN:
        why = f"{len(cells)} independent clusters; a verdict takes {N_MIN}"
        return replace(first, outcome="inconclusive", missing=(why,))
    if first.outcome != "inconclusive" or len(cells) <= N_FIRST:
        return first
    return look(_first(cells, N_MOST), claim, alpha / 2)


def more_than_all(change: ArrayLike, others: ArrayLike, gap: ArrayLike, alpha: float) -> tuple[int, ...]:
    """The other sites that a site's effect is not shown to exceed: empty if it is more than every one of
    them.

    The lower end of the difference at level `alpha` must be above 0 for each; since all must hold, no
    correction is needed (intersection–union).

    Args:
        change: `[n]` of the site; `others` `[n, m]`; `gap` `[n]`; a row per cluster.

    Raises:
        StatisticsError: as `ratio_of_means`; no others.

    Source: Berger 1982, "Multiparameter hypothesis testing and acceptance sampling".
    """
    own, rest = finite_row(change, "change"), finite(others, "others")
    if rest.ndim != 2 or rest.shape[0] != len(own) or not rest.shape[1]:
        raise StatisticsError(f"others of shape {rest.shape} beside {len(own)} changes. Give [n, m].")
    difference, g = by_cluster(own[:, None] - rest, gap, None)
    if len(g) < N_MIN:
        raise StatisticsError(f"{len(g)} clusters; a comparison takes {N_MIN}.")
    found = jackknife(difference, g)
    low = found.effect - upper_t_quantile(alpha, len(g) - 1) * np.maximum(found.se, SE_FLOOR)
    return tuple(int(j) for j in np.flatnonzero(~(low > 0)))


GATE_T = 5.0
GATE_PREFERENCE = 0.8
GATE_RANK_SHARE = 0.5
GATE_CANDIDATES = 0.5
GATE_PREFIXED = 0.65
"""Share of preferred answers behind an unrelated prefix: .48 to .58 in random networks whose own first tokens
are called the answers, .75 or more in the behaviours of SmolLM2 that were measured."""


@dataclass(frozen=True)
class Gate:
    """Whether there is a behaviour to explain; `reasons` says what is missing.

    Attributes:
        lacking: what is missing, by name: "gap", "preference", "rank", "candidates", and the first two
            "behind a prefix".
        t: the mean gap over its standard error.
        preference: the share of runs that prefer their answer to the foil.
        rank_share: the share of runs whose answer is among the model's first `first` tokens.
        candidates: the share of unselected candidates that show the behaviour; None if there are none.
        prefixed: the share of runs that prefer their answer behind an unrelated prefix; None if not measured.
    """

    passed: bool
    t: float
    preference: float
    rank_share: float
    first: int
    candidates: float | None
    reasons: tuple[str, ...]
    lacking: tuple[str, ...] = ()
    prefixed: float | None = None


class Prefixed(NamedTuple):
    """The gaps of clusters and the preferences of runs, as `gate` takes them, behind an unrelated prefix."""

    gaps: ArrayLike
    preferred: ArrayLike


def gate(
    gaps: ArrayLike,
    preferred: ArrayLike,
    ranks: ArrayLike,
    d_vocab: int,
    *,
    candidates: ArrayLike | None = None,
    prefixed: Prefixed | None = None,
) -> Gate:
    """The behaviour gate: gap and preference can be selected into existence, and rank and candidates where
    the model's own first tokens are called the answers; what survives an unrelated prefix cannot.

    Args:
        gaps: clean minus corrupted metric of each confirm cluster.
        preferred: per run (both of each pair), whether the answer (the foil in the corrupted run) is
            preferred.
        ranks: per run, the rank of that answer among all tokens, 1 the first.
        d_vocab: the size of the vocabulary: the answer must be among the first max(1, min(10, d_vocab //
            50)).
        candidates: per unselected candidate, whether it shows the behaviour.
        prefixed: the same pairs behind an unrelated prefix.

    Raises:
        StatisticsError: fewer than two gaps, no runs, ranks of other runs or below 1, or a number that is not
            finite.
    """
    g = finite_row(gaps, "gaps", at_least=2)
    prefers, place = finite_row(preferred, "preferred"), finite_row(ranks, "ranks")
    if len(prefers) != len(place) or d_vocab < 1:
        raise StatisticsError(
            f"{len(prefers)} preferences, {len(place)} ranks, a vocabulary of {d_vocab}. Give both for each "
            "run."
        )
    if (place < 1).any():
        raise StatisticsError(
            f"a rank of {place.min():g}. Count from 1, which is the token that comes first."
        )
    first = max(1, min(10, d_vocab // 50))
    t = _t_of(g)
    preference, rank_share = float((prefers > 0).mean()), float((place <= first).mean())
    shown = None if candidates is None else float((finite_row(candidates, "candidates") > 0).mean())
    lacking = {}
    if not t >= GATE_T:
        lacking["gap"] = f"the gap is {t:.1f} standard errors from 0; {GATE_T:g} are needed"
    if not preference >= GATE_PREFERENCE:
        lacking["preference"] = (
            f"the answer is preferred in {percent(preference)} of runs; {percent(GATE_PREFERENCE)} are needed"
        )
    if not rank_share >= GATE_RANK_SHARE:
        lacking["rank"] = (
            f"the answer is among the first {first} tokens in {percent(rank_share)} of runs; "
            f"{percent(GATE_RANK_SHARE)} are needed"
        )
    if shown is not None and not shown >= GATE_CANDIDATES:
        lacking["candidates"] = (
            f"{percent(shown)} of unselected candidates show it; {percent(GATE_CANDIDATES)} are needed"
        )
    behind = None
    if prefixed is not None:
        behind_t = _t_of(finite_row(prefixed.gaps, "gaps behind a prefix", at_least=2))
        behind = float((finite_row(prefixed.preferred, "preferred behind a prefix") > 0).mean())
        if not behind_t >= GATE_T:
            lacking["gap behind a prefix"] = (
                f"behind an unrelated prefix the gap is {behind_t:.1f} standard errors from 0; "
                f"{GATE_T:g} are needed"
            )
        if not behind >= GATE_PREFIXED:
            lacking["preference behind a prefix"] = (
                f"behind an unrelated prefix the answer is preferred in {percent(behind)} of runs; "
                f"{percent(GATE_PREFIXED)} are needed"
            )
    reasons = tuple(lacking.values())
    return Gate(
        not reasons, t, preference, rank_share, first, shown, reasons, tuple(lacking), prefixed=behind
    )


def _t_of(gaps: Floats) -> float:
    """The mean over its standard error; infinite without any spread."""
    spread, mean = float(gaps.std(ddof=1)) / math.sqrt(len(gaps)), float(gaps.mean())
    return mean / spread if spread > 0 else math.copysign(math.inf, mean) if mean else 0.0


def m_value(effects: ArrayLike, low: ArrayLike, high: ArrayLike, *, sign: int) -> float:
    """The share of defensible variations of a finding with its sign and an interval beyond 0.

    Raises:
        StatisticsError: no variations, or a number that is not finite.
    """
    ends = finite_row(low if sign > 0 else high, "ends of the intervals")
    return float(((sign * finite_row(effects, "effects") > 0) & (sign * ends > 0)).mean())


def _first(cells: Cells, n: int) -> Cells:
    return Cells(cells.change[:n], cells.gap[:n], cells.clusters[:n])


def _effect_in(part: Cells | None) -> float | None:
    """The effect in a slice's clusters; None without any, or without a gap."""
    return None if part is None or not part.gap.sum() else float(effect_of(part.change, part.gap))
