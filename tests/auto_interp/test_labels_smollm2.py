"""Planted features on SmolLM2-135M's embeddings, in Jane Austen's words: labels, nulls, sensitivity."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mlxterp.auto_interp import auto_label_features, sensitivity_test
from mlxterp.auto_interp.confidence import calibration_error
from mlxterp.auto_interp.evidence.corpus import Corpus
from mlxterp.auto_interp.evidence.evidence import Sampling
from mlxterp.auto_interp.promoted_tokens import Promotion
from mlxterp.auto_interp.rules.fitting import OfflineRun
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import sample_texts
from mlxterp.sae.feature_store.build import build_store, store_from_arrays
from tests.auto_interp.planted import with_nulls
from tests.auto_interp.smollm2 import plant

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> InterpretableModel:
    return InterpretableModel("smollm2-135m")


@pytest.fixture(scope="module")
def planted(model):
    return plant(model, sample_texts(), words=120, sets=100)


def test_tokens_and_sets_are_named_and_nulls_are_not(model, planted):
    store = with_nulls(build_store(model, planted.sae, sample_texts()))
    run = OfflineRun(Corpus(store), Sampling())
    n = planted.sae.d_sae
    assert n >= 200

    labels = [run.label(feature_id, Promotion({}, {}), {}) for feature_id in range(2 * n)]

    enough = [label for label in labels[:n] if label.status != "too_few_examples"]
    accuracies = [label.scores["rule"].balanced_accuracy if label.scores else 0.5 for label in enough]
    assert len(enough) >= 0.9 * n
    assert np.mean(np.array(accuracies) >= 0.95) >= 0.95
    assert np.median(accuracies) >= 0.99
    assert np.mean([label.confidence < 0.2 for label in labels[n:]]) >= 0.95
    known = enough + [label for label in labels[n:] if label.status != "too_few_examples"]
    stated = [label.confidence for label in known]
    assert calibration_error(stated, [i < len(enough) for i in range(len(known))]) <= 0.1


def test_a_label_names_the_tokens_that_were_planted(model, planted):
    labels = auto_label_features(model, planted.sae, sample_texts(), llm=None)

    named = [label for label in labels[:120] if label.label is not None]
    right = [
        label.label.startswith("token ")
        and model.to_str_tokens([planted.tokens[label.feature_id][0]])[0]
        in [token for token, _ in label.top_tokens]
        for label in named
    ]
    assert len(named) >= 110
    assert np.mean(right) >= 0.95


def test_affixes_pairs_and_positions_in_real_text_are_named(model):
    ids = [model.to_tokens(text)[0] for text in sample_texts()]
    tokens, document = np.concatenate(ids), np.repeat(np.arange(len(ids)), [len(each) for each in ids])
    names = {int(token): model.to_string([token]) for token in np.unique(tokens)}
    bare = np.array([names[int(token)].strip().casefold() for token in tokens], dtype=object)
    position = np.concatenate([np.arange(len(each)) for each in ids]) % 128
    before = np.append(-1, tokens[:-1])
    pairs, counts = np.unique(np.stack([before, tokens])[:, position > 0], axis=1, return_counts=True)
    planted = [
        np.array([word.endswith(letters) and len(word) > len(letters) and word.isalpha() for word in bare])
        for letters in ("ing", "ed", "ly", "er", "s", "on", "al", "nt", "th", "le", "ness")
    ]
    planted += [
        np.array([word.startswith(letters) and len(word) > len(letters) for word in bare])
        for letters in ("re", "con", "un", "ha", "in", "th", "ma")
    ]
    planted += [
        (before == pairs[0, i]) & (tokens == pairs[1, i]) for i in np.argsort(-counts, kind="stable")[10:70]
    ]
    planted += [position == i for i in (1, 2, 3, 5, 8, 13)] + [position <= i for i in (2, 4, 6, 9)]
    store = store_from_arrays(tokens, document, np.stack(planted, axis=1).astype(np.float32), names)
    run = OfflineRun(Corpus(store), Sampling())

    labels = [run.label(feature_id, Promotion({}, {}), {}) for feature_id in range(store.d_sae)]

    accuracies = [label.scores["rule"].balanced_accuracy for label in labels if label.scores]
    assert len(accuracies) >= 0.95 * len(planted)
    assert np.mean(np.array(accuracies) >= 0.9) >= 0.9
    assert labels[0].label == "words ending in -ing"
    assert labels[3].kind == "affix"


def test_sensitivity_tells_true_labels_from_others(model, planted):
    texts = sample_texts()
    made, other = build_store(model, planted.sae, texts[::2]), build_store(model, planted.sae, texts[1::2])
    labels = [each for each in auto_label_features(model, planted.sae, store=made, llm=None) if each.label]
    swapped = [
        dataclasses.replace(label, feature_id=labels[i - 1].feature_id) for i, label in enumerate(labels)
    ]
    nonsense = [dataclasses.replace(label, label="purple elephants") for label in labels[:40]]

    true, false, never = (
        [sensitivity_test(model, planted.sae, each, store=other).sensitivity_passed for each in group]
        for group in (labels, swapped, nonsense)
    )

    assert len(labels) >= 100
    assert true.count(True) >= 0.95 * len(true)
    assert false.count(True) <= 0.05 * len(false)
    assert never.count(True) == 0
