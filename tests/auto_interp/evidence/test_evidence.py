"""Evidence: windows where a feature fires, windows where it does not, and two halves that share nothing."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.auto_interp.evidence.corpus import Corpus
from mlxterp.auto_interp.evidence.evidence import FeatureEvidence, Sampling, gather
from mlxterp.auto_interp.evidence.token_draw import draw
from mlxterp.errors import LabelingError, StoreError
from mlxterp.sae.feature_store.build import store_from_arrays
from tests.auto_interp import planted

FEATURES = [0, 45, 100, 120, 210]


def evidence(store, feature_id=0, *, seed=0, **options) -> FeatureEvidence:
    return next(gather(Corpus(store, seed), [feature_id], **options))


def tiny(documents, fires, *, context=128):
    """A store of documents given as token texts, with one feature."""
    vocabulary = {text: i for i, text in enumerate(sorted({t for d in documents for t in d}))}
    tokens = [vocabulary[t] for d in documents for t in d]
    document = np.repeat(np.arange(len(documents)), [len(d) for d in documents])
    values = np.concatenate([np.asarray(f, dtype=np.float32) for f in fires])[:, None]
    names = {i: text for text, i in vocabulary.items()}
    return store_from_arrays(tokens, document, values, names, context=context)


@pytest.mark.parametrize("feature_id", FEATURES)
def test_the_halves_share_no_document(store, feature_id):
    found = evidence(store, feature_id)

    train = {w.document for w in (*found.train_positives, *found.train_negatives)}
    test = {w.document for w in (*found.test_positives, *found.test_negatives)}
    assert found.status == "ok"
    assert train
    assert test
    assert not train & test


@pytest.mark.parametrize("feature_id", FEATURES)
def test_a_positive_window_holds_its_peak_and_a_negative_one_nothing(store, feature_id):
    found = evidence(store, feature_id)

    for window in (*found.train_positives, *found.test_positives):
        assert window.activations[window.peak] > 0
        assert window.quantile is not None
        assert len(window.tokens) == len(window.activations) <= 32
    for window in (*found.train_negatives, *found.test_negatives):
        assert not any(window.activations)


@pytest.mark.parametrize("feature_id", FEATURES)
def test_activations_of_a_window_are_those_of_the_store(store, feature_id):
    index, values = store.feature(feature_id)
    known = dict(zip(index.tolist(), values.tolist(), strict=True))

    for window in evidence(store, feature_id).train_positives:
        begin = store.document_span(window.document).start + window.start
        assert window.tokens == store.str_tokens(begin, begin + len(window.tokens))
        assert window.activations == tuple(known.get(begin + i, 0.0) for i in range(len(window.tokens)))


def test_the_first_window_is_the_strongest_and_the_others_are_spread():
    random = np.random.default_rng(0)
    documents = [[f"w{random.integers(99)}" for _ in range(30)] for _ in range(200)]
    fires = [np.where(np.arange(30) == 15, random.random(), 0) for _ in range(200)]

    found = evidence(tiny(documents, fires))

    strengths = [w.activation_value for w in found.train_positives]
    assert strengths[:10] == sorted(strengths, reverse=True)[:10]
    assert {w.quantile for w in found.test_positives} == set(range(10))


def test_hard_negatives_have_the_features_own_tokens_where_it_does_not_fire(store):
    pair = next(i for i, plant in enumerate(planted.plants()) if plant.kind == "bigram")
    word = f" {planted.plants()[pair].words[0]}"

    negatives = evidence(store, pair).test_negatives

    assert sum(window.tokens[window.peak] == word for window in negatives) >= len(negatives) // 4


def test_a_text_that_occurs_often_is_on_one_side_and_shown_once():
    documents = [["a", "b", "c", "d", "e"]] * 50
    store = tiny(documents, [[0, 0, 1, 0, 0]] * 50)

    corpus = Corpus(store)

    assert len(set(corpus.in_train.tolist())) == 1
    assert evidence(store).status == "too_few_examples"


def test_the_first_token_of_a_row_is_no_evidence():
    documents = [["bos", *(f"w{i * 7 + j}" for j in range(5))] for i in range(60)]
    store = tiny(documents, [[9, 0, 0, 0, 0, 0]] * 60)

    assert evidence(store).status == "dead"


def test_a_window_stays_in_its_row():
    documents = [[f"w{i}x{j}" for j in range(40)] for i in range(60)]
    fires = [np.where(np.isin(np.arange(40), [9, 11]), 1.0, 0) for _ in range(60)]

    windows = evidence(tiny(documents, fires, context=10)).train_positives

    for window in windows:
        assert window.start % 10 == 0
        assert len(window.tokens) <= 10


def test_a_dead_and_a_rare_feature_have_a_status_and_no_test_windows(store):
    values = planted.activations(store)
    values = values.multiply(np.arange(values.shape[1]) > 0).tocsc()
    rare = planted.rebuilt(store, values)

    assert evidence(rare, 0).status == "dead"
    few = evidence(rare, 120, sampling=Sampling(min_examples=10_000))
    assert few.status == "too_few_examples"
    assert few.test_positives == few.test_negatives == ()


def test_what_is_drawn_for_a_feature_does_not_depend_on_the_others(store):
    alone = evidence(store, 45)

    among = list(gather(Corpus(store), [3, 45, 7]))[1]

    assert alone == among


def test_another_seed_splits_otherwise(store):
    halves = [Corpus(store, seed).in_train for seed in (0, 1)]

    assert not np.array_equal(*halves)
    assert 0.35 < halves[0].mean() < 0.65


def test_next_and_top_tokens_come_from_the_training_half(store):
    found = evidence(store, 0)

    assert found.top_tokens == ((f" {planted.plants()[0].words[0]}", pytest.approx(1.0)),)
    assert sum(share for _, share in found.next_tokens) <= 1.0 + 1e-9


def test_an_unknown_feature_and_a_store_without_evidence_are_refused(store):
    with pytest.raises(StoreError, match="There is no feature 9999"):
        evidence(store, 9999)
    with pytest.raises(LabelingError, match="none of whose tokens"):
        evidence(tiny([["a"], ["b"]], [[1], [1]]))


@pytest.mark.parametrize("half", ["train", "test"])
@pytest.mark.parametrize("feature_id", FEATURES)
def test_a_draw_is_right_about_where_the_feature_fires(store, feature_id, half):
    corpus = Corpus(store)
    truth = np.zeros(store.n_tokens, dtype=bool)
    truth[store.feature(feature_id).token_index] = True

    drawn = draw(corpus, feature_id, half, most=50)

    assert np.array_equal(truth[drawn.index], drawn.fires)
    assert drawn.fires.sum() == (~drawn.fires).sum()
    assert store.counted[drawn.index].all()
    assert (corpus.token_in_train[drawn.index] == (half == "train")).all()
    assert drawn.weights[drawn.fires].sum() == pytest.approx(0.5)
    assert drawn.weights[~drawn.fires].sum() == pytest.approx(-0.5)
