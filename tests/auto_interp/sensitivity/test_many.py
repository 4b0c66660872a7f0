"""`sensitivity_tests`: many labels with one pass, and of those that pass no more false ones than was said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlxterp.auto_interp import FeatureLabel, sensitivity_test, sensitivity_tests
from mlxterp.auto_interp.sensitivity import sensitivity
from mlxterp.auto_interp.sensitivity.sensitivity import permutation_p
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import LabelingError
from mlxterp.sae.sae import SAE
from tests.auto_interp import planted

ALPHA = 0.01


@pytest.fixture(scope="module")
def doubled(sae) -> SAE:
    """Every planted feature a second time."""
    return planted.planted_sae(planted.plants() * 2)


@pytest.fixture(scope="module")
def nulls(held_out):
    """Other texts, the second half of the features with their activations dealt to other tokens at random."""
    return planted.with_nulls(held_out)


@pytest.fixture(scope="module")
def claims(labels) -> list[FeatureLabel]:
    """Labels that say what their features fire on, 200 and more by giving some again."""
    named = [dataclasses.replace(label, evidence=()) for label in labels if label.label is not None]
    return (named * 4)[:200]


def of_nulls(claims: list[FeatureLabel]) -> list[FeatureLabel]:
    n = len(planted.plants())
    return [dataclasses.replace(label, feature_id=label.feature_id + n) for label in claims]


def test_of_200_nulls_none_passes(model, doubled, nulls, claims):
    found = sensitivity_tests(model, doubled, of_nulls(claims), store=nulls, alpha=ALPHA)

    assert len(found) == 200
    assert [label for label in found if label.sensitivity_passed] == []
    adjusted = [label.sensitivity["p_adjusted"] for label in found if label.sensitivity_passed is not None]
    assert len(adjusted) >= 190
    assert min(adjusted) >= ALPHA


def test_of_true_labels_among_as_many_nulls_those_that_are_true_pass(model, doubled, nulls, claims):
    found = sensitivity_tests(model, doubled, claims[:50] + of_nulls(claims[:50]), store=nulls, alpha=ALPHA)

    passed = [label.sensitivity_passed for label in found]
    assert passed[:50].count(True) >= 45
    assert passed[50:].count(True) == 0


def test_three_true_labels_among_200_nulls_still_pass(model, doubled, nulls, claims):
    """Their p must be smaller than 999 deals can say."""
    found = sensitivity_tests(model, doubled, claims[:3] + of_nulls(claims), store=nulls, alpha=ALPHA)

    passed = [label.sensitivity_passed for label in found]
    assert passed[:3] == [True] * 3
    assert passed[3:].count(True) == 0
    assert all(label.sensitivity["p"] < 1 / 1000 for label in found[:3])


def test_each_label_is_tested_as_alone_with_one_pass_for_all(model, sae, labels, monkeypatch):
    texts = planted.texts(40, seed=5)
    some = labels[:6]
    alone = [sensitivity_test(model, sae, label, texts) for label in some]
    calls, run = [], InterpretableModel.run
    monkeypatch.setattr(
        InterpretableModel, "run", lambda self, *a, **k: calls.append(1) or run(self, *a, **k)
    )

    together = sensitivity_tests(model, sae, some, texts)

    assert len(calls) == 1
    added = {"p_adjusted", "tested_with", "alpha"}
    for one, other in zip(alone, together, strict=True):
        assert other.sensitivity_passed == one.sensitivity_passed
        assert {k: v for k, v in other.sensitivity.items() if k not in added} == one.sensitivity
        assert "adjusted for 6 labels" in other.sensitivity_details


def test_labels_that_cannot_be_tested_are_not_corrected_for(model, sae, labels, held_out):
    nothing = FeatureLabel(feature_id=3, status="dead")
    rare = dataclasses.replace(labels[1], label="purple elephants", rule=None)

    found = sensitivity_tests(model, sae, [labels[0], nothing, rare], store=held_out)

    assert found[0].sensitivity["tested_with"] == 1
    assert found[0].sensitivity["p_adjusted"] == found[0].sensitivity["p"]
    assert found[0].sensitivity_passed is True
    assert found[1] is nothing
    assert found[2].sensitivity_passed is None
    assert "p_adjusted" not in found[2].sensitivity
    assert sensitivity_tests(model, sae, []) == []


def test_causal_effects_are_those_of_one_label(model, sae, labels, held_out):
    (together,) = sensitivity_tests(model, sae, labels[:1], store=held_out, causal=True, controls=3)

    alone = sensitivity_test(model, sae, labels[0], store=held_out, causal=True, controls=3)
    assert together.sensitivity["causal"] == alone.sensitivity["causal"]


def test_what_makes_no_sense_is_refused(model, sae, labels, held_out):
    with pytest.raises(LabelingError, match="alpha=1"):
        sensitivity_tests(model, sae, labels[:1], store=held_out, alpha=1)
    with pytest.raises(LabelingError, match="Nothing to test on"):
        sensitivity_tests(model, sae, labels[:1])


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_correction_is_that_of_benjamini_and_hochberg(ps):
    """By its definition: the largest k with p_(k) ≤ α k / m; the k smallest are discoveries."""
    limits = 0.05 * np.arange(1, len(ps) + 1) / len(ps)
    assume(np.abs(np.subtract.outer(np.array(ps), limits)).min() > 1e-9)  # a tie is decided by the last bit
    outcomes = [{"p": p, "passed": True} for p in ps]

    sensitivity._adjust(outcomes, [None] * len(ps), 0.05, 0)  # type: ignore[list-item]

    ordered = np.sort(ps)
    fits = np.flatnonzero(ordered < limits)
    limit = ordered[fits[-1]] if len(fits) else -1.0
    assert [each["passed"] for each in outcomes] == [p <= limit for p in ps]


def test_a_p_is_how_often_a_deal_is_as_far_apart():
    random = np.random.default_rng(0)
    firing = np.array([1.0, 0, 0, 0, 0, 0, 0, 0])

    p = permutation_p(firing, np.zeros(200), random, 40_000)

    assert p == pytest.approx(8 / 208, rel=0.1)
