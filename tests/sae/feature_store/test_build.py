"""The feature store: what it holds equals a slow walk over the texts, however they are batched or spread."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SAEError, StoreError, UnknownHookPoint
from mlxterp.sae.feature_store.build import build_store, cached_store, store_from_arrays
from mlxterp.sae.feature_store.jobs import Portable, blocks
from mlxterp.sae.feature_store.store import FeatureStore, load_store
from mlxterp.sae.sae import SAE, Relu, TopK
from tests.sae.feature_store.stores import ARRAYS, TEXTS, random_sae, same
from tests.tiny_models import ByteTokenizer, tiny_module


def walk(model: InterpretableModel, sae: SAE, texts, context: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """(document, position, activations) of each token that counts, one text and one row at a time."""
    for document, text in enumerate(texts):
        ids = model.to_tokens(text)[0]
        for start in range(0, len(ids), context):
            row = ids[start : start + context]
            _, captured = model.run(row[None], capture=sae.point)
            acts = np.array(sae.encode(captured[sae.point][0].reshape(len(row), -1)))
            for i in range(1, len(row)):
                yield document, start + i, acts[i]


@pytest.fixture(scope="module")
def sae() -> SAE:
    return random_sae()


@pytest.fixture(scope="module")
def store(tiny_llama, sae) -> FeatureStore:
    return build_store(tiny_llama, sae, TEXTS, context=16)


@pytest.mark.parametrize("point", ["embed", "L0.resid_pre", "L1.resid_post", "L2.mlp_out", "L1.z"])
@pytest.mark.parametrize(("activation", "context"), [(TopK(5), 16), (Relu(), 64)])
def test_it_holds_what_a_walk_over_the_texts_finds(tiny_llama, point, activation, context):
    sae = random_sae(point=point, activation=activation)
    store = build_store(tiny_llama, sae, TEXTS, context=context, batch_tokens=40)

    found = np.zeros((store.n_tokens, sae.d_sae), dtype=np.float32)
    for f in range(sae.d_sae):
        index, values = store.feature(f)
        found[index, f] = values
    expected = np.zeros_like(found)
    for document, position, acts in walk(tiny_llama, sae, TEXTS, context):
        expected[store.document_span(document).start + position] = acts
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_numbers_per_feature_are_those_of_its_activations(store):
    for f in range(store.d_sae):
        index, values = store.feature(f)
        assert (np.diff(index.astype(int)) > 0).all()
        assert (values > 0).all()
        assert store.counts[f] == len(values)
        assert store.max_activation[f] == (values.max() if len(values) else 0)
        assert store.mean_activation[f] == pytest.approx(values.mean() if len(values) else 0)
    assert store.density == pytest.approx(store.counts / store.counted.sum())


def test_the_first_token_of_a_row_and_special_tokens_hold_nothing(tiny_llama, sae):
    texts = ["abc\0def", "x" * 40]

    store = build_store(tiny_llama, sae, texts, context=16)

    assert np.flatnonzero(~store.counted).tolist() == [0, 3, 7, 23, 39]
    assert store.counted[store.token_index].all()


def test_texts_beside_it_change_nothing_of_a_text(tiny_llama, sae):
    alone = build_store(tiny_llama, sae, [TEXTS[2]], context=64)
    among = build_store(tiny_llama, sae, TEXTS, context=64)

    span = among.document_span(2)
    for f in range(sae.d_sae):
        index, values = among.feature(f)
        own = (index >= span.start) & (index < span.stop)
        assert (index[own] - span.start).tolist() == alone.feature(f).token_index.tolist()
        np.testing.assert_allclose(values[own], alone.feature(f).activation, rtol=1e-4, atol=1e-4)


def test_the_store_tells_tokens_texts_and_windows(store):
    span = store.document_span(2)

    assert "".join(store.str_tokens(span.start, span.stop)) == TEXTS[2]
    assert store.str_token(ord("c")) == "c"
    assert store.window(span.start + 20, 9, 9) == slice(span.start + 16, span.start + 30)
    with pytest.raises(StoreError, match="does not occur"):
        store.str_token(127)
    with pytest.raises(StoreError, match="no feature 24"):
        store.feature(24)


@pytest.mark.parametrize(("d_sae", "batch_tokens"), [(4, 256), (64, 128)])
def test_the_number_of_forwards_follows_from_the_tokens_only(tiny_llama, d_sae, batch_tokens, monkeypatch):
    random, calls = np.random.default_rng(0), []
    run = InterpretableModel.run
    monkeypatch.setattr(
        InterpretableModel, "run", lambda self, *a, **k: calls.append(1) or run(self, *a, **k)
    )
    texts = ["".join(random.choice(list("abcdef "), size=random.integers(3, 90))) for _ in range(150)]

    store = build_store(
        tiny_llama, random_sae(d_sae, activation=Relu()), texts, context=32, batch_tokens=batch_tokens
    )

    assert len(calls) == store.forwards <= -(-store.n_tokens // batch_tokens)


def test_layers_behind_the_hook_point_are_not_computed():
    """With 40,000 logits a token, computing them would take 300 MB."""
    model = InterpretableModel(tiny_module("llama", vocab_size=40_000), ByteTokenizer(), verify=False)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()

    build_store(model, random_sae(point="L0.resid_post"), ["ab" * 60] * 16)

    assert mx.get_peak_memory() - before < 60e6


def test_a_kept_store_is_read_and_not_made_again(tiny_llama, sae, store, tmp_path):
    path = tmp_path / "deep" / "store"

    made = build_store(tiny_llama, sae, TEXTS, context=16, path=path)
    again = build_store(tiny_llama, sae, TEXTS, context=16, path=path)

    assert made.forwards >= 1
    assert again.forwards == 0
    assert same(made, store)
    assert same(again, store)
    assert same(load_store(path), store)
    assert [each.name for each in path.parent.iterdir()] == ["store"]


@pytest.mark.parametrize("change", ["texts", "sae", "context"])
def test_a_kept_store_of_something_else_is_neither_read_nor_overwritten(tiny_llama, sae, tmp_path, change):
    path = tmp_path / "store"
    build_store(tiny_llama, sae, TEXTS, context=16, path=path)
    kept = load_store(path)

    with pytest.raises(StoreError, match="was made of something else"):
        build_store(
            tiny_llama,
            random_sae(23) if change == "sae" else sae,
            TEXTS[1:] if change == "texts" else TEXTS,
            context=17 if change == "context" else 16,
            path=path,
        )

    assert same(load_store(path), kept)


def test_what_is_no_store_is_not_replaced(store, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(StoreError, match="is no feature store"):
        store.save(tmp_path)
    with pytest.raises(StoreError, match="no feature store at"):
        load_store(tmp_path)

    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_the_digest_tells_stores_apart(tiny_llama, sae, store):
    equal = build_store(tiny_llama, sae, TEXTS, context=16)
    others = [
        build_store(tiny_llama, sae, TEXTS[:-1], context=16),
        build_store(tiny_llama, sae, TEXTS, context=8),
    ]

    assert equal.digest == store.digest
    assert len({store.digest, *(each.digest for each in others)}) == 3


def test_arrays_make_the_same_store(store):
    values = np.zeros((store.n_tokens, store.d_sae), dtype=np.float32)
    for f in range(store.d_sae):
        values[store.feature(f).token_index, f] = store.feature(f).activation
    names = {int(i): text for i, text in zip(store.token_ids, store.strings, strict=True)}

    made = store_from_arrays(store.tokens, store.document, values, names, context=16)

    assert same(made, store)
    assert (store_from_arrays(store.tokens, store.document, -values, names, context=16).counts == 0).all()
    with pytest.raises(StoreError, match="ascending"):
        store_from_arrays([1, 2], [1, 0], values[:2], names)


@given(
    sizes=st.lists(st.integers(1, 4000), min_size=1, max_size=60),
    batch_tokens=st.sampled_from([16, 64, 256]),
)
@settings(max_examples=60, deadline=None)
def test_blocks_are_all_documents_in_order(sizes, batch_tokens):
    texts = ["x" * size for size in sizes]

    found = blocks(texts, batch_tokens)

    assert [i for each in found for i in each] == list(range(len(texts)))
    assert all(sum(sizes[i] for i in each) >= 16 * batch_tokens for each in found[:-1])


def test_threads_make_the_same_store(tiny_llama, sae):
    texts = TEXTS * 8
    alone = build_store(tiny_llama, sae, texts, context=16, batch_tokens=16)
    assert len(blocks(texts, 16)) > 3

    with ThreadPoolExecutor(3) as executor:
        spread = build_store(tiny_llama, sae, texts, context=16, batch_tokens=16, executor=executor)

    assert same(spread, alone)


def test_what_is_sent_to_a_worker_is_the_model_and_the_sae():
    import pickle

    model = InterpretableModel("toy-induction", verify=False)
    portable = pickle.loads(pickle.dumps(Portable.of(model, random_sae(activation=Relu()))))

    assert portable.module == b""
    assert portable.model().digest == model.digest
    assert portable.own_sae.digest == random_sae(activation=Relu()).digest


def test_a_worker_that_loads_other_weights_says_so():
    model = InterpretableModel("toy-induction", verify=False)
    model.model.lm_head.weight = model.model.lm_head.weight * 2

    wrong = Portable.of(InterpretableModel("toy-induction", verify=False), random_sae())
    with pytest.raises(StoreError, match="other weights"):
        replace(wrong, digest=model.digest + "0").model()


def test_what_makes_no_sense_is_refused(tiny_llama, sae):
    with pytest.raises(StoreError, match="no texts"):
        build_store(tiny_llama, sae, [])
    with pytest.raises(StoreError, match="one string"):
        build_store(tiny_llama, sae, "abc")
    with pytest.raises(StoreError, match=r"texts\[1\] is empty"):
        build_store(tiny_llama, sae, ["abc", ""])
    with pytest.raises(StoreError, match="a row needs two"):
        build_store(tiny_llama, sae, TEXTS, context=1)
    with pytest.raises(UnknownHookPoint, match="no layer 7"):
        build_store(tiny_llama, random_sae(point="L7.resid_post"), TEXTS)
    wider = InterpretableModel(tiny_module("llama", hidden_size=48), ByteTokenizer(), verify=False)
    with pytest.raises(SAEError, match="reads d_in"):
        build_store(wider, sae, TEXTS)


def test_a_store_in_the_cache_is_read_again_and_other_texts_have_their_own(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("MLXTERP_CACHE", str(tmp_path))
    sae = random_sae()
    first = cached_store(tiny_llama, sae, TEXTS)

    again, other = cached_store(tiny_llama, sae, TEXTS), cached_store(tiny_llama, sae, TEXTS[:3])

    assert first.forwards > 0
    assert again.forwards == 0
    assert other.forwards > 0
    for name in ARRAYS:
        assert np.array_equal(getattr(first, name), getattr(again, name)), name


def test_texts_that_begin_with_another_token_have_a_store_of_their_own(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("MLXTERP_CACHE", str(tmp_path))
    sae = random_sae()
    begins = InterpretableModel(tiny_llama.model, tiny_llama.tokenizer, prepend_bos="a", verify=False)
    cached_store(tiny_llama, sae, TEXTS)

    own = cached_store(begins, sae, TEXTS)

    assert own.forwards > 0
    assert same(own, build_store(begins, sae, TEXTS))


def test_a_crash_while_a_store_is_replaced_leaves_the_old_one_or_the_new_one(
    tiny_llama, tmp_path, monkeypatch
):
    store = build_store(tiny_llama, random_sae(), TEXTS)
    changed = replace(store, activation=2 * store.activation)
    place = store.save(tmp_path / "store")
    removed = shutil.rmtree

    def remove_then_die(path, *arguments, **options):
        removed(path, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", remove_then_die)
    with pytest.raises(KeyboardInterrupt):
        changed.save(place)

    assert np.array_equal(load_store(place).activation, changed.activation)


def test_a_store_saved_twice_is_one_store(tiny_llama, tmp_path):
    store = build_store(tiny_llama, random_sae(), TEXTS)

    again = load_store(store.save(tmp_path / "store"))
    again.save(tmp_path / "store")

    assert load_store(tmp_path / "store").digest == again.digest == store.digest
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_store_of_the_same_facts_and_other_activations_replaces_the_one_there(tiny_llama, tmp_path):
    store = build_store(tiny_llama, random_sae(), TEXTS)
    store.save(tmp_path / "store")

    replace(store, activation=2 * store.activation).save(tmp_path / "store")

    assert np.array_equal(load_store(tmp_path / "store").activation, 2 * store.activation)
