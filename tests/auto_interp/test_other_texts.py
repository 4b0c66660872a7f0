"""`recalibrate_confidence`: what labels are worth on another kind of text, learnt from some of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mlxterp.auto_interp import FeatureLabel, recalibrate_confidence
from mlxterp.errors import LabelingError
from tests.auto_interp import planted


@pytest.fixture(scope="module")
def named(labels) -> list[FeatureLabel]:
    return [label for label in labels if label.label is not None]


def test_labels_that_hold_on_the_other_texts_are_surer_than_without_having_looked(named, held_out):
    found = recalibrate_confidence(named, held_out)

    stated = np.array([label.confidence_elsewhere for label in found])
    assert np.median(stated) > 0.99
    assert np.mean(stated > [label.confidence_elsewhere for label in named]) > 0.9
    assert found[0].provenance["elsewhere"]["store_digest"] == held_out.digest
    assert [dataclasses.replace(label, confidence_elsewhere=None, provenance={}) for label in found] == [
        dataclasses.replace(label, confidence_elsewhere=None, provenance={}) for label in named
    ]


def test_labels_whose_features_fire_there_on_something_else_are_not_believed(named, held_out):
    """The second half of these features has its activations dealt to other tokens at random."""
    n = len(planted.plants())
    elsewhere_null = [dataclasses.replace(label, feature_id=label.feature_id + n) for label in named]

    found = recalibrate_confidence(elsewhere_null, planted.with_nulls(held_out))

    assert max(label.confidence_elsewhere for label in found) < 0.2


def test_what_has_no_rule_comes_back_as_it_is_and_alone_is_refused(named, held_out):
    nothing = FeatureLabel(feature_id=3, status="dead")
    in_words = dataclasses.replace(named[1], label="purple elephants", rule=None)

    found = recalibrate_confidence([nothing, named[0], in_words], held_out)

    assert (found[0], found[2]) == (nothing, in_words)
    with pytest.raises(LabelingError, match="None of 2 labels has a rule"):
        recalibrate_confidence([nothing, in_words], held_out)
