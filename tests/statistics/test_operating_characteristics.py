"""The keep rule in worlds with known truth: how often it keeps a null, finds an effect, rules a null out.

Worlds are additive: a head's change per cluster is its true effect times the gap plus heavy-tailed noise
whose spread is a stated multiple of the smallest effect of interest S.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mlxterp.statistics.decisions import SESOI, Cells, Claim, judge, placebo_bar
from mlxterp.statistics.sequential import level

CLUSTERS = tuple(f"c{i}" for i in range(48))


def _cells(rng: np.random.Generator, effect: float, spread: float, n: int = 48) -> Cells:
    gap = 3.0 + 0.5 * rng.normal(size=n)
    noise = rng.standard_t(5, size=n) / np.sqrt(5 / 3)
    return Cells(gap * effect + 3.0 * spread * noise, gap, CLUSTERS[:n])


def _outcomes(
    seed: int, count: int, effect: float, spread: float, sesoi: float, alpha: float, n: int = 48
) -> Counter[str]:
    rng = np.random.default_rng(seed)
    claim = Claim(sesoi=sesoi, bar=sesoi / 10)
    return Counter(judge(_cells(rng, effect, spread, n), claim, alpha).outcome for _ in range(count))


def _kept(outcomes: Counter[str]) -> int:
    return outcomes["supported"] + outcomes["refuted"]


@pytest.mark.slow
@pytest.mark.parametrize("sesoi", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_the_worst_null_is_kept_less_often_than_the_level_of_a_claim(sesoi, spread):
    found = _outcomes(1, 4000, sesoi / 2, spread * sesoi, sesoi, 0.005)

    assert _kept(found) / 4000 <= 0.005


@pytest.mark.slow
@pytest.mark.parametrize("sesoi", [0.05, 0.2])
@pytest.mark.parametrize(("times", "spread", "least"), [(1.5, 0.5, 0.95), (2, 0.75, 0.95), (3, 1.5, 0.95)])
@pytest.mark.parametrize("alpha", [0.005, 0.0013])
def test_planted_effects_of_one_and_a_half_to_three_s_are_supported(sesoi, times, spread, least, alpha):
    found = _outcomes(2, 1000, times * sesoi, spread * sesoi, sesoi, alpha)

    assert found["supported"] / 1000 >= least


@pytest.mark.slow
@pytest.mark.parametrize(
    ("true", "spread", "n", "least"),
    [
        (0.0, 0.5, 24, 0.99),
        (0.25, 0.5, 24, 0.95),
        (0.25, 0.5, 48, 0.99),
        (0.0, 1.0, 48, 0.99),
        (0.0, 1.0, 24, 0.83),
    ],
)
def test_true_nulls_are_ruled_out(true, spread, n, least):
    """With a spread as large as S and 24 clusters in 87 %: the two looks share the level."""
    found = _outcomes(3, 1000, true * 0.1, spread * 0.1, 0.1, 0.005, n)

    assert found["ruled_out"] / 1000 >= least


@pytest.mark.slow
@pytest.mark.parametrize("sesoi", [0.05, 0.1])
def test_a_search_over_a_thousand_claims_keeps_no_effect_of_270_null_heads(sesoi):
    """Claims on heads drawn at random, on the best of the explored part, and up and down a grid of S."""
    for world in range(5):
        rng = np.random.default_rng([4, world])
        heads = [_cells(rng, e, 0.3 * sesoi) for e in rng.uniform(-sesoi / 2, sesoi / 2, size=270)]
        explored = [abs(float(head.change[:8].sum() / head.gap[:8].sum())) for head in heads]
        best = np.argsort(explored)[::-1]
        bar = placebo_bar([float(each.change.sum() / each.gap.sum()) for each in heads[:24]])
        kept: list[int] = []
        for t in range(1, 1001):
            which = int(best[t % 270]) if t % 2 else int(rng.integers(270))
            s = sesoi if t % 3 else SESOI[t % len(SESOI)]
            s = max(s, sesoi)
            claim = Claim(sesoi=s, direction="increase" if t % 5 else "decrease", bar=bar)
            found = judge(heads[which], claim, level(t, kept))
            if found.outcome in ("supported", "refuted"):
                kept.append(t)
        assert kept == []


@pytest.mark.slow
def test_a_night_of_mixed_claims_keeps_what_is_real_and_nothing_else():
    rng, false, power, used = np.random.default_rng(5), 0, [], []
    for _ in range(20):
        truths = rng.choice([0.0, 0.02, 0.15, 0.3], size=100, p=[0.5, 0.2, 0.2, 0.1])
        kept: list[int] = []
        for t, truth in enumerate(truths, start=1):
            found = judge(_cells(rng, truth, 0.04), Claim(sesoi=0.1, bar=0.02), level(t, kept))
            used.append(found.n)
            if found.outcome in ("supported", "refuted"):
                kept.append(t)
                false += truth < 0.05
            if truth >= 0.15:
                power.append(found.outcome == "supported")

    assert false == 0
    assert np.mean(power) >= 0.95
    assert np.mean(used) < 30


def test_a_worst_null_is_never_kept_and_a_planted_effect_nearly_always_in_small():
    null = _outcomes(6, 300, 0.05, 0.03, 0.1, 0.005)
    planted = _outcomes(7, 100, 0.15, 0.05, 0.1, 0.0013)
    nothing = _outcomes(8, 100, 0.0, 0.05, 0.1, 0.005)

    assert _kept(null) == 0
    assert planted["supported"] >= 95
    assert nothing["ruled_out"] >= 95
