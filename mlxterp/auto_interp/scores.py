"""How well a label tells where a feature fires: rates, intervals, and confidence as a tested probability.

Lives here: scores from counts, the area under the ROC curve, calibration of confidences. Does not live here:
who judges the texts (`fitting.py` by a rule, `scorers.py` by a language model).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxterp.auto_interp.label import Score
from mlxterp.errors import LabelingError
from mlxterp.statistics import intervals
from mlxterp.statistics.intervals import Counts, probability_of_accuracy

GOOD = 0.75
"""The balanced accuracy from which on a label counts as good: that of a person's own (arXiv:2410.13928)."""


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
    Beta distribution (`mlxterp.statistics.intervals.probability_of_accuracy`); right to about 1e-4.

    Raises:
        LabelingError: a negative count.
    """
    counts = (true_positives, false_negatives, true_negatives, false_positives)
    if min(counts) < 0:
        raise LabelingError(f"Counts of {counts}: a count is 0 or more.")
    return probability_of_accuracy(Counts(*counts), at_least)


def balanced_accuracy_interval(
    true_positives: int,
    false_negatives: int,
    true_negatives: int,
    false_positives: int,
    *,
    level: float = 0.95,
) -> tuple[float, float]:
    """The interval of the balanced accuracy (`mlxterp.statistics.intervals.balanced_accuracy`)."""
    counts = Counts(true_positives, false_negatives, true_negatives, false_positives)
    _, low, high = intervals.balanced_accuracy(counts, level=level)
    return low, high


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
    positive: ArrayLike, negative: ArrayLike, *, details: Mapping[str, Any] | None = None
) -> Score:
    """A score from a judge's probabilities that the label fits: 0.5 and more is a yes.

    Args:
        positive: of texts or tokens at which the feature fires.
        negative: of such at which it does not.
        details: other plain values to keep.
    """
    yes, no = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    curve = auroc(yes, no) if len(yes) and len(no) else None
    hits, alarms = int((yes >= 0.5).sum()), int((no >= 0.5).sum())
    return score_from_counts(
        hits,
        len(yes) - hits,
        len(no) - alarms,
        alarms,
        auroc=None if curve is None else curve.value,
        auroc_interval=None if curve is None else curve.interval,
        details=details,
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
