"""Where a feature's label gets its confidence: a probability from the counts of its test, calibrated.

`confidence` is of the kind of text that the label was tested on. On another kind labels hold less often: of
those with 0.99 or more, 98 % hold on more text of the same kind and about half on another. `elsewhere` is the
probability there. It is fitted to labels of the SAE that ships, made on each of five kinds of text and scored
on the other four (`python -m tests.benchmarks.domains`; docs/performance.md has the table).

`calibration_error` compares stated probabilities with what came true. Nothing here needs mlx.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from mlxterp.errors import LabelingError
from mlxterp.statistics.intervals import Counts, probability_of_accuracy

GOOD = 0.75
"""The balanced accuracy of a good label: a person's labels have it (arXiv:2410.13928)."""

KIND_SHIFT, KIND_SPREAD = 0.10, 0.10
"""How much lower a label's balanced accuracy is on another kind of text: mean and standard deviation
over labels and kinds."""


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


def elsewhere(true_positives: int, false_negatives: int, true_negatives: int, false_positives: int) -> float:
    """P(balanced accuracy ≥ 0.75 on another kind of text | these counts).

    There the balanced accuracy is taken as normal: the mean of the posterior here less `KIND_SHIFT`, with the
    variance of the posterior and `KIND_SPREAD`². Kinds differ more than one label tells: fitted without
    one kind, the probability is up to 0.25 too low there (licences) or 0.5 too high (program code). To know
    of one kind, test on it (`sensitivity_test`).

    Raises:
        LabelingError: a negative count.
    """
    counts = (true_positives, false_negatives, true_negatives, false_positives)
    if min(counts) < 0:
        raise LabelingError(f"Counts of {counts}: a count is 0 or more.")
    mean = variance = 0.0
    for right, wrong in (counts[:2], counts[2:]):
        a, b = right + 1, wrong + 1
        mean += a / (a + b) / 2
        variance += a * b / ((a + b) ** 2 * (a + b + 1)) / 4
    return float(norm.cdf((mean - KIND_SHIFT - GOOD) / math.sqrt(variance + KIND_SPREAD**2)))


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
