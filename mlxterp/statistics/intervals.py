"""Intervals of rates, of balanced accuracy, of the area under the ROC curve, and of functions of sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mlxterp.errors import StatisticsError
from mlxterp.statistics.arrays import Floats, finite, finite_row
from mlxterp.statistics.distributions import beta_quantile, incomplete_beta, normal_quantile, upper_t_quantile
from mlxterp.statistics.ratio import LEVEL, MIN_CLUSTERS


class Bounded(NamedTuple):
    """A value with its interval; `low` and `high` are NaN where there is none."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int, *, level: float = LEVEL) -> Bounded:
    """A rate with Wilson's score interval.

    Raises:
        StatisticsError: no trials, or not 0 ≤ successes ≤ n.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if n < 1 or not 0 <= successes <= n:
        raise StatisticsError(f"{successes} successes in {n} trials. Give 0 ≤ successes ≤ n, n at least 1.")
    p, z = successes / n, normal_quantile((1 + level) / 2)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    return Bounded(p, low, 1.0 if successes == n else min(1.0, middle + half))


def exact_rate(successes: int, n: int, *, level: float = LEVEL) -> Bounded:
    """A rate with Clopper and Pearson's interval, which covers at least `level` for every true rate: for
    false keeps, where too short is worse than too long.

    Raises:
        StatisticsError: as `wilson`.
    """
    if n < 1 or not 0 <= successes <= n:
        raise StatisticsError(f"{successes} successes in {n} trials. Give 0 ≤ successes ≤ n, n at least 1.")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else beta_quantile(tail, successes, n - successes + 1)
    high = 1.0 if successes == n else beta_quantile(1 - tail, successes + 1, n - successes)
    return Bounded(successes / n, low, high)


class Counts(NamedTuple):
    """What a yes-or-no judgement came to; undecided items are in none of the four."""

    true_positives: int
    false_negatives: int
    true_negatives: int
    false_positives: int

    @property
    def rates(self) -> tuple[float, float]:
        """True positive and true negative rate; a class without items counts one half."""
        positives = self.true_positives + self.false_negatives
        negatives = self.true_negatives + self.false_positives
        return (
            self.true_positives / positives if positives else 0.5,
            self.true_negatives / negatives if negatives else 0.5,
        )


def balanced_accuracy(counts: Counts, *, level: float = LEVEL) -> Bounded:
    """The mean of the true positive and the true negative rate, with its interval.

    The two rates' exact intervals are combined by the distance of each end from its rate (MOVER): the mean of
    two rates has no closed interval of its own. It covers at least 92 % at every pair of rates from 5 items a
    class on. A class without items has the interval [0, 1].

    Raises:
        StatisticsError: a negative count.

    Source: Zou and Donner 2008, "Construction of confidence limits about effect measures".
    """
    _check_counts(counts)
    value = sum(counts.rates) / 2
    below = above = 0.0
    for yes, no in (counts[:2], counts[2:]):
        one = exact_rate(yes, yes + no, level=level) if yes + no else Bounded(0.5, 0.0, 1.0)
        below += (one.value - one.low) ** 2
        above += (one.high - one.value) ** 2
    return Bounded(value, max(0.0, value - below**0.5 / 2), min(1.0, value + above**0.5 / 2))


_NODES = 512


def probability_of_accuracy(counts: Counts, at_least: float) -> float:
    """P(balanced accuracy ≥ `at_least` | counts), the two rates independent and flat beforehand.

    Both rates have Beta distributions afterwards; the probability that they add up to 2 · `at_least` is
    integrated over 512 equal parts of ±12 standard deviations of the narrower one. Right to 1e-4.

    Raises:
        StatisticsError: a negative count.
    """
    _check_counts(counts)
    one = counts.true_positives + 1, counts.false_negatives + 1
    other = counts.true_negatives + 1, counts.false_positives + 1
    (a, b), wider = sorted((one, other), key=lambda each: _beta_deviation(*each))
    reach, mean = 12 * _beta_deviation(a, b), a / (a + b)
    edges = np.linspace(max(0.0, mean - reach), min(1.0, mean + reach), _NODES + 1)
    needed = 2 * at_least - (edges[:-1] + edges[1:]) / 2
    reached = 1.0 - incomplete_beta(*wider, np.clip(needed, 0.0, 1.0))
    return float((np.diff(incomplete_beta(a, b, edges)) * reached).sum())


def _beta_deviation(a: int, b: int) -> float:
    return float((a * b / ((a + b) ** 2 * (a + b + 1))) ** 0.5)


def average_ranks(values: ArrayLike) -> Floats:
    """Ranks from 1; equal values share their mean rank."""
    row = finite_row(values, "values")
    _, index, counts = np.unique(row, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[index])


def auroc(positive: ArrayLike, negative: ArrayLike, *, level: float = LEVEL) -> Bounded:
    """P(a positive scores above a negative), ties counting one half, with its interval.

    DeLong's variance on the scale of the log odds, with the degrees of freedom of Welch and Satterthwaite.
    Where the classes are apart altogether the variance is 0, and the interval is that of a rate of min(m, n)
    successes without a failure. With one item of a class the interval is [0, 1].

    Raises:
        StatisticsError: a class without items, or a score that is not finite.

    Source: DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two or more correlated receiver
    operating characteristic curves".
    """
    yes, no = finite_row(positive, "positive"), finite_row(negative, "negative")
    m, n = len(yes), len(no)
    ranks = average_ranks(np.concatenate([yes, no]))
    above = (ranks[:m] - average_ranks(yes)) / n  # of each positive, the share of negatives below it
    below = 1.0 - (ranks[m:] - average_ranks(no)) / m
    value = float(above.mean())
    if min(m, n) < 2:
        return Bounded(value, 0.0, 1.0)
    by_positive, by_negative = float(above.var(ddof=1)) / m, float(below.var(ddof=1)) / n
    variance = by_positive + by_negative
    tail = (1 - level) / 2
    if variance == 0.0:
        edge = float(tail ** (1 / min(m, n)))
        low, high = (edge, 1.0) if value == 1.0 else (0.0, 1 - edge) if value == 0.0 else (0.0, 1.0)
        return Bounded(value, low, high)
    df = variance**2 / (by_positive**2 / (m - 1) + by_negative**2 / (n - 1))
    spread = upper_t_quantile(tail, df) * variance**0.5 / (value * (1 - value))
    odds = float(np.log(value / (1 - value)))
    return Bounded(value, *(1 / (1 + float(np.exp(-odds + sign * spread))) for sign in (1, -1)))


Sums = Mapping[str, Floats]


def of_sums(
    statistic: Callable[[Sums], Floats], sums: Mapping[str, ArrayLike], *, level: float = LEVEL
) -> Bounded:
    """A function of sums over documents (a ratio of sums such as the FVU), with its interval over documents.

    The standard error is the jackknife's, the interval a t interval with documents − 1 degrees of freedom;
    NaN
    below four documents, and where the statistic is not finite without one of them.

    Args:
        statistic: from sums to one number each: `[k]` of every sum (and `[k, d]` of a vector one) to `[k]`.
        sums: per document, `[documents]` or `[documents, d]`.

    Raises:
        StatisticsError: a sum that is not finite, or not as many documents of one as of the other; a
            statistic that is not finite without one of the documents.
    """
    parts = {name: finite(values, f"sums of {name!r}") for name, values in sums.items()}
    lengths = {len(values) for values in parts.values()}
    if len(lengths) != 1:
        raise StatisticsError(f"Sums over {sorted(lengths)} documents. Give the same documents for all.")
    (n,) = lengths
    whole = {name: values.sum(axis=0, keepdims=True) for name, values in parts.items()}
    value = float(statistic(whole)[0])
    if n < MIN_CLUSTERS:
        return Bounded(value, float("nan"), float("nan"))
    without = np.asarray(statistic({name: whole[name] - values for name, values in parts.items()}))
    if not np.isfinite(without).all():
        return Bounded(value, float("nan"), float("nan"))
    se = float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
    half = upper_t_quantile((1 - level) / 2, n - 1) * se
    return Bounded(value, value - half, value + half)


def _check_counts(counts: Counts) -> None:
    if min(counts) < 0:
        raise StatisticsError(f"Counts of {tuple(counts)}: a count is 0 or more.")
