"""Where a feature's label gets its confidence: a probability from the counts of its test, calibrated.

`confidence` is of the kind of text that the label was tested on. On another kind labels hold less often: of
those with 0.99 or more, 98 % hold on more text of the same kind and about half on another. `elsewhere` is the
probability on a kind of which nothing is known, fitted to labels of the SAE that ships on five kinds. Where
some text of the kind is at hand, `kind_of_text` learns what labels lose there, and `on_kind` states it. For
both, docs/performance.md has the calibration (`python -m tests.benchmarks.domains`).

`calibration_error` compares stated probabilities with what came true. Nothing here needs mlx.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import betainc, betaincc, betaln, expit, logit, ndtr

from mlxterp.errors import LabelingError

GOOD = 0.75
"""The balanced accuracy of a good label: a person's labels have it (arXiv:2410.13928)."""

_PARTS = 512

FourCounts: TypeAlias = tuple[int, int, int, int]
"""True positives, false negatives, true negatives, false positives."""

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
    Beta distribution; the probability that they add up to 2 · `at_least` is integrated over 512 parts of the
    narrower one, right to about 1e-4. By scipy, because a thousand labels need it twice each;
    `statistics.intervals.probability_of_accuracy` is the same, for judgements that must not differ anywhere.

    Raises:
        LabelingError: a negative count.
    """
    counts = _checked((true_positives, false_negatives, true_negatives, false_positives))
    return _reaches(at_least, (counts[0] + 1, counts[1] + 1), (counts[2] + 1, counts[3] + 1))


def _deviation(of: tuple[float, float]) -> float:
    a, b = of
    return math.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))


def elsewhere(true_positives: int, false_negatives: int, true_negatives: int, false_positives: int) -> float:
    """P(balanced accuracy ≥ 0.75 on another kind of text | these counts).

    There the balanced accuracy is taken as normal: the mean of the posterior here less `KIND_SHIFT`, with the
    variance of the posterior and `KIND_SPREAD`². Kinds differ more than one label tells: fitted without
    one kind, the probability is up to 0.25 too low there (licences) or 0.5 too high (program code). To know
    of one kind, test on it (`sensitivity_test`).

    Raises:
        LabelingError: a negative count.
    """
    counts = _checked((true_positives, false_negatives, true_negatives, false_positives))
    mean = variance = 0.0
    for right, wrong in (counts[:2], counts[2:]):
        a, b = right + 1, wrong + 1
        mean += a / (a + b) / 2
        variance += _deviation((a, b)) ** 2 / 4
    return float(ndtr((mean - KIND_SHIFT - GOOD) / math.sqrt(variance + KIND_SPREAD**2)))


class KindOfText(NamedTuple):
    """What labels lose on one kind of text, learnt from some tokens of it.

    Attributes:
        loss_of_hits, loss_of_rejections: how much lower the log odds of the true positive and of the true
            negative rate are there than where the labels were tested.
        evenness: how alike labels are in this: their rates there have Beta distributions with this sum of
            parameters.
        labels: of how many labels it was learnt.
    """

    loss_of_hits: float
    loss_of_rejections: float
    evenness: float
    labels: int


USUAL_LOSS, LOSS_DEVIATION = 0.5, 1.0
USUAL_EVENNESS, LOG_EVENNESS_DEVIATION = 10.0, 1.0
"""What is known of a kind before any token of it: means and standard deviations of losses, and of the
logarithm of the evenness."""


def kind_of_text(here: Sequence[FourCounts], there: Sequence[FourCounts]) -> KindOfText:
    """What labels lose on a kind of text, learnt from a few tokens of it for each of some labels.

    Losses and evenness are those under which the counts there are likeliest (Beta-binomial), with what is
    known of kinds as prior; fifty labels with ten tokens of each class outweigh it.

    Args:
        here: the counts of each label where it was tested.
        there: of the same label on the other kind.

    Raises:
        LabelingError: other numbers of counts, a negative one, or no token there.
    """
    if len(here) != len(there):
        raise LabelingError(
            f"Counts of {len(here)} labels here and of {len(there)} there. Give both of each."
        )
    known = [(a, b) for a, b in zip(map(_checked, here), map(_checked, there), strict=True) if sum(b)]
    if not known:
        raise LabelingError(
            f"{len(here)} labels without a token on the other kind of text. Give some texts of it."
        )
    odds = logit(np.array([_means(a) for a, _ in known]))  # [labels, 2]
    seen = np.array([b for _, b in known], dtype=np.float64).reshape(
        -1, 2, 2
    )  # [labels, rate, right or wrong]

    def surprise(given: NDArray[np.float64]) -> float:
        means, evenness = expit(odds - given[:2]), math.exp(given[2])
        a, b = means * evenness, (1 - means) * evenness
        likelihood = float((betaln(a + seen[..., 0], b + seen[..., 1]) - betaln(a, b)).sum())
        of_kinds = (((given[:2] - USUAL_LOSS) / LOSS_DEVIATION) ** 2).sum()
        of_kinds += ((given[2] - math.log(USUAL_EVENNESS)) / LOG_EVENNESS_DEVIATION) ** 2
        return float(of_kinds) / 2 - likelihood

    start = [USUAL_LOSS, USUAL_LOSS, math.log(USUAL_EVENNESS)]
    hits, rejections, log_evenness = map(float, minimize(surprise, start, method="Nelder-Mead").x)
    return KindOfText(hits, rejections, math.exp(log_evenness), len(known))


def on_kind(here: FourCounts, there: FourCounts, kind: KindOfText) -> float:
    """P(balanced accuracy ≥ 0.75 on this kind of text | the counts here, and those there).

    Before the counts there each rate has a Beta distribution about the one here, lower by the kind's loss;
    after them, one with these counts added. The two are taken as independent, as in `confidence`.

    Raises:
        LabelingError: a negative count.
    """
    means = expit(logit(np.array(_means(_checked(here)))) - np.array(kind[:2]))
    (a, b), (c, d) = (
        (float(mean) * kind.evenness + right, float(1 - mean) * kind.evenness + wrong)
        for mean, right, wrong in zip(means, _checked(there)[::2], there[1::2], strict=True)
    )
    return _reaches(GOOD, (a, b), (c, d))


def _checked(counts: FourCounts) -> FourCounts:
    if min(counts) < 0:
        raise LabelingError(f"Counts of {counts}: a count is 0 or more.")
    return counts


def _means(counts: FourCounts) -> tuple[float, float]:
    """The true positive and the true negative rate after these counts, flat beforehand."""
    hits, misses, rejections, alarms = counts
    return (hits + 1) / (hits + misses + 2), (rejections + 1) / (rejections + alarms + 2)


def _reaches(at_least: float, one: tuple[float, float], other: tuple[float, float]) -> float:
    """P(the mean of two independent rates with these Beta distributions ≥ `at_least`)."""
    (a, b), wider = sorted((one, other), key=_deviation)
    reach, mean = 12 * _deviation((a, b)), a / (a + b)
    edges = np.linspace(max(0.0, mean - reach), min(1.0, mean + reach), _PARTS + 1)
    needed = np.clip(2 * at_least - (edges[:-1] + edges[1:]) / 2, 0.0, 1.0)
    reached = float((np.diff(betainc(a, b, edges)) * betaincc(*wider, needed)).sum())
    return min(1.0, reached)  # rounding of the sum can end above 1


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
