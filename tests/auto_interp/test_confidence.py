"""Where a label's confidence comes from: here, and on another kind of text."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.auto_interp.confidence import KIND_SHIFT, KIND_SPREAD, calibration_error, confidence, elsewhere
from mlxterp.auto_interp.label import FeatureLabel, Proposal, with_scores
from mlxterp.auto_interp.scores import score_from_counts
from mlxterp.errors import LabelingError


def test_a_label_that_is_sure_here_is_not_sure_on_another_kind_of_text():
    sure = (410, 90, 410, 90)  # 0.82 of 1,000

    assert confidence(*sure) > 0.99
    assert 0.3 < elsewhere(*sure) < 0.5
    assert elsewhere(495, 5, 495, 5) > 0.9  # nearly perfect labels hold elsewhere too


@pytest.mark.parametrize("counts", [(40, 10, 45, 5), (8, 0, 8, 0), (410, 90, 410, 90)])
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
