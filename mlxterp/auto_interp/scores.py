"""How well a label tells where a feature fires: rates and intervals, from counts and from a judge's answers.

The confidence of a label follows from these counts in `confidence.py`. Nothing here needs mlx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from mlxterp.auto_interp.confidence import confidence
from mlxterp.auto_interp.label import Score
from mlxterp.errors import LabelingError
from mlxterp.statistics import intervals
from mlxterp.text import percent

UNDECIDED = 0.5
"""The probability of a text that a judge says neither yes nor no to."""

MIN_COVERAGE = 0.8
"""The share of texts that must be decided for a score."""


def balanced_accuracy_interval(
    true_positives: int,
    false_negatives: int,
    true_negatives: int,
    false_positives: int,
    *,
    level: float = 0.95,
) -> tuple[float, float]:
    """The interval of the balanced accuracy: the exact ones of both rates, combined by MOVER.

    By scipy, for a thousand labels need two each: `mlxterp.statistics.intervals.balanced_accuracy`, which is
    the same and has the source, takes 10 ms.

    Raises:
        LabelingError: a negative count.
    """
    counts = (true_positives, false_negatives, true_negatives, false_positives)
    if min(counts) < 0:
        raise LabelingError(f"Counts of {counts}: a count is 0 or more.")
    below = above = 0.0
    for yes, no in (counts[:2], counts[2:]):
        rate = yes / (yes + no) if yes + no else 0.5
        low = betaincinv(yes, no + 1, (1 - level) / 2) if yes else 0.0
        high = betaincinv(yes + 1, no, (1 + level) / 2) if no else 1.0
        below += (rate - low) ** 2
        above += (high - rate) ** 2
    value = balanced_accuracy(*counts)
    return float(max(0.0, value - below**0.5 / 2)), float(min(1.0, value + above**0.5 / 2))


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
    total = sum(map(len, every))
    without = too_few_decided(len(yes), len(no), total, details)
    if without is not None:
        return without
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
    return replace(score, coverage=(len(yes) + len(no)) / total)


def too_few_decided(
    positive: int, negative: int, total: int, details: Mapping[str, Any] | None = None
) -> Score | None:
    """The score without numbers where fewer than `MIN_COVERAGE` of `total` texts were decided, or none of a
    class; None where enough were."""
    decided = positive + negative
    coverage = decided / total if total else 0.0
    if coverage >= MIN_COVERAGE and positive and negative:
        return None
    reason = (
        f"{decided} of {total} texts were decided ({positive} positive, {negative} negative); a score needs "
        f"{percent(MIN_COVERAGE)} of them, and some of each class"
    )
    return Score(
        None, None, None, 0, 0, 0, 0, coverage=coverage, details={**(details or {}), "reason": reason}
    )


class Auroc(NamedTuple):
    """P(a positive scores above a negative), ties counting one half, with its interval."""

    value: float
    interval: tuple[float, float]


def auroc(positive: ArrayLike, negative: ArrayLike, *, level: float = 0.95) -> Auroc:
    """The area under the ROC curve with DeLong's interval (`mlxterp.statistics.intervals.auroc`).

    Raises:
        LabelingError: a class has no items.
    """
    m, n = np.size(positive), np.size(negative)
    if not m or not n:
        raise LabelingError(f"An area under the curve of {m} positives and {n} negatives. Give some of each.")
    value, low, high = intervals.auroc(positive, negative, level=level)
    return Auroc(value, (low, high))
