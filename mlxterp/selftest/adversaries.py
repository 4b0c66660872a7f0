"""Researchers that search for a false finding: a thousand claims each, in worlds without an effect to find.

In such a world every set of heads recovers exactly half of the smallest S of the grid, the worst null, and
each head adds its own residual, measured on real clusters and widened. Patching a set is taken to add up. An
adversary sees the effects of all heads on explored clusters, and of a judged claim what a researcher is told:
the class of the verdict, and of an inconclusive one what is said to be missing (`outcome.told`). A set that
was judged gets no second verdict, whatever the claim's S and direction (`autointerpret.fingerprint`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlxterp.selftest.claims import KEEP_2, Population, Rule, Wealth, draw_night
from mlxterp.statistics.arrays import Floats
from mlxterp.statistics.decisions import SESOI, Cells, Claim, placebo_bar

CLAIMS = 1000
WORLD_SPREADS = (0.3, 0.5, 1.0, 2.0, 3.0)
"""Standard deviation over clusters of each head's effect, in units of the smallest S; a world for each."""


@dataclass(frozen=True)
class Answer:
    """What a researcher learns of a claim: the class, and of an inconclusive one what is said to be
    missing."""

    outcome: str
    missing: tuple[str, ...] = ()


@dataclass(eq=False)
class Game:
    """One adversary in one world: what it may see, and the judge that it asks.

    Attributes:
        explored: per head its effect on the explored clusters.
        limit: claims that it may make.
        kept: the sets that were kept as an effect, all of them falsely.
    """

    explored: Floats
    limit: int
    wealth: Wealth
    _residuals: Floats
    _gap: Floats
    _shared: float
    _bar: float | None
    asked: int = 0
    kept: list[tuple[int, ...]] = field(default_factory=list)
    _known: dict[tuple[int, ...], Answer] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.asked >= self.limit

    def ask(self, heads: Sequence[int], sesoi: float = SESOI[0], sign: int = 1) -> Answer:
        """The verdict on a claim about these heads."""
        self.asked += 1
        chosen = tuple(sorted({int(head) for head in heads}))
        if chosen in self._known:
            return self._known[chosen]
        change = self._shared * self._gap + self._residuals[list(chosen)].sum(axis=0)
        cells = Cells(change, self._gap, tuple(f"draw {i}" for i in range(len(self._gap))))
        claim = Claim(sesoi, "increase" if sign > 0 else "decrease", self._bar)
        found, _ = self.wealth.judge(cells, claim, [str(head) for head in chosen])
        if found is None:
            answer = Answer("inconclusive")
        else:
            words = self.wealth.rule.told(found.comparison) if found.outcome == "inconclusive" else ()
            answer = Answer(found.outcome, words)
            if found.outcome in ("supported", "refuted"):
                self.kept.append(chosen)
        self._known[chosen] = answer
        return answer


def claims_at_random(game: Game, rng: np.random.Generator) -> None:
    """Any head or small set, any S, either direction."""
    while not game.over:
        heads = rng.choice(len(game.explored), size=int(rng.integers(1, 4)), replace=False)
        game.ask(heads.tolist(), float(rng.choice(SESOI)), int(rng.choice([-1, 1])))


def best_on_explore(game: Game, rng: np.random.Generator) -> None:
    """The strongest heads on explored clusters, then sets of the strongest, in the direction that they have
    there."""
    order = np.argsort(-np.abs(game.explored)).tolist()
    for head in order:
        if game.over:
            return
        game.ask([head], sign=1 if game.explored[head] > 0 else -1)
    signs = {sign: [h for h in order if game.explored[h] * sign > 0] for sign in (1, -1)}
    while not game.over:
        sign = int(rng.choice([-1, 1]))
        size = int(rng.integers(2, max(3, len(signs[sign]) // 2)))
        strongest = signs[sign][: 2 * size]
        game.ask(rng.choice(strongest, size=min(size, len(strongest)), replace=False).tolist(), sign=sign)


def bisects_the_sesoi(game: Game, rng: np.random.Generator) -> None:
    """For one set after another the S at which the class changes, then the largest S that is not ruled out.
    Each question adds another head of little effect, because a set gets one verdict."""
    order = np.argsort(-game.explored).tolist()
    fillers = list(reversed(order[len(order) // 2 :]))
    while not game.over:
        size = int(rng.integers(1, 12))
        core = rng.choice(order[: 4 * size], size=size, replace=False).tolist()
        low, high = 0, len(SESOI) - 1
        while low < high and not game.over:
            middle = (low + high) // 2
            answer = game.ask([*core, int(rng.choice(fillers))], SESOI[middle])
            low, high = (low, middle) if answer.outcome == "ruled_out" else (middle + 1, high)
        for step in (low, max(0, low - 1)):
            if not game.over:
                game.ask([*core, int(rng.choice(fillers))], SESOI[step])


def climbs_by_sign(game: Game, rng: np.random.Generator) -> None:
    """A set that grows by heads which are positive on explored clusters, as long as the verdict does not get
    worse, and shrinks by one at random where it does."""
    positive = np.argsort(-game.explored)[: max(2, int((game.explored > 0).sum()))]
    current = [int(positive[0])]
    best = _rank(game.ask(current))
    while not game.over:
        head = int(rng.choice(positive))
        proposed = [h for h in current if h != head] if head in current else [*current, head]
        if not proposed:
            continue
        rank = _rank(game.ask(proposed))
        if rank >= best:
            current, best = proposed, rank
        elif len(current) > 1 and rng.integers(4) == 0:
            current.remove(int(rng.choice(current)))
            best = min(best, rank)


def unites_what_was_left_open(game: Game, rng: np.random.Generator) -> None:
    """Each head by itself, then the set of all that were left open, those least far from a verdict first,
    then parts of that set."""
    order = rng.permutation(len(game.explored)).tolist()
    by_rank: dict[int, list[int]] = {}
    for head in order:
        if game.over:
            return
        by_rank.setdefault(_rank(game.ask([head])), []).append(head)
    ranked = [head for rank in sorted(by_rank, reverse=True) if rank > 0 for head in by_rank[rank]]
    for size in range(2, len(ranked) + 1):
        if game.over:
            return
        game.ask(ranked[:size])
    united = ranked if len(ranked) > 1 else order
    while not game.over:
        game.ask(rng.choice(united, size=int(rng.integers(1, len(united) + 1)), replace=False).tolist())


STRATEGIES: dict[str, Callable[[Game, np.random.Generator], None]] = {
    "random claims": claims_at_random,
    "best on explore": best_on_explore,
    "bisects the SESOI": bisects_the_sesoi,
    "climbs by sign": climbs_by_sign,
    "unites what was left open": unites_what_was_left_open,
}


@dataclass(frozen=True)
class Attack:
    """One adversary in one world; `kept` of its `claims` were kept as an effect."""

    world: int
    spread: float
    strategy: str
    claims: int
    kept: int


def attack(
    of: Population, world: int, strategy: str, seed: int, rule: Rule = KEEP_2, limit: int = CLAIMS
) -> Attack:
    """One adversary with up to `limit` claims in one of the worlds."""
    # World and clusters are the same for all adversaries of a seed.
    rng = np.random.default_rng([seed, world])
    night = draw_night(of, rng)
    gap = of.table.gap
    spread = of.spread()
    usable = np.flatnonzero(spread > 0)
    scale = WORLD_SPREADS[world] * SESOI[0] / spread[usable]
    shared = SESOI[0] / 2
    explored = of.residuals(of.explore)[usable][:, night.explored]
    confirmed = of.residuals(of.confirm)[usable][:, night.confirmed] * scale[:, None]
    gap_confirmed = gap[of.confirm][night.confirmed]
    placebos = of.table.change[:, of.confirm][:, night.confirmed].sum(axis=1) / gap_confirmed.sum()
    game = Game(
        explored=shared + scale * explored.sum(axis=1) / gap[of.explore][night.explored].sum(),
        limit=limit,
        wealth=Wealth(rule),
        _residuals=confirmed,
        _gap=gap_confirmed,
        _shared=shared,
        _bar=placebo_bar(placebos),
    )
    number = list(STRATEGIES).index(strategy)
    STRATEGIES[strategy](game, np.random.default_rng([seed, world, number]))
    return Attack(world, WORLD_SPREADS[world], strategy, game.asked, len(game.kept))


_RANKS = {"ruled_out": 0, "inconclusive": 1, "refuted": 1, "supported": 4}


def _rank(answer: Answer) -> int:
    """How near a verdict is to what an adversary wants; an inconclusive one by what is not missing."""
    if answer.outcome != "inconclusive":
        return _RANKS[answer.outcome]
    return 1 + ("estimate" not in answer.missing) + ("interval" not in answer.missing)
