"""Attention sinks within a text: activations of a hundred times the usual length are no evidence."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.auto_interp.evidence.corpus import Corpus
from mlxterp.auto_interp.evidence.evidence import gather
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import sample_texts
from mlxterp.errors import StoreError
from mlxterp.sae import bundled_sae
from mlxterp.sae.feature_store.build import build_store, cached_store
from mlxterp.sae.feature_store.store import load_store
from mlxterp.sae.sae import Relu
from mlxterp.sae.training.activations import StreamedActivations
from tests.sae.feature_store.stores import TEXTS, random_sae, same
from tests.tiny_models import ByteTokenizer, tiny_module

SINK = ord("z")
LONG = [text.replace("a", "az") for text in TEXTS] + ["zz top", "no sink in here"]


@pytest.fixture(scope="module")
def model() -> InterpretableModel:
    """One of its tokens has an embedding of a hundred times the usual length."""
    module = tiny_module("llama")
    embed = module.model.embed_tokens
    embed.weight = embed.weight * mx.where(mx.arange(embed.weight.shape[0]) == SINK, 100.0, 1.0)[:, None]
    return InterpretableModel(module, ByteTokenizer(), verify=False)


@pytest.fixture(scope="module")
def sae():
    return random_sae(point="embed", activation=Relu())


@pytest.fixture(scope="module")
def store(model, sae):
    return build_store(model, sae, LONG, context=16)


def norms(model, texts) -> np.ndarray:
    """[n] the length of each token's embedding, by a look at the table."""
    table = np.array(model.model.model.embed_tokens.weight, dtype=np.float64)
    return np.linalg.norm(table[np.concatenate([model.to_tokens(text)[0] for text in texts])], axis=1)


def test_tokens_far_longer_than_the_median_hold_nothing_and_all_others_what_they_held(model, sae, store):
    every = build_store(model, sae, LONG, context=16, outlier=math.inf)
    long = norms(model, LONG) > 10 * np.median(norms(model, LONG)[every.counted])

    assert (long == (every.tokens == SINK)).all()
    assert (store.counted == (every.counted & ~long)).all()
    for f in range(sae.d_sae):
        index, values = every.feature(f)
        assert store.feature(f).token_index.tolist() == index[~long[index]].tolist()
        assert store.feature(f).activation.tolist() == values[~long[index]].tolist()
    assert every.max_activation.max() > 20 * store.max_activation.max()


def test_the_facts_say_from_which_norm_on_and_how_many(model, store, tmp_path):
    counted = (store.position % 16 != 0) & (store.tokens != 0)

    assert store.facts["norm_limit"] == pytest.approx(10 * np.median(norms(model, LONG)[counted]), rel=1e-3)
    assert store.facts["norm_outliers"] == (counted & (store.tokens == SINK)).sum() >= 10
    assert "longer than 10 times the median" in store.facts["left_out"]
    assert load_store(store.save(tmp_path / "store")).facts == store.facts


def test_the_limit_depends_on_the_texts_only(model, sae, store):
    with ThreadPoolExecutor(3) as executor:
        spread = build_store(model, sae, LONG * 6, context=16, batch_tokens=16, executor=executor)
    alone = build_store(model, sae, LONG * 6, context=16, batch_tokens=16)

    assert same(spread, alone)
    assert spread.facts == alone.facts
    others = [
        build_store(model, sae, LONG[::-1], context=16),
        build_store(model, sae, LONG, context=16, batch_tokens=7),
        alone,
    ]
    assert {each.facts["norm_limit"] for each in others} == {store.facts["norm_limit"]}


def test_training_leaves_out_the_same_tokens(model, store):
    source = StreamedActivations(model, LONG, "embed", context=16)

    kept = sum(len(source.of_text(i)["embed"]) for i in range(len(LONG)))

    assert kept == store.n_counted


def test_the_limit_is_part_of_what_a_store_is(model, sae, store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLXTERP_CACHE", str(tmp_path / "cache"))
    kept = build_store(model, sae, LONG, context=16, path=tmp_path / "store")
    every = cached_store(model, sae, LONG, context=16, outlier=math.inf)

    assert kept.digest == store.digest != every.digest
    assert every.facts["norm_limit"] is None
    assert cached_store(model, sae, LONG, context=16).forwards > 0
    assert cached_store(model, sae, LONG, context=16, outlier=math.inf).forwards == 0
    with pytest.raises(StoreError, match="left_out differs"):
        build_store(model, sae, LONG, context=16, outlier=5.0, path=tmp_path / "store")
    with pytest.raises(StoreError, match=r"outlier=0\.5"):
        build_store(model, sae, LONG, outlier=0.5)


def test_where_most_activations_are_zero_nothing_is_too_long(sae):
    module = tiny_module("llama")
    module.model.embed_tokens.weight = (
        module.model.embed_tokens.weight
        * mx.where(mx.arange(module.model.embed_tokens.weight.shape[0]) == SINK, 1.0, 0.0)[:, None]
    )
    silent = InterpretableModel(module, ByteTokenizer(), verify=False)

    store = build_store(silent, sae, ["abcdz" * 3])

    assert store.counted.sum() == 14
    assert store.facts["norm_limit"] is None


@pytest.mark.slow
def test_on_smollm2_no_sink_is_the_peak_of_any_evidence():
    """A second line feed that begins a text is a sink: 24,000 long at layer 15, where 200 is usual."""
    model, sae = InterpretableModel("smollm2-135m"), bundled_sae()
    texts = [f"\n\n{text}" for text in sample_texts(24)]
    every, store = (build_store(model, sae, texts, outlier=outlier) for outlier in (math.inf, 10.0))
    sinks = np.flatnonzero(every.counted & ~store.counted)

    evidence = list(gather(Corpus(store), range(0, sae.d_sae, 8)))

    assert len(sinks) >= len(texts)
    assert store.position[sinks[:3]].tolist() == [1, 1, 1]
    assert every.max_activation.max() > 5000
    assert store.max_activation.max() < 200
    peaks = {
        (window.document, window.token_position)
        for each in evidence
        for half in (each.train_positives, each.train_negatives, each.test_positives, each.test_negatives)
        for window in half
    }
    assert len(peaks) > 500
    assert not peaks & {(int(store.document[i]), int(store.position[i])) for i in sinks}
