"""`sensitivity_test`: its outcome depends on the label, not on the scale of the SAE; None is no pass."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings

import numpy as np
import pytest

from mlxterp.auto_interp import (
    FeatureLabel,
    Sampling,
    auto_label_features,
    labels_result,
    sensitivity_test,
    sensitivity_tests,
)
from mlxterp.auto_interp.scores import Auroc, auroc
from mlxterp.auto_interp.sensitivity import sensitivity
from mlxterp.auto_interp.sensitivity.examples import (
    FreshTexts,
    Items,
    SensitivityOptions,
    by_rule,
    fresh_documents,
)
from mlxterp.errors import LabelingError, StoreError, TrainingTexts
from mlxterp.llm import ScriptedCompleter
from mlxterp.sae.feature_store.build import build_store
from tests.auto_interp import planted
from tests.auto_interp.judges import FakeJudge, data_of


def named(labels) -> list[FeatureLabel]:
    found = [label for label in labels if label.label is not None]
    assert len(found) >= 50
    return found


def test_true_labels_pass(model, sae, labels, held_out):
    passed = [sensitivity_test(model, sae, each, store=held_out).sensitivity_passed for each in named(labels)]

    assert passed.count(True) >= 0.95 * len(passed)


def test_labels_of_other_features_do_not(model, sae, labels, held_out):
    given = named(labels)
    swapped = [
        dataclasses.replace(label, feature_id=given[i - 1].feature_id, evidence=())
        for i, label in enumerate(given)
    ]

    passed = [sensitivity_test(model, sae, each, store=held_out).sensitivity_passed for each in swapped]

    assert passed.count(True) <= 0.05 * len(passed)


@pytest.mark.parametrize("nonsense", ["purple elephants", "__never__", "?", "tokens before other tokens"])
def test_nonsense_never_passes(model, sae, labels, held_out, nonsense):
    for label in named(labels)[:6]:
        for rule in (label.rule, None):
            claimed = dataclasses.replace(label, label=nonsense, rule=rule)

            assert sensitivity_test(model, sae, claimed, store=held_out).sensitivity_passed is not True


def in_words(labels) -> list[FeatureLabel]:
    """Labels of one or several words, as a person would write them, without a rule."""
    found = []
    for label in labels:
        plant = planted.plants()[label.feature_id]
        if plant.words and not plant.after and label.label is not None:
            found.append(
                dataclasses.replace(label, label=" or ".join(plant.words), description="", rule=None)
            )
    return found


class Reader(FakeJudge):
    """Reads a label as the words it names, and is right with a known probability."""

    def _answer(self, request) -> str:
        data = data_of(request)
        wanted = str(data["label"]).split(" or ")
        said = []
        for each in data["texts"]:
            (mark,) = re.findall(r"<<(.*?)>>", each["text"])
            right = self.random.random() < self.accuracy
            said.append({"i": each["i"], "prob": 90 if (mark.strip() in wanted) is right else 10})
        return json.dumps({"p": said})


@pytest.fixture(scope="module")
def words(model, sae, store) -> list[FeatureLabel]:
    found = in_words(
        auto_label_features(model, sae, store=store, feature_ids=range(100), llm=None, sampling=Sampling())
    )
    assert len(found) >= 40
    return found


@pytest.mark.parametrize("accuracy", [1.0, 0.92])
def test_true_labels_in_words_pass_by_a_reader(model, sae, held_out, words, accuracy):
    tested = sensitivity_tests(model, sae, words, store=held_out, reader=Reader(accuracy))

    passed = [label.sensitivity_passed for label in tested]
    assert passed.count(True) >= 0.8 * len(passed)
    assert (
        f"{passed.count(True)} of {len(passed) - passed.count(None)} tested labels pass"
        in labels_result(tested).summary()
    )
    assert "fake-judge, reading the label" in tested[0].sensitivity_details


def test_nonsense_and_labels_of_other_features_do_not_pass_by_a_reader(model, sae, held_out, words):
    nonsense = [dataclasses.replace(label, label="purple elephants") for label in words]
    swapped = [
        dataclasses.replace(label, feature_id=words[i - 1].feature_id, evidence=())
        for i, label in enumerate(words)
    ]

    for given in (nonsense, swapped):
        tested = sensitivity_tests(model, sae, given, store=held_out, reader=Reader(0.92))
        assert sum(label.sensitivity_passed is True for label in tested) <= 0.05 * len(given)


def test_a_label_in_words_without_a_reader_is_not_tested_and_says_what_would(model, sae, held_out, words):
    tested = sensitivity_test(model, sae, words[0], store=held_out)

    assert tested.sensitivity_passed is None
    assert "Give reader=" in tested.sensitivity_details
    assert "positives= and negatives=" in tested.sensitivity_details


def test_a_reader_that_leaves_most_undecided_decides_nothing(model, sae, held_out, words):
    def unsure(request) -> str:
        return json.dumps({"p": [{"i": each["i"], "prob": 50} for each in data_of(request)["texts"]]})

    tested = sensitivity_test(model, sae, words[0], store=held_out, reader=ScriptedCompleter(unsure))

    assert tested.sensitivity_passed is None
    assert "decided 0 % of the tokens; 80 % are needed" in tested.sensitivity_details


@pytest.mark.parametrize("scale", [1e-3, 3.7, 64.0])
def test_the_scale_of_the_sae_changes_nothing(model, labels, scale):
    texts = planted.texts(30, seed=1)
    for label in (named(labels)[1], named(labels)[30]):
        outcomes = [
            sensitivity_test(model, planted.planted_sae(scale=c), label, test_texts=texts)
            for c in (1.0, scale)
        ]

        assert outcomes[0] == outcomes[1]


def test_too_few_items_are_no_pass(model, sae, labels):
    label = next(each for each in labels if planted.plants()[each.feature_id].kind == "position")

    tested = sensitivity_test(model, sae, label, test_texts=planted.texts(3, seed=7))

    assert tested.sensitivity_passed is None
    assert "8 of each are needed" in tested.sensitivity_details


def test_the_label_given_stays_as_it_is(model, sae, labels, held_out):
    before = labels[0].to_dict()

    tested = sensitivity_test(model, sae, labels[0], store=held_out)

    assert labels[0].to_dict() == before
    assert tested is not labels[0]
    assert tested.sensitivity_passed is True
    assert FeatureLabel.from_dict(tested.to_dict()) == tested


def test_texts_that_the_label_was_made_from_are_left_out(model, sae, labels, store):
    seen = {window.document for window in labels[0].evidence}

    with pytest.warns(TrainingTexts, match="labels of these features were made from: 0"):
        tested = sensitivity_test(model, sae, labels[0], store=store)

    assert tested.sensitivity["removed"] >= len(seen)
    assert not fresh_documents(store, labels[0])[list(seen)].any()
    assert f"{tested.sensitivity['removed']} texts were left out" in tested.sensitivity_details


def test_lists_that_are_given_decide(model, sae, labels):
    label = dataclasses.replace(labels[0], label="anything", rule=None)
    word = planted.plants()[0].words[0]
    yes, no = [f"sun {word} dog"] * 10, ["sun moon dog"] * 10

    assert sensitivity_test(model, sae, label, positives=yes, negatives=no).sensitivity_passed is True
    assert sensitivity_test(model, sae, label, positives=no, negatives=yes).sensitivity_passed is False
    few = sensitivity_test(model, sae, label, positives=yes[:3], negatives=no)
    assert few.sensitivity_passed is None


def test_half_of_the_negatives_of_a_pair_meet_one_condition_of_two(labels, held_out):
    pair = next(each for each in labels if planted.plants()[each.feature_id].kind == "bigram")
    word = planted.plants()[pair.feature_id].words[0]

    texts = FreshTexts(held_out, pair.feature_id, np.ones(60, dtype=bool), np.random.default_rng(0))
    items = by_rule(texts, pair.rule)

    near = [
        name
        for name in map(items.name, range(len(items.positive), len(items.positive) + len(items.negative)))
        if f"« {word}»" in name
    ]
    assert len(near) >= len(items.negative) / 8


def test_what_cannot_be_tested_is_refused(model, sae, labels, held_out):
    with pytest.raises(LabelingError, match="has no label to test"):
        sensitivity_test(model, sae, FeatureLabel(feature_id=1, status="dead"), store=held_out)
    with pytest.raises(LabelingError, match="Nothing to test on"):
        sensitivity_test(model, sae, labels[0])
    with pytest.raises(LabelingError, match="layer=1 was asked for"):
        sensitivity_test(model, sae, labels[0], store=held_out, layer=1)
    other = planted.planted_sae(planted.plants()[:20])
    with pytest.raises(StoreError, match="Build a store of it"):
        sensitivity_test(model, other, labels[0], store=held_out)
    with pytest.raises(StoreError, match="other texts"):
        sensitivity_test(model, sae, labels[0], store=held_out, test_texts=["sun moon"])


def test_a_store_and_texts_give_the_same(model, sae, labels):
    texts = planted.texts(20, seed=9)

    by_texts = sensitivity_test(model, sae, labels[0], test_texts=texts)

    assert by_texts == sensitivity_test(model, sae, labels[0], store=build_store(model, sae, texts))


def test_labels_tested_on_the_texts_they_were_made_from_are_warned_of_once(model, sae, labels, store):
    tested = [dataclasses.replace(label, evidence=()) for label in named(labels)[:7]]

    with pytest.warns(TrainingTexts, match="and 2 more") as found:
        sensitivity_tests(model, sae, tested, store=store)

    assert len([each for each in found if each.category is TrainingTexts]) == 1


def test_other_texts_are_not_warned_of(model, sae, labels, held_out):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sensitivity_test(model, sae, labels[0], store=held_out)


ABOVE, AT = Auroc(0.9, (np.nextafter(sensitivity.MIN_AUROC, 1), 0.95)), Auroc(0.9, (0.6, 0.95))


@pytest.mark.parametrize(
    ("area", "accuracy", "p", "passes"),
    [
        (ABOVE, 0.75, np.nextafter(0.01, 0), True),
        (AT, 0.75, 0.001, False),  # the value of the area is above the bar; its lower bound is not
        (ABOVE, np.nextafter(0.75, 0), 0.001, False),
        (ABOVE, 0.75, 0.01, False),
    ],
    ids=["all at their bars", "area", "balanced accuracy", "p"],
)
def test_each_bar_of_the_test_is_decided_at_its_value(area, accuracy, p, passes):
    assert sensitivity.holds(area, accuracy, p) is passes


def items(positive: list[float], negative: list[float], store) -> Items:
    arrays = (np.array(each, dtype=np.float64) for each in (positive, negative))
    return Items(*arrays, "text", "lists", str, store, np.zeros(len(positive), dtype=np.int64))


def test_an_area_above_the_bar_with_a_lower_bound_below_it_fails(held_out):
    positive, negative = [1.0] * 6 + [0.0] * 2, [0.0] * 6 + [1.0] * 2
    area = auroc(positive, negative)
    assert area.value > sensitivity.MIN_AUROC > area.interval[0]

    found = sensitivity._measure(
        items(positive, negative, held_out), SensitivityOptions(None, 8, causal=False, controls=1, seed=0)
    )

    assert found["balanced_accuracy"] == 0.75
    assert found["passed"] is False


@pytest.mark.parametrize(("n", "tested"), [(7, False), (8, True)])
def test_eight_items_of_a_class_are_enough(held_out, n, tested):
    options = SensitivityOptions(None, 8, causal=False, controls=1, seed=0)

    found = sensitivity._measure(items([1.0] * 20, [0.0] * n, held_out), options)

    assert (found["passed"] is not None) is tested


@pytest.mark.parametrize(("activation", "fires"), [(np.nextafter(0.1, 0), 0.0), (0.1, 0.125)])
def test_a_feature_fires_from_a_tenth_of_its_strongest_activation_on(held_out, activation, fires):
    options = SensitivityOptions(None, 8, causal=False, controls=1, seed=0)

    found = sensitivity._measure(items([1.0] * 8, [activation] + [0.0] * 7, held_out), options)

    assert 1 - found["specificity"] == fires
