"""Claims with known truth, made from measured cells, and nights in which the judge's functions decide them.

A night draws its clusters anew, explored and confirmed ones each from their own part of what was measured,
so that effects vary as they do between samples. In that population the effect of a claim is known exactly:
what a head changed is moved to another effect, a − (R − effect) · g (`worlds.with_effect`), and keeps its
spread, tails and dependence on the gap.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mlxterp.errors import StatisticsError
from mlxterp.selftest.measured import HeadTable
from mlxterp.statistics import decisions, outcome, sequential
from mlxterp.statistics.arrays import Floats, Ints
from mlxterp.statistics.decisions import SESOI, Cells, Claim, Gate, Look
from mlxterp.statistics.outcome import Comparison
from mlxterp.statistics.sequential import JudgedClaim
from mlxterp.worlds import with_effect

Kind = Literal["null", "winner", "planted", "true_null"]

NULL_SPREADS = (None, 1.0, 2.0, 2.5)
"""Standard deviations over clusters of null effects, in units of S: as measured where None. At 2 to 2.5 a
rule that takes 0 for its null is caught; heads have up to 2.6 (S = .05)."""
PLANTED_SPREADS = (0.2, 0.5)
"""The same of planted effects, in units of the effect: what heads with an effect have."""
NULL_EFFECT = 0.24
"""The largest true effect, in S, of claims that are to be ruled out."""
NULL_SPREAD = (0.1, 0.5)


@dataclass(frozen=True)
class Rule:
    """The functions that decide; others only to see that the selftest notices."""

    judge: Callable[[Cells, Claim, float], Look] = decisions.judge
    level: Callable[[Sequence[JudgedClaim], Collection[str]], float] = sequential.level_after
    gate: Callable[..., Gate] = decisions.gate
    told: Callable[[Comparison], tuple[str, ...]] = outcome.told


KEEP_2 = Rule()


@dataclass(frozen=True)
class Judged:
    """A claim and what became of it.

    Attributes:
        effect, sesoi: the true effect, in the claimed direction, and S.
        spread: the standard deviation over clusters, in the same units.
        alpha: the claim's level.
        n: clusters that were looked at.
    """

    kind: Kind
    site: str
    effect: float
    sesoi: float
    spread: float
    alpha: float
    outcome: str
    n: int

    @property
    def kept(self) -> bool:
        """Whether it is kept as an effect."""
        return self.outcome in ("supported", "refuted")


@dataclass(eq=False)
class Wealth:
    """The level of the next claim of a night."""

    rule: Rule
    judged: list[JudgedClaim] = field(default_factory=list)

    def judge(self, cells: Cells, claim: Claim, sites: Collection[str] = ()) -> tuple[Look | None, float]:
        """The decision, None where there is no gap to judge on, and the level that it was made at.

        Args:
            sites: of the claim; none where no other claim of the night is about the same measured cells.
        """
        alpha = self.rule.level(self.judged, sites)
        found: Look | None = None
        # A StatisticsError is what the judge calls inconclusive: no gap, or all of it in one cluster.
        with suppress(StatisticsError):
            found = self.rule.judge(cells, claim, alpha)
        told = "inconclusive" if found is None else found.outcome
        self.judged.append(JudgedClaim(frozenset(sites), told, told in ("supported", "refuted")))
        return found, alpha


@dataclass(frozen=True, eq=False)
class Population:
    """A table as two populations of clusters, explored and confirmed ones."""

    table: HeadTable
    explore: Ints
    confirm: Ints

    def residuals(self, pool: Ints) -> Floats:
        """What is left of each head's changes without its effect on these clusters `[sites, pool]`."""
        g = self.table.gap[pool]
        return np.stack([with_effect(a, g, 0.0) for a in self.table.change[:, pool]])

    def spread(self) -> Floats:
        """Of each head the standard deviation over the confirm clusters, in shares of the gap."""
        g = self.table.gap[self.confirm]
        return np.asarray(self.residuals(self.confirm).std(axis=1, ddof=1) / abs(g.mean()))


def population(table: HeadTable, salt: str) -> Population:
    """The table divided by `decisions.split`."""
    parts = decisions.split(table.clusters, salt)
    at = {name: i for i, name in enumerate(table.clusters)}
    explore, confirm = (np.array([at[name] for name in names]) for names in (parts.explore, parts.confirm))
    return Population(table, explore, confirm)


@dataclass(frozen=True, eq=False)
class Night:
    """Clusters drawn for one night, with replacement, from each of the two populations."""

    of: Population
    explored: Ints
    confirmed: Ints

    def bar(self, head: int) -> float | None:
        """The placebo bar of a head: of its neighbours as they are."""
        near = self.of.table.placebos[head]
        gap = self.of.table.gap[self.confirmed]
        return decisions.placebo_bar(self.of.table.change[near][:, self.confirmed].sum(axis=1) / gap.sum())

    def cells(self, head: int, effect: float, scale: float, n: int = decisions.N_MOST) -> Cells:
        """A head's confirm cells with another effect and `scale` times its spread."""
        gap = self.of.table.gap[self.of.confirm]
        residual = with_effect(self.of.table.change[head, self.of.confirm], gap, 0.0)
        chosen = self.confirmed[:n]
        return Cells(effect * gap[chosen] + scale * residual[chosen], gap[chosen], _names(len(chosen)))


def draw_night(of: Population, rng: np.random.Generator) -> Night:
    """A night's clusters; the indices are into the population's two parts."""
    explored = rng.choice(len(of.explore), size=len(of.explore))
    confirmed = rng.choice(len(of.confirm), size=decisions.N_MOST)
    return Night(of, explored, confirmed)


@dataclass(frozen=True)
class Counts:
    """How many claims of each kind a night holds."""

    null: int = 10
    winner: int = 10
    planted: int = 5
    true_null: int = 5


def judge_night(of: Population, rng: np.random.Generator, rule: Rule, counts: Counts) -> list[Judged]:
    """One night of claims in random order, each at the level that the ones before have left."""
    night = draw_night(of, rng)
    spread = of.spread()
    kinds = [kind for kind in _CLAIMS for _ in range(getattr(counts, kind))]
    wealth, found = Wealth(rule), []
    for kind in (kinds[i] for i in rng.permutation(len(kinds))):
        made = _CLAIMS[kind](night, spread, rng)
        cells = night.cells(made.head, made.sign * made.effect, made.scale, made.n)
        claim = Claim(made.sesoi, "increase" if made.sign > 0 else "decrease", night.bar(made.head))
        look, alpha = wealth.judge(cells, claim)
        found.append(
            Judged(
                kind=kind,
                site=of.table.sites[made.head],
                effect=made.effect,
                sesoi=made.sesoi,
                spread=float(made.scale * spread[made.head]),
                alpha=alpha,
                outcome="inconclusive" if look is None else look.outcome,
                n=0 if look is None else look.n,
            )
        )
    return found


@dataclass(frozen=True)
class _Made:
    """A claim before it is judged: `effect` is in the claimed direction, which is `sign`."""

    head: int
    sesoi: float
    effect: float
    scale: float
    sign: int
    n: int = decisions.N_MOST


def _null(_: Night, spread: Floats, rng: np.random.Generator) -> _Made:
    """The worst null: an effect of exactly S/2, on one of the hundred most spread heads of all S as they are,
    or on any head, widened."""
    widened = NULL_SPREADS[rng.integers(len(NULL_SPREADS))]
    if widened is None:
        relative = spread[:, None] / np.array(SESOI)
        worst = np.argsort(-relative, axis=None)[:100]
        most, s = divmod(int(rng.choice(worst)), len(SESOI))
        return _Made(most, SESOI[s], SESOI[s] / 2, 1.0, _sign(rng))
    head, sesoi = _some_head(spread, rng), _some_sesoi(rng)
    return _Made(head, sesoi, sesoi / 2, widened * sesoi / float(spread[head]), _sign(rng))


def _winner(night: Night, spread: Floats, rng: np.random.Generator) -> _Made:
    """The largest of all heads on explored pairs, every one of which has an effect of S/2 of either sign."""
    widened, sesoi = NULL_SPREADS[rng.integers(len(NULL_SPREADS))], _some_sesoi(rng)
    usable = np.flatnonzero(spread > 0)
    scale = np.ones(len(spread))
    if widened is not None:
        scale[usable] = widened * sesoi / spread[usable]
    signs = rng.choice([-1, 1], size=len(spread))
    explored = night.explored[rng.permutation(len(night.explored))[: decisions.EXPLORE_MIN]]
    gap = night.of.table.gap[night.of.explore][explored]
    residual = night.of.residuals(night.of.explore)[:, explored]
    seen = signs * sesoi / 2 + scale * residual.sum(axis=1) / gap.sum()
    best = int(usable[np.argmax(np.abs(seen[usable]))])
    sign = 1 if seen[best] > 0 else -1
    return _Made(best, sesoi, float(sign * signs[best] * sesoi / 2), float(scale[best]), sign)


def _planted(_: Night, spread: Floats, rng: np.random.Generator) -> _Made:
    sesoi = _some_sesoi(rng)
    effect = float(rng.choice([1.5, 2.0, 2.5, 3.0])) * sesoi
    low, high = (bound * effect for bound in PLANTED_SPREADS)
    return _within(spread, (low, high), sesoi, effect, rng)


def _true_null(_: Night, spread: Floats, rng: np.random.Generator) -> _Made:
    sesoi = _some_sesoi(rng)
    made = _within(
        spread,
        (NULL_SPREAD[0] * sesoi, NULL_SPREAD[1] * sesoi),
        sesoi,
        float(rng.uniform(-NULL_EFFECT, NULL_EFFECT)) * sesoi,
        rng,
    )
    n = int(rng.choice([decisions.N_FIRST, decisions.N_MOST]))
    return _Made(made.head, made.sesoi, made.effect, made.scale, made.sign, n)


_CLAIMS: dict[Kind, Callable[[Night, Floats, np.random.Generator], _Made]] = {
    "null": _null,
    "winner": _winner,
    "planted": _planted,
    "true_null": _true_null,
}


def _within(
    spread: Floats, bounds: tuple[float, float], sesoi: float, effect: float, rng: np.random.Generator
) -> _Made:
    """A claim on a head whose spread is within the bounds as it is, or on any head, widened into them."""
    natural = np.flatnonzero((spread >= bounds[0]) & (spread <= bounds[1]))
    if len(natural) and rng.integers(2):
        return _Made(int(rng.choice(natural)), sesoi, effect, 1.0, _sign(rng))
    head = _some_head(spread, rng)
    return _Made(head, sesoi, effect, float(rng.uniform(*bounds)) / float(spread[head]), _sign(rng))


def _some_head(spread: Floats, rng: np.random.Generator) -> int:
    return int(rng.choice(np.flatnonzero(spread > 0)))


def _some_sesoi(rng: np.random.Generator) -> float:
    return float(rng.choice(SESOI))


def _sign(rng: np.random.Generator) -> int:
    return int(rng.choice([-1, 1]))


def _names(n: int) -> tuple[str, ...]:
    return tuple(f"draw {i}" for i in range(n))
