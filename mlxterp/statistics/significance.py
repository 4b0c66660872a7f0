"""Tests: classes against permuted ones, effects against flipped signs, a count against chance, a value among
its controls. A p-value counts the observed arrangement itself, so it is never 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mlxterp.errors import StatisticsError
from mlxterp.statistics.arrays import Floats, finite, finite_row
from mlxterp.statistics.distributions import binomial_sf
from mlxterp.statistics.intervals import average_ranks

_NUMBERS_AT_ONCE = 4_000_000


def permutation_p(
    positive: ArrayLike, negative: ArrayLike, *, seed: int | np.random.Generator, draws: int = 9999
) -> float:
    """How often classes dealt at random are as far apart as these: (1 + those) / (1 + draws), one-sided.

    The statistic is the positives' rank sum (Mann–Whitney). The smallest value is 1 / (1 + draws).

    Raises:
        StatisticsError: a class without items, a score that is not finite, or no draws.

    Source: Phipson and Smyth 2010, "Permutation p-values should never be zero".
    """
    yes, no = finite_row(positive, "positive"), finite_row(negative, "negative")
    _check_draws(draws)
    ranks = average_ranks(np.concatenate([yes, no]))
    # Twice a rank is a whole number, so equal sums compare equal.
    doubled = np.rint(2 * ranks).astype(np.int64)
    observed, random = doubled[: len(yes)].sum(), np.random.default_rng(seed)
    as_far, at_once = 0, max(1, _NUMBERS_AT_ONCE // len(ranks))
    for done in range(0, draws, at_once):
        deals = random.permuted(np.tile(doubled, (min(at_once, draws - done), 1)), axis=1)
        as_far += int((deals[:, : len(yes)].sum(axis=1) >= observed).sum())
    return (1 + as_far) / (1 + draws)


def sign_flips(n: int, *, seed: int, draws: int) -> Floats:
    """Sign vectors `[k, n]` of ±1: all 2ⁿ⁻¹ that keep the first sign if these are at most `draws`, the
    identity first; else the identity and `draws` random ones.

    (Flipping all signs gives the same size of effect, so half of the 2ⁿ say everything.)
    """
    _check_draws(draws)
    if 2 ** (n - 1) <= draws:
        bits = (np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1
        return np.asarray(1.0 - 2.0 * bits)
    random = np.random.default_rng(seed).integers(0, 2, size=(draws, n))
    return np.concatenate([np.ones((1, n)), 1.0 - 2.0 * random])


def binomial_p(successes: int, n: int, chance: float = 0.5) -> float:
    """P(at least so many successes in n trials | each succeeds with probability `chance`), exact.

    Raises:
        StatisticsError: not 0 ≤ successes ≤ n, or no probability.
    """
    return binomial_sf(successes, n, chance)


def p_among_controls(value: float, controls: ArrayLike) -> float:
    """(1 + controls that are at least `value`) / (1 + controls), one-sided: the rank of a value among
    controls.

    The best among ten controls has p = 1/11 = 0.09: it takes 19 controls for 0.05.

    Raises:
        StatisticsError: no controls, or a number that is not finite.
    """
    known = finite_row(controls, "controls")
    (own,) = finite([value], "value")
    return float((1 + (known >= own).sum()) / (1 + len(known)))


def _check_draws(draws: int) -> None:
    if draws < 1:
        raise StatisticsError(f"{draws} draws. Give at least one; 9,999 for a p-value that is reported.")
