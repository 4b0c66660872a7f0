"""Which texts an SAE was trained on: told from its record, and said in every evaluation of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mlxterp import InterpretableModel
from mlxterp.auto_interp import auto_label_features, labels_result
from mlxterp.datasets import documentation_texts, sample_texts
from mlxterp.errors import SAEError
from mlxterp.sae import (
    SAEConfig,
    StreamedActivations,
    build_store,
    bundled_sae,
    load_sae,
    sae_quality,
    save_sae,
    train_sae,
)
from mlxterp.sae.training_texts import MOST_KEPT, record, seen_in_training


def metadata_of(texts):
    return {"training": {"source": {"passages": record(texts)}}}


def words(n, seed):
    return " ".join(f"w{i}" for i in np.random.default_rng(seed).integers(500, size=n))


def test_texts_of_the_training_are_told_from_others_however_they_are_cut_and_set():
    trained, other = [words(400, i) for i in range(50)], [words(400, i + 100) for i in range(50)]
    metadata = metadata_of(trained)
    cut = [" ".join(trained[0].upper().split()[100:150]).replace(" ", ",\n\n")]

    assert seen_in_training(metadata, trained) == 1.0
    assert seen_in_training(metadata, other) == 0.0
    assert seen_in_training(metadata, cut) == 1.0
    assert seen_in_training(metadata, ["w1 w2 w3"]) == 0.0
    assert seen_in_training(metadata_of(["Three short words."]), ["three short words"]) == 1.0


def test_a_share_is_estimated_from_a_sample_of_a_long_training():
    trained = [words(1_000, i) for i in range(100)]
    mixed = trained[:30] + [words(1_000, i + 500) for i in range(70)]
    kept = record(trained)

    assert kept["one_in"] >= 4
    assert len(kept["hashes"]) <= MOST_KEPT * 4 * 4 / 3 + 4
    assert seen_in_training({"training": {"source": {"passages": kept}}}, mixed) == pytest.approx(
        0.3, abs=0.02
    )


def test_without_a_record_nothing_is_claimed_and_a_broken_one_is_refused():
    assert seen_in_training({"format": "SAELens"}, ["any text"]) is None
    broken = {"training": {"source": {"passages": {"words": 13, "one_in": 1, "hashes": "?"}}}}
    with pytest.raises(SAEError, match="cannot be read"):
        seen_in_training(broken, ["any text"])


def test_the_sae_that_ships_knows_its_training_texts():
    metadata = bundled_sae().metadata
    some = sample_texts()

    assert 0.4 < seen_in_training(metadata, some) < 0.5  # the novels' openings, in and out of its training
    assert seen_in_training(metadata, [some[0]]) == 1.0
    assert seen_in_training(metadata, documentation_texts(200)) == 0.0


@pytest.fixture(scope="module")
def trained():
    """A small SAE, the model, and the texts it was trained on and others."""
    model = InterpretableModel("toy-induction")
    rng = np.random.default_rng(0)
    texts, others = (
        [" ".join(rng.choice(model.tokenizer.words, size=24)) for _ in range(n)] for n in (700, 60)
    )
    config = SAEConfig(d_sae=64, k=3, variant="topk", epochs=8, learning_rate=1e-2)
    sae = train_sae(StreamedActivations(model, texts, "L0.resid_post"), config).sae
    return model, sae, texts, others


def test_an_evaluation_on_the_training_is_called_that(trained):
    model, sae, texts, others = trained

    own, other = (sae_quality(model, sae, each, losses=False) for each in (texts[:60], others))
    silent = sae_quality(model, dataclasses.replace(sae, metadata={}), others, losses=False)

    assert (own.seen, other.seen, silent.seen) == (1.0, 0.0, None)
    assert "The SAE was trained on all of these texts" in own.summary()
    assert "The SAE was not trained on these texts." in other.summary()
    assert "is not recorded" in silent.summary()


def test_stores_and_labels_say_whether_their_texts_were_of_the_training(trained):
    model, sae, texts, others = trained

    own, other = (build_store(model, sae, each) for each in (texts[:200], others))
    ids = build_store(model, sae, [model.to_tokens(text)[0] for text in texts[:20]])
    labels = labels_result(auto_label_features(model, sae, store=own, top_k_features=3, llm=None))

    assert [each.facts["seen_in_training"] for each in (own, other, ids)] == [1.0, 0.0, 1.0]
    assert "The SAE was trained on all of these texts" in labels.summary()


def test_the_record_is_saved_with_the_sae(trained, tmp_path):
    _, sae, texts, _ = trained

    save_sae(sae, tmp_path / "sae")

    assert seen_in_training(load_sae(tmp_path / "sae").metadata, texts) == 1.0
