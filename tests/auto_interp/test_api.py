"""`auto_label_feature` and `auto_label_features`: the guide's calls, one pass, statuses, refusals."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mlxterp.auto_interp import FeatureLabel, auto_label_feature, auto_label_features, labels_result
from mlxterp.auto_interp.label import Proposal, Score, with_scores
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import LabelingError, OfflineLabels, StoreError
from mlxterp.results import AnalysisResult
from mlxterp.sae.feature_store.build import build_store
from tests.auto_interp import planted


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)


def test_the_guides_calls_run_as_they_are_written(model, sae, capsys):
    dataset_texts = planted.texts(80)

    with pytest.warns(OfflineLabels, match="the labels are made offline"):
        label = auto_label_feature(
            model, sae,
            feature_id=2,
            texts=dataset_texts,
            layer=0,
            llm_model="claude-sonnet-4-20250514",
        )  # fmt: skip
    said = [
        f"Feature {label.feature_id}: {label.label}",
        f"Confidence: {label.confidence:.0%}",
        f"Evidence: {len(label.evidence)} examples",
    ]
    labels = auto_label_features(
        model, sae,
        texts=dataset_texts,
        layer=0,
        top_k_features=20,
        verbose=True,
    )  # fmt: skip

    assert said == ['Feature 2: token " book"', "Confidence: 100%", "Evidence: 20 examples"]
    assert "labels of 20 of 20 features" in capsys.readouterr().err
    assert len(labels) == 20
    assert {each.method for each in (label, *labels)} == {"offline"}
    assert "ANTHROPIC_API_KEY is not set" in label.provenance["labeler"]


def test_forwards_do_not_grow_with_features(model, sae, monkeypatch):
    calls = []
    run = InterpretableModel.run
    monkeypatch.setattr(
        InterpretableModel, "run", lambda self, *a, **k: calls.append(1) or run(self, *a, **k)
    )
    texts = planted.texts(30)
    tokens = sum(len(text.split()) for text in texts)

    auto_label_features(model, sae, texts=texts, feature_ids=range(100))

    assert len(calls) <= -(-tokens // 4096) + 2


def test_a_label_does_not_depend_on_the_others_nor_on_the_workers(model, sae, store, labels):
    wanted = [8, 104, 212]

    alone = [auto_label_feature(model, sae, feature_id=i, store=store, llm=None) for i in wanted]
    with ThreadPoolExecutor(4) as executor:
        spread = auto_label_features(
            model, sae, store=store, llm=None, executor=executor, feature_ids=range(0, sae.d_sae, 12)
        )

    assert alone == [label for label in labels if label.feature_id in wanted]
    assert spread == labels[::3]


def test_a_feature_that_never_fires_gets_a_status_and_prints(model):
    plants = [planted.Plant("bigram", ("apple",), after="apple"), planted.Plant("unigram", ("bird",))]

    dead, alive = auto_label_features(model, planted.planted_sae(plants), texts=planted.texts(60))

    assert (dead.status, dead.label, dead.confidence, dead.evidence) == ("dead", None, 0.0, ())
    assert f"{dead.label} ({dead.confidence:.0%})" == "None (0%)"
    assert alive.status == "ok"


def test_the_most_active_features_are_chosen_without_dense_ones(model, sae, store):
    chosen = [label.feature_id for label in auto_label_features(model, sae, store=store, top_k_features=10)]

    mass = store.counts * store.mean_activation
    assert (store.density[chosen] <= 0.1).all()
    assert min(mass[chosen]) >= max(np.delete(mass * (store.density <= 0.1), chosen))


def test_a_label_survives_json_and_is_a_result(labels):
    for label in labels[:20]:
        assert FeatureLabel.from_dict(json.loads(json.dumps(label.to_dict()))) == label

    result = labels_result(labels, question="what is planted?")

    assert AnalysisResult.from_json(result.to_json()) == result
    assert result.kind == "feature_labels"
    assert result.find(f"f{labels[0].feature_id}").effect == labels[0].confidence
    assert labels[0].label in result.to_markdown()
    assert f"{sum(label.label is not None for label in labels)} have one" in result.summary()


def test_more_scores_can_be_asked_for(model, sae, store):
    class Ones:
        async def score(self, evidence, proposal):
            from mlxterp.auto_interp.scores import score_from_counts

            assert evidence.test_positives
            return {"ours": score_from_counts(1, 0, 1, 0), "detection": score_from_counts(0, 9, 0, 9)}

    label = auto_label_features(model, sae, store=store, feature_ids=[0], scorers=[Ones()])[0]

    assert set(label.scores) == {"rule", "random_label", "ours", "detection"}
    assert label.scores["detection"].confidence < 0.01
    assert (label.status, label.label, label.confidence) == ("uninterpretable", None, 0.0)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"texts": []}, StoreError, "no texts"),
        ({"texts": "one text"}, StoreError, "one string"),
        ({}, LabelingError, "Neither texts nor a store"),
        (
            {"texts": ["sun moon"], "layer": 1},
            LabelingError,
            "layer=1 was asked for; this SAE reads L0.resid",
        ),
        ({"texts": ["sun moon"], "component": "mlp"}, LabelingError, "component='mlp_out' was asked for"),
        ({"texts": ["sun moon"], "feature_ids": [900]}, StoreError, "no feature 900"),
        ({"texts": ["sun moon"], "feature_ids": [1], "top_k_features": 3}, LabelingError, "one of them"),
        ({"texts": ["sun moon"], "top_k_features": 0}, LabelingError, "1 or more"),
        ({"texts": ["sun moon"], "llm": "claude"}, LabelingError, "llm='claude'"),
        ({"texts": ["sun moon"], "llm": None, "llm_model": "x"}, LabelingError, "Drop one"),
    ],
)
def test_what_makes_no_sense_is_refused(model, sae, options, error, says):
    with pytest.raises(error, match=says):
        auto_label_features(model, sae, **options)


def test_a_language_model_is_not_asked_about_everything_by_accident(model, sae, store):
    from mlxterp.llm import ScriptedCompleter

    def never(request):
        raise AssertionError("it was asked")

    with pytest.raises(LabelingError, match="Labels of all 226 features"):
        auto_label_features(model, sae, store=store, llm=ScriptedCompleter(never))
    with pytest.raises(LabelingError, match="its limit already"):
        auto_label_features(
            model, sae, store=store, llm=ScriptedCompleter(never), max_usd=1.0, top_k_features=1
        )


def test_a_store_of_something_else_is_refused(model, sae, store):
    with pytest.raises(StoreError, match="other texts"):
        auto_label_features(model, sae, store=store, texts=["sun moon"])
    with pytest.raises(StoreError, match="Build a store of it"):
        auto_label_features(model, planted.planted_sae(planted.plants()[:3]), store=store)


def test_nothing_that_is_given_is_changed(model, sae):
    texts = planted.texts(20)
    before, digests = list(texts), (model.digest, sae.digest)
    store = build_store(model, sae, texts)
    arrays = {
        name: getattr(store, name).copy() for name in ("tokens", "token_index", "activation", "counted")
    }

    auto_label_features(model, sae, store=store, texts=texts, feature_ids=range(30))

    assert texts == before
    assert (model.digest, sae.digest) == digests
    assert all(np.array_equal(getattr(store, name), array) for name, array in arrays.items())


def test_a_label_contradicts_neither_its_status_nor_probability():
    with pytest.raises(LabelingError, match="status"):
        FeatureLabel(feature_id=1, label="x", status="dead")
    with pytest.raises(LabelingError, match="status"):
        FeatureLabel(feature_id=1)
    with pytest.raises(LabelingError, match="probability"):
        FeatureLabel(feature_id=1, status="dead", confidence=0.5)
    with pytest.raises(LabelingError, match="fields"):
        FeatureLabel.from_dict({"feature_id": 1, "colour": "red"})


def scored(confidence: float | None) -> Score:
    if confidence is None:
        return Score(None, None, None, 0, 0, 0, 0, coverage=0.3, details={"reason": "3 of 9 texts"})
    return Score(0.7, (0.6, 0.8), confidence, 35, 15, 35, 15)


@pytest.mark.parametrize(
    ("confidences", "status", "confidence"),
    [
        ({"detection": 0.1}, "ok", 0.1),
        ({"detection": np.nextafter(0.1, 0)}, "uninterpretable", 0.0),
        ({"detection": 0.9, "fuzzing": 0.05}, "uninterpretable", 0.0),
        ({"detection": 0.9, "surprisal": 0.01}, "ok", 0.9),
        ({"detection": None, "fuzzing": 0.8}, "ok", 0.8),
        ({"detection": None, "fuzzing": 0.05}, "uninterpretable", 0.0),
        ({"detection": None}, "error", 0.0),
        ({}, "uninterpretable", 0.0),
    ],
)
def test_a_label_is_given_from_a_confidence_of_a_tenth_on(confidences, status, confidence):
    blank = FeatureLabel(feature_id=3, status="uninterpretable")
    scores = {name: scored(value) for name, value in confidences.items()}

    label = with_scores(blank, Proposal("plural endings", "", "affix"), scores)

    assert (label.status, label.confidence) == (status, confidence)
    assert (label.label is None) is (status != "ok")
    assert label.scores == scores
    assert FeatureLabel.from_dict(json.loads(json.dumps(label.to_dict()))) == label
    if status == "error":
        assert label.error == "no score: detection: 3 of 9 texts"
    elif status != "ok":
        assert "plural endings" in label.description
