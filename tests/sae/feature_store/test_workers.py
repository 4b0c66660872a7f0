"""Stores and labels over processes and over a dask cluster: the same bit for bit as in one process."""

from __future__ import annotations

from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from mlxterp.auto_interp import auto_label_features
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import TokenError
from mlxterp.sae.feature_store.build import build_store
from mlxterp.sae.feature_store.jobs import blocks
from tests.auto_interp import planted
from tests.sae.feature_store.stores import TEXTS, random_sae, same
from tests.tiny_models import ByteTokenizer, tiny_module

BATCH = 512
FEATURES = range(0, 226, 2)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone():
    """The store and the labels of one process."""
    model, sae = planted.toy(), planted.planted_sae()
    texts = planted.texts(300)
    assert len(blocks(texts, BATCH)) >= 8
    store = build_store(model, sae, texts, batch_tokens=BATCH)
    return (
        model,
        sae,
        texts,
        store,
        auto_label_features(model, sae, store=store, feature_ids=FEATURES, llm=None),
    )


def check(alone, executor: Executor, path) -> None:
    model, sae, texts, store, labels = alone
    spread = build_store(model, sae, texts, batch_tokens=BATCH, executor=executor)
    assert same(spread, store)
    assert spread.forwards == store.forwards
    given = auto_label_features(model, sae, store=spread, feature_ids=FEATURES, llm=None, executor=executor)
    assert given == labels
    kept = build_store(model, sae, texts, batch_tokens=BATCH, path=path)
    by_path = auto_label_features(model, sae, store=kept, feature_ids=FEATURES, llm=None, executor=executor)
    assert by_path == labels


@pytest.mark.parametrize("workers", [1, 4])
def test_spawned_processes(alone, workers, tmp_path):
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        check(alone, executor, tmp_path / "store")


@pytest.mark.parametrize("workers", [1, 4])
def test_a_dask_cluster(alone, workers, tmp_path):
    distributed = pytest.importorskip("distributed", reason="pip install 'mlxterp[distributed]'")

    cluster = distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=None,
        local_directory=str(tmp_path / "dask"),
    )
    with cluster, distributed.Client(cluster) as client:
        check(alone, client.get_executor(), tmp_path / "store")


def test_a_module_of_ones_own_is_sent_along():
    model = InterpretableModel(tiny_module("qwen2"), ByteTokenizer())
    sae, texts = random_sae(), TEXTS * 8
    alone = build_store(model, sae, texts, context=16, batch_tokens=16)

    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        spread = build_store(model, sae, texts, context=16, batch_tokens=16, executor=executor)

    assert same(spread, alone)


def test_a_failure_in_a_worker_is_raised_here(alone):
    model, sae, *_ = alone

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor, pytest.raises(TokenError):
        build_store(model, sae, ["words that it does not know"], executor=executor)
