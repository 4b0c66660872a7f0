"""Scores: probabilities against simulation, intervals by how often they cover, calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mlxterp.auto_interp.confidence import calibration_error, confidence
from mlxterp.auto_interp.label import FeatureLabel, Proposal, with_scores
from mlxterp.auto_interp.scores import (
    auroc,
    balanced_accuracy,
    balanced_accuracy_interval,
    score_from_answers,
    score_from_counts,
)
from mlxterp.errors import LabelingError
from mlxterp.statistics import intervals
from mlxterp.statistics.intervals import Counts

BLANK = FeatureLabel(feature_id=1, status="uninterpretable")
COUNTS = [(0, 0, 0, 0), (8, 0, 8, 0), (40, 10, 45, 5), (500, 100, 400, 200), (5000, 5000, 10_000, 0)]


@pytest.mark.parametrize("counts", COUNTS)
def test_the_confidence_is_the_share_of_simulated_accuracies_that_are_good(counts):
    random, (tp, fn, tn, fp) = np.random.default_rng(0), counts
    simulated = (random.beta(tp + 1, fn + 1, 400_000) + random.beta(tn + 1, fp + 1, 400_000)) / 2

    assert confidence(*counts) == pytest.approx((simulated >= 0.75).mean(), abs=3e-3)
    assert confidence(*counts, at_least=0.9) == pytest.approx((simulated >= 0.9).mean(), abs=3e-3)
    low, high = balanced_accuracy_interval(*counts)
    assert low <= balanced_accuracy(*counts) <= high
    assert (low, high) == pytest.approx(intervals.balanced_accuracy(Counts(*counts))[1:], abs=1e-9)


def test_more_of_the_same_makes_surer():
    grows = [confidence(9 * n, n, 9 * n, n) for n in (1, 2, 5, 20)]
    falls = [confidence(6 * n, 4 * n, 6 * n, 4 * n) for n in (1, 2, 5, 20)]

    assert grows == sorted(grows)
    assert falls == sorted(falls, reverse=True)


def test_a_confidence_of_what_was_drawn_is_right_as_often_as_it_says():
    random = np.random.default_rng(1)
    rates = random.random((1200, 2))
    hits, rejected = random.binomial(20, rates[:, 0]), random.binomial(20, rates[:, 1])

    stated = [confidence(h, 20 - h, r, 20 - r) for h, r in zip(hits, rejected, strict=True)]

    assert calibration_error(stated, rates.mean(axis=1) >= 0.75) < 0.05


def test_the_interval_of_a_balanced_accuracy_covers_it():
    random, covered = np.random.default_rng(2), 0
    for _ in range(400):
        tpr, tnr = random.uniform(0.4, 1.0, size=2)
        hits, rejected = random.binomial(50, tpr), random.binomial(50, tnr)
        low, high = balanced_accuracy_interval(hits, 50 - hits, rejected, 50 - rejected)
        covered += low <= (tpr + tnr) / 2 <= high

    assert covered >= 0.93 * 400


def test_the_area_is_the_share_of_pairs_in_order_and_its_interval_covers():
    random, covered = np.random.default_rng(3), 0
    yes, no = random.normal(1, 1, 40).round(1), random.normal(0, 1, 30).round(1)
    pairs = (yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean()
    for _ in range(300):
        area = auroc(random.normal(1, 1, 40), random.normal(0, 1, 30))
        covered += area.interval[0] <= 0.7602 <= area.interval[1]

    assert auroc(yes, no).value == pytest.approx(pairs)
    assert covered >= 0.92 * 300


def test_classes_that_are_apart_have_an_interval_all_the_same():
    few, many = auroc([1] * 8, [0] * 8), auroc([1] * 200, [0] * 200)

    assert few.value == many.value == 1.0
    assert 0.6 < few.interval[0] < many.interval[0] < 1.0


def test_the_area_does_not_depend_on_the_scale():
    random = np.random.default_rng(4)
    yes, no = random.random(20), random.random(30)

    assert auroc(yes * 3.7, no * 3.7) == auroc(yes, no)


def test_answers_become_counts():
    score = score_from_answers([0.9, 0.5, 0.2], [0.1, 0.7])

    counts = (score.true_positives, score.false_negatives, score.true_negatives, score.false_positives)
    assert counts == (1, 1, 1, 1)
    assert score.balanced_accuracy == 0.5
    assert score.coverage == 0.8  # the text at 0.5 counts neither as yes nor as no
    expected = score_from_counts(1, 1, 1, 1, auroc=score.auroc, auroc_interval=score.auroc_interval)
    assert replace(score, coverage=1.0) == expected


@pytest.mark.parametrize(
    ("positive", "negative"),
    [([0.9, 0.5, 0.5], [0.1, 0.7]), ([0.9] * 8 + [0.8], [0.5] * 2), ([], [])],
    ids=["fewer than 80 % decided", "no negative decided", "no texts"],
)
def test_answers_that_decide_too_little_are_no_score(positive, negative):
    score = score_from_answers(positive, negative)

    assert (score.balanced_accuracy, score.confidence) == (None, None)
    assert "a score needs 80 %" in score.details["reason"]


@pytest.mark.parametrize(("undecided", "scored"), [(20, True), (21, False)])
def test_four_fifths_of_the_texts_have_to_be_decided(undecided, scored):
    decided = 100 - undecided
    positive = [0.9] * (decided - 30) + [0.5] * undecided

    score = score_from_answers(positive, [0.1] * 30)

    assert score.coverage == decided / 100
    assert (score.balanced_accuracy is not None) is scored


def test_only_a_half_itself_is_undecided():
    above, below = float(np.nextafter(0.5, 1)), float(np.nextafter(0.5, 0))

    score = score_from_answers([above, below, 0.9], [below, above, 0.1])

    counts = (score.true_positives, score.false_negatives, score.true_negatives, score.false_positives)
    assert counts == (2, 1, 2, 1)
    assert score.coverage == 1.0


@pytest.mark.parametrize(
    ("confidence", "status"), [(0.1, "ok"), (float(np.nextafter(0.1, 0)), "uninterpretable")]
)
def test_a_label_is_given_from_a_confidence_of_a_tenth_on(confidence, status):
    score = replace(score_from_counts(40, 10, 45, 5), confidence=confidence)

    found = with_scores(BLANK, Proposal("digits", "", "affix"), {"rule": score})

    assert found.status == status
    assert found.confidence == (confidence if status == "ok" else 0.0)


@pytest.mark.parametrize("lower", ["rule", "detection", "fuzzing"])
def test_the_confidence_is_the_least_of_the_scores_that_decide(lower):
    sure = score_from_counts(45, 5, 45, 5)
    scores = dict.fromkeys(("rule", "detection", "fuzzing"), sure)
    scores |= {lower: score_from_counts(38, 12, 38, 12), "random_label": score_from_counts(0, 50, 0, 50)}

    found = with_scores(BLANK, Proposal("digits", "", "affix"), scores)

    assert found.confidence == scores[lower].confidence < sure.confidence


def test_the_calibration_error_is_the_mean_gap():
    assert calibration_error([0.95] * 10 + [0.05] * 10, [True] * 10 + [False] * 10) == pytest.approx(0.05)
    assert calibration_error([1.0] * 4, [True, False, False, False]) == pytest.approx(0.75)


def test_nothing_to_score_is_refused():
    with pytest.raises(LabelingError):
        auroc([], [1])
    with pytest.raises(LabelingError):
        calibration_error([], [])
    with pytest.raises(LabelingError):
        confidence(-1, 0, 0, 0)
