"""The offline labeler finds what was planted, abstains on what means nothing, and is as sure as it may be."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from mlxterp.auto_interp.confidence import calibration_error
from mlxterp.auto_interp.evidence.corpus import Corpus
from mlxterp.auto_interp.evidence.evidence import Sampling, gather
from mlxterp.auto_interp.evidence.token_draw import draw
from mlxterp.auto_interp.label import Abstention, FeatureLabel, Proposal
from mlxterp.auto_interp.promoted_tokens import Promotion
from mlxterp.auto_interp.rules import fitting
from mlxterp.auto_interp.rules.candidates import Background, simple_rules
from mlxterp.auto_interp.rules.fitting import Fitted, OfflineLabeler, OfflineRun, fit, score_rule
from mlxterp.sae.feature_store.store import FeatureStore
from tests.auto_interp import planted

NOTHING = Promotion({}, {})
GOOD = {"unigram": 0.95, "set": 0.95, "affix": 0.9, "bigram": 0.9, "position": 0.9}


def check(labels: list[FeatureLabel], kinds: list[str]) -> None:
    """What must hold of labels of planted features and of nulls."""
    reached: dict[str, list[bool]] = {}
    for label, kind in zip(labels, kinds, strict=True):
        if kind == "null":
            found = label.status == "uninterpretable" or label.confidence < 0.2
        else:
            found = bool(label.scores) and label.scores["rule"].balanced_accuracy >= GOOD[kind]
        reached.setdefault(kind, []).append(found)
    # unigram and set together, affix, bigram and position together, nulls.
    exact = reached.get("unigram", []) + reached.get("set", [])
    others = [each for kind in ("affix", "bigram", "position") for each in reached.get(kind, [])]
    assert np.mean(exact) >= 0.95
    assert np.mean(others) >= 0.9
    assert np.mean(reached["null"]) >= 0.95


def labelled(store: FeatureStore, feature_ids) -> list[FeatureLabel]:
    run = OfflineRun(Corpus(store), Sampling())
    return [run.label(feature_id, NOTHING, {}) for feature_id in feature_ids]


def test_planted_features_are_named_and_nulls_are_not(store):
    both, n = planted.with_nulls(store), store.d_sae
    chosen = [*range(0, n, 6), *range(n, 2 * n, 6)]
    kinds = [plant.kind for plant in planted.plants()] + ["null"] * n

    check(labelled(both, chosen), [kinds[i] for i in chosen])


JUST_BELOW = float(np.nextafter(0.6, 0))


@pytest.mark.parametrize(("accuracy", "labelled"), [(0.6, True), (JUST_BELOW, False)])
def test_a_rule_is_proposed_from_a_balanced_accuracy_of_0_6_on(store, monkeypatch, accuracy, labelled):
    run = OfflineRun(Corpus(store), Sampling())
    rule = fit(run.labeler.background, 0).rule
    monkeypatch.setattr(fitting, "fit", lambda background, feature_id: Fitted(rule, accuracy))

    found = run.labeler.proposal(next(gather(run.corpus, [0], sampling=run.sampling)))

    assert isinstance(found, Proposal if labelled else Abstention)


@pytest.mark.parametrize(("low", "status"), [(0.6, "ok"), (JUST_BELOW, "uninterpretable")])
def test_a_label_is_given_where_its_interval_on_held_out_text_begins_at_0_6_or_above(
    store, monkeypatch, low, status
):
    run, scored = OfflineRun(Corpus(store), Sampling()), fitting.score_rule

    def with_interval(*given, **options):
        scores = scored(*given, **options)
        return scores | {"rule": replace(scores["rule"], interval=(low, 0.99))}

    monkeypatch.setattr(fitting, "score_rule", with_interval)

    label = run.label(0, NOTHING, {})

    assert label.status == status
    assert ("does not hold on held-out texts" in label.description) is (status != "ok")


@pytest.mark.slow
def test_every_planted_feature_is_named_and_every_null_is_not(store):
    both, n = planted.with_nulls(store), store.d_sae
    kinds = [plant.kind for plant in planted.plants()] + ["null"] * n
    assert n >= 200

    labels = labelled(both, range(2 * n))

    check(labels, kinds)
    outcome = [kind != "null" for kind in kinds]
    assert calibration_error([label.confidence for label in labels], outcome) <= 0.1


def test_a_label_says_what_was_planted(labels):
    said = {label.feature_id: label.label for label in labels}

    for feature_id, plant in enumerate(planted.plants()):
        if feature_id not in said:
            continue
        if plant.kind == "unigram":
            assert said[feature_id] == f'token " {plant.words[0]}"'
        if plant.kind == "bigram":
            assert said[feature_id] == f'token " {plant.words[0]}" after token " {plant.after}"'
        if plant.kind == "position":
            assert said[feature_id] == f"position {plant.position} of the text"


def test_confidence_is_right_as_often_as_it_says(store):
    """Features that fire on most occurrences of a word and at random elsewhere, so that many are doubtful."""
    random = np.random.default_rng(5)
    own = planted.activations(store).toarray()[:, :40] > 0
    noisy = [
        (own[:, i % 40] & (random.random(store.n_tokens) < random.uniform(0.1, 1)))
        | (random.random(store.n_tokens) < random.choice([0.0, 0.01, 0.03]))
        for i in range(120)
    ]
    every = planted.rebuilt(store, np.stack(noisy, axis=1).astype(np.float32))
    corpus = Corpus(every)
    background = Background(corpus)
    stated, good = [], []
    for feature_id in range(120):
        rule = fit(background, feature_id).rule
        stated.append(score_rule(corpus, feature_id, rule, most=20)["rule"].confidence)
        good.append(score_rule(corpus, feature_id, rule, most=2000)["rule"].balanced_accuracy >= 0.75)

    assert 0.2 < np.mean(good) < 0.8
    assert calibration_error(stated, good) <= 0.1


@pytest.mark.parametrize("feature_id", [0, 50, 101, 130, 215])
def test_what_the_search_looks_at_is_what_the_rules_say(store, feature_id):
    background = Background(Corpus(store))
    drawn = draw(background.corpus, feature_id, "train", most=100, anywhere=100)

    for rule, holds in simple_rules(background, feature_id, drawn):
        assert np.array_equal(rule.holds(background.corpus.view, drawn.index), holds), rule


def test_a_rule_that_may_be_a_guess_on_other_texts_is_no_label(store):
    nulls = labelled(planted.with_nulls(store), range(store.d_sae, store.d_sae + 20))

    for label in nulls:
        assert (label.status, label.label, label.rule, label.confidence) == (
            "uninterpretable",
            None,
            None,
            0.0,
        )
        assert not label.scores or label.scores["rule"].interval[0] < 0.6
    assert any("does not hold on held-out texts" in label.description for label in nulls)


def test_another_features_rule_scores_like_a_guess(labels):
    scores = [label.scores["random_label"] for label in labels if label.scores]

    assert np.mean([score.balanced_accuracy for score in scores]) == pytest.approx(0.5, abs=0.1)
    assert np.mean([score.details["rank"] == 1 for score in scores]) >= 0.95


def test_a_topic_is_found_in_the_words_of_documents():
    random = np.random.default_rng(0)
    common = [f" {a}{b}word" for a in "bdfgk" for b in "aeiou"]
    about = [" court", " judge", " jury", " verdict"]
    documents, fires = [], []
    for i in range(160):
        is_about = i % 4 == 0
        words = [str(random.choice(common)) for _ in range(30)]
        if is_about:
            for place in random.choice(np.arange(1, 30), size=6, replace=False):
                words[place] = str(random.choice(about))
        documents.append(words)
        fires.append(np.full(30, float(is_about)))
    from tests.auto_interp.evidence.test_evidence import tiny

    store = tiny(documents, fires)
    rule = fit(Background(Corpus(store)), 0).rule

    assert "topic" in rule.words()
    assert {"court", "judge", "jury"} & set(rule.words().replace(",", "").split())
    assert score_rule(Corpus(store), 0, rule)["rule"].balanced_accuracy >= 0.95


def test_it_is_a_labeler_like_any_other(store):
    corpus = Corpus(store)
    shown = next(gather(corpus, [3]))

    proposal = asyncio.run(OfflineLabeler(corpus).propose(shown))

    assert isinstance(proposal, Proposal)
    assert proposal.label == f'token " {planted.plants()[3].words[0]}"'
    assert proposal.kind == "token"
    assert "Active at" in proposal.description


def test_the_rule_is_found_without_looking_at_the_test_half(store):
    """Whatever fires in test documents, the rule stays the same."""
    corpus = Corpus(store)
    values = planted.activations(store).tolil()
    elsewhere = np.flatnonzero(~corpus.token_in_train & store.counted)
    values[elsewhere[::5], 0] = 1.0
    changed = Corpus(planted.rebuilt(store, values.tocsc()))

    assert fit(Background(changed), 0) == fit(Background(corpus), 0)
