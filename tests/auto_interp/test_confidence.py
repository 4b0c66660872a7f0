"""Where a label's confidence comes from: here, and on another kind of text."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from mlxterp.auto_interp.confidence import (
    KIND_SHIFT,
    KIND_SPREAD,
    USUAL_LOSS,
    KindOfText,
    calibration_error,
    confidence,
    elsewhere,
    kind_of_text,
    on_kind,
)
from mlxterp.auto_interp.label import FeatureLabel, Proposal, with_scores
from mlxterp.auto_interp.scores import score_from_counts
from mlxterp.errors import LabelingError
from mlxterp.statistics.intervals import Counts, probability_of_accuracy


def test_a_label_that_is_sure_here_is_not_sure_on_another_kind_of_text():
    sure = (410, 90, 410, 90)  # 0.82 of 1,000

    assert confidence(*sure) > 0.99
    assert 0.3 < elsewhere(*sure) < 0.5
    assert elsewhere(495, 5, 495, 5) > 0.9  # nearly perfect labels hold elsewhere too


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (8, 0, 8, 0), (40, 10, 45, 5), (5000, 5000, 10_000, 0)])
def test_the_confidence_is_what_the_room_of_statistics_computes_slowly(counts):
    for at_least in (0.6, 0.75, 0.9):
        slow = probability_of_accuracy(Counts(*counts), at_least)
        assert confidence(*counts, at_least=at_least) == pytest.approx(slow, abs=1e-9)


COUNTS = [(40, 10, 45, 5), (8, 0, 8, 0), (410, 90, 410, 90)]


def test_a_confidence_is_no_more_than_one_where_the_rounding_of_its_sum_is():
    """The parts of this integral add up to 1.0000000000000002."""
    assert confidence(440, 34, 457, 38) == 1.0


@pytest.mark.parametrize("counts", COUNTS)
def test_elsewhere_is_the_share_of_simulated_kinds_on_which_the_label_holds(counts):
    random, (tp, fn, tn, fp) = np.random.default_rng(0), counts
    here = (random.beta(tp + 1, fn + 1, 200_000) + random.beta(tn + 1, fp + 1, 200_000)) / 2
    there = here - random.normal(KIND_SHIFT, KIND_SPREAD, 200_000)

    assert elsewhere(*counts) == pytest.approx(
        (there >= 0.75).mean(),
        abs=0.015,  # a Beta of 8 counts is skew, a normal is not
    )


def test_on_kinds_that_differ_as_the_fitted_ones_do_it_is_calibrated_and_confidence_is_not():
    random = np.random.default_rng(1)
    rates = random.uniform(0.5, 1.0, size=(800, 2))
    right = random.binomial(200, rates)
    counts = [(int(a), 200 - int(a), int(b), 200 - int(b)) for a, b in right]
    held = rates.mean(axis=1) - random.normal(KIND_SHIFT, KIND_SPREAD, len(rates)) >= 0.75

    assert calibration_error([elsewhere(*each) for each in counts], held) < 0.05
    assert calibration_error([confidence(*each) for each in counts], held) > 0.15


def simulated_kind(
    hits: float, rejections: float, *, n: int = 2000, tokens: int = 10
) -> tuple[list[Counts], list[Counts], np.ndarray]:
    """Labels with their counts where they were made, those of some tokens on another kind of text, and their
    true balanced accuracy there: with log odds lower by these, and an evenness of 8."""
    random = np.random.default_rng([int(100 * hits), n])
    rates = random.uniform(0.6, 0.97, size=(n, 2))
    means = expit(logit(rates) - [hits, rejections])
    there = random.beta(8 * means, 8 * (1 - means))
    here, seen = random.binomial(200, rates), random.binomial(tokens, there)
    return (
        [(int(a), 200 - int(a), int(b), 200 - int(b)) for a, b in here],
        [(int(a), tokens - int(a), int(b), tokens - int(b)) for a, b in seen],
        there.mean(axis=1),
    )


@pytest.mark.parametrize(
    ("hits", "rejections"),
    [
        pytest.param(0.0, 0.0, marks=pytest.mark.slow),
        pytest.param(0.5, 0.5, marks=pytest.mark.slow),
        (1.5, 0.2),
    ],
)
def test_where_a_few_tokens_of_a_kind_are_known_stated_and_true_agree_within_a_tenth(hits, rejections):
    here, seen, true = simulated_kind(hits, rejections)
    kind = kind_of_text(here, seen)

    stated = np.array([on_kind(a, b, kind) for a, b in zip(here, seen, strict=True)])
    without = np.array([elsewhere(*a) for a in here])

    assert _largest_gap(stated, true >= 0.75) <= 0.1
    assert _largest_gap(without, true >= 0.75) > 0.1


def _largest_gap(stated: np.ndarray, held: np.ndarray) -> float:
    """Between what was stated and the share that held, over fifths of the probability with 30 labels."""
    place = np.minimum((stated * 5).astype(int), 4)
    inside = [place == i for i in range(5)]
    return max(abs(stated[each].mean() - held[each].mean()) for each in inside if each.sum() >= 30)


def test_what_labels_lose_on_a_kind_is_learnt_from_many_and_less_from_few():
    here, seen, _ = simulated_kind(1.5, 0.2)

    many, few = kind_of_text(here, seen), kind_of_text(here[:1], [(0, 1, 1, 0)])

    assert (many.loss_of_hits, many.loss_of_rejections) == pytest.approx((1.5, 0.2), abs=0.1)
    assert many.evenness == pytest.approx(8, rel=0.15)
    assert abs(few.loss_of_hits - USUAL_LOSS) < 0.5
    assert (many.labels, few.labels) == (2000, 1)


def test_counts_on_the_other_kind_raise_and_lower_what_is_expected_there():
    kind = kind_of_text(*simulated_kind(0.5, 0.5, n=200)[:2])
    for counts in COUNTS:
        nothing, for_it, against_it = (
            on_kind(counts, seen, kind) for seen in ((0, 0, 0, 0), (20, 0, 20, 0), (8, 12, 10, 10))
        )
        assert against_it < nothing < for_it


def test_counts_that_do_not_go_together_are_refused():
    with pytest.raises(LabelingError, match="2 labels here and of 1 there"):
        kind_of_text([(1, 1, 1, 1)] * 2, [(1, 1, 1, 1)])
    with pytest.raises(LabelingError, match="0 or more"):
        on_kind((1, 1, 1, 1), (-1, 3, 2, 2), KindOfText(0.5, 0.5, 10.0, 3))
    with pytest.raises(LabelingError, match="1 labels without a token"):
        kind_of_text([(1, 1, 1, 1)], [(0, 0, 0, 0)])


def test_a_label_carries_both_and_a_feature_without_one_neither():
    proposal = Proposal("digits", "", "affix")
    blank = FeatureLabel(feature_id=1, status="uninterpretable")

    given = with_scores(blank, proposal, {"rule": score_from_counts(410, 90, 410, 90)})
    weak = with_scores(blank, proposal, {"rule": score_from_counts(300, 200, 300, 200)})

    assert given.confidence_elsewhere == elsewhere(410, 90, 410, 90) < given.confidence
    assert (weak.confidence, weak.confidence_elsewhere) == (0.0, None)
    assert FeatureLabel.from_dict(given.to_dict()) == given
    with pytest.raises(LabelingError, match="0 or more"):
        elsewhere(-1, 0, 0, 0)
