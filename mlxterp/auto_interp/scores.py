"""How well a label tells where a feature fires: rates, intervals, and confidence as a tested probability.

Scores from counts and from a judge's answers, the area under the ROC curve, calibration of confidences.
Nothing here needs mlx.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincinv
from scipy.stats import norm, rankdata

from mlxterp.auto_interp.label import Score
from mlxterp.errors import LabelingError

GOOD = 0.75
"""The balanced accuracy of a good label: a person's labels have it (arXiv:2410.13928)."""

UNDECIDED = 0.5
"""The probability of a text that a judge says neither yes nor no to."""

MIN_COVERAGE = 0.8
"""The share of texts that must be decided for a score."""

_NODES = (np.arange(256) + 0.5) / 256


def confidence(
    true_positives: int,
    false_negatives: int,
    true_negatives: int,
    false_positives: int,
    *,
    at_least: float = GOOD,
) -> float:
    """P(balanced accuracy ≥ `at_least` | these counts).

    The true positive and the true negative rate are independent and flat beforehand, so afterwards each has a
    Beta distribution. The probability that they add up to 2 · `at_least` is integrated over 256 equal parts
    of the probability of the first; right to about 1e-4.

    Raises:
        LabelingError: a negative count.
    """
    counts = (true_positives, false_negatives, true_negatives, false_positives)
    if min(counts) < 0:
        raise LabelingError(f"Counts of {counts}: a count is 0 or more.")
    rate = betaincinv(true_positives + 1, false_negatives + 1, _NODES)
    needed = np.clip(2 * at_least - rate, 0.0, 1.0)
    enough = 1.0 - betainc(true_negatives + 1, false_positives + 1, needed)
    return float(min(1.0, np.where(2 * at_least - rate > 1.0, 0.0, enough).mean()))


def balanced_accuracy_interval(
    true_positives: int,
    false_negatives: int,
    true_negatives: int,
    false_positives: int,
    *,
    level: float = 0.95,
) -> tuple[float, float]:
    """The central interval of the balanced accuracy given the counts, from the same distributions.

    Their mean has no closed form; it is replaced by the Beta distribution of equal mean and variance. The
    measured balanced accuracy is always inside.
    """
    means, variances = [], []
    for yes, no in ((true_positives, false_negatives), (true_negatives, false_positives)):
        a, b = yes + 1, no + 1
        means.append(a / (a + b))
        variances.append(a * b / ((a + b) ** 2 * (a + b + 1)))
    mean, variance = sum(means) / 2, sum(variances) / 4
    size = mean * (1 - mean) / variance - 1
    tail = (1 - level) / 2
    low, high = betaincinv(mean * size, (1 - mean) * size, [tail, 1 - tail])
    measured = balanced_accuracy(true_positives, false_negatives, true_negatives, false_positives)
    return float(min(low, measured)), float(max(high, measured))


def balanced_accuracy(
    true_positives: int, false_negatives: int, true_negatives: int, false_positives: int
) -> float:
    """The mean of the true positive and the true negative rate; a class without items counts one half."""
    positives, negatives = true_positives + false_negatives, true_negatives + false_positives
    rates = (
        true_positives / positives if positives else 0.5,
        true_negatives / negatives if negatives else 0.5,
    )
    return sum(rates) / 2


def score_from_counts(
    true_positives: int,
    false_negatives: int,
    true_negatives: int,
    false_positives: int,
    *,
    by_quantile: Mapping[str, float] | None = None,
    auroc: float | None = None,
    auroc_interval: tuple[float, float] | None = None,
    details: Mapping[str, Any] | None = None,
) -> Score:
    """A score with its interval and confidence."""
    counts = (int(true_positives), int(false_negatives), int(true_negatives), int(false_positives))
    return Score(
        balanced_accuracy(*counts),
        balanced_accuracy_interval(*counts),
        confidence(*counts),
        *counts,
        auroc=auroc,
        auroc_interval=auroc_interval,
        by_quantile=dict(by_quantile or {}),
        details=dict(details or {}),
    )


def score_from_answers(
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    by_quantile: Mapping[str, float] | None = None,
    details: Mapping[str, Any] | None = None,
) -> Score:
    """A score from a judge's probabilities that the label fits: above 0.5 is a yes, below a no.

    A text at 0.5 is undecided and counts as neither. With fewer than `MIN_COVERAGE` of the texts decided, or
    none of a class, there is no score: its numbers are None, and `details["reason"]` says why.

    Args:
        positive: of texts or tokens at which the feature fires.
        negative: of those at which it does not.
        by_quantile, details: as in `Score`.
    """
    every = [np.asarray(each, dtype=np.float64) for each in (positive, negative)]
    yes, no = (each[each != UNDECIDED] for each in every)
    total, decided = sum(map(len, every)), len(yes) + len(no)
    coverage = decided / total if total else 0.0
    if coverage < MIN_COVERAGE or not len(yes) or not len(no):
        reason = (
            f"{decided} of {total} texts were decided ({len(yes)} positive, {len(no)} negative); a score "
            f"needs {MIN_COVERAGE:.0%} of them, and some of each class"
        )
        return Score(
            None, None, None, 0, 0, 0, 0, coverage=coverage, details={**(details or {}), "reason": reason}
        )
    curve = auroc(yes, no)
    hits, alarms = int((yes > UNDECIDED).sum()), int((no > UNDECIDED).sum())
    score = score_from_counts(
        hits,
        len(yes) - hits,
        len(no) - alarms,
        alarms,
        by_quantile=by_quantile,
        auroc=curve.value,
        auroc_interval=curve.interval,
        details=details,
    )
    return replace(score, coverage=coverage)


class Auroc(NamedTuple):
    """P(a positive scores above a negative), ties counting one half, with its interval."""

    value: float
    interval: tuple[float, float]


def auroc(positive: ArrayLike, negative: ArrayLike, *, level: float = 0.95) -> Auroc:
    """The area under the ROC curve, with an interval on the scale of the log odds.

    The variance is DeLong's; where the classes are apart altogether it is 0, and the interval is that of a
    rate of so many successes without a failure.

    Source: DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two or more correlated receiver
    operating characteristic curves".

    Raises:
        LabelingError: a class has no items.
    """
    yes, no = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    m, n = len(yes), len(no)
    if not m or not n:
        raise LabelingError(f"An area under the curve of {m} positives and {n} negatives. Give some of each.")
    ranks = rankdata(np.concatenate([yes, no]))
    above = (ranks[:m] - rankdata(yes)) / n  # of each positive, the share of negatives below it
    below = 1.0 - (ranks[m:] - rankdata(no)) / m
    value = float(above.mean())
    variance = (above.var(ddof=1) / m if m > 1 else 0.25) + (below.var(ddof=1) / n if n > 1 else 0.25)
    tail = (1 - level) / 2
    if not 0.0 < value < 1.0 or variance == 0.0:
        edge = float(tail ** (1 / min(m, n)))
        return Auroc(
            value, (edge, 1.0) if value == 1.0 else (0.0, 1 - edge) if value == 0.0 else (value, value)
        )
    spread = float(norm.ppf(1 - tail)) * float(np.sqrt(variance)) / (value * (1 - value))
    odds = float(np.log(value / (1 - value)))
    low, high = 1 / (1 + np.exp(-(odds - spread))), 1 / (1 + np.exp(-(odds + spread)))
    return Auroc(value, (float(low), float(high)))


def calibration_error(
    probabilities: Sequence[float] | NDArray[np.float64],
    came_true: Sequence[bool] | NDArray[np.bool_],
    *,
    bins: int = 10,
) -> float:
    """The expected calibration error: how far stated probabilities are from the share that came true.

    Over equal bins of the probability, weighted by how many fall into each; 0 is best, 1 worst.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.

    Raises:
        LabelingError: no probabilities, or not one outcome for each.
    """
    stated, happened = np.asarray(probabilities, dtype=np.float64), np.asarray(came_true, dtype=np.float64)
    if not len(stated) or len(stated) != len(happened):
        raise LabelingError(f"{len(stated)} probabilities and {len(happened)} outcomes. Give one for each.")
    place = np.minimum((stated * bins).astype(int), bins - 1)
    gaps = [
        (place == i).mean() * abs(stated[place == i].mean() - happened[place == i].mean())
        for i in range(bins)
        if (place == i).any()
    ]
    return float(sum(gaps))
