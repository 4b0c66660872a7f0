"""What promises the same bits gives them, however many cores were idle when each part of it was computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mlxterp.core.linux_blas import blas, cores
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import sample_texts
from mlxterp.sae import SAEConfig, StreamedActivations, build_store, cached_activations
from mlxterp.sae.feature_store.jobs import blocks
from tests.sae.feature_store.stores import random_sae, same
from tests.sae.training.test_train import SMALL, quietly, small
from tests.tiny_models import ByteTokenizer, tiny_module

POINT = "L1.resid_post"
WIDTH = 160  # products of this width are cut differently by one thread and by two


@pytest.fixture
def idle(monkeypatch):
    """Says how many cores are idle, from the next forward on: `idle(2)`."""
    monkeypatch.setattr(blas, "_LOOK_SECONDS", -1.0)

    def say(n: int) -> None:
        monkeypatch.setattr(cores, "idle", lambda: n)
        blas.use_idle_cores()

    yield say
    monkeypatch.undo()
    blas.use_idle_cores()


@pytest.fixture(scope="module")
def model() -> InterpretableModel:
    return InterpretableModel(tiny_module("llama", hidden_size=WIDTH), ByteTokenizer(), verify=False)


@pytest.fixture(scope="module")
def sae():
    return random_sae(301, d=WIDTH)


def texts(n: int = 24) -> list[str]:
    return [text.encode("ascii", "ignore").decode()[:150] for text in sample_texts(n)]


def test_a_store_is_the_same_with_one_idle_core_and_with_two(idle, model, sae):
    stores = []
    for n in (1, 2):
        idle(n)
        stores.append(build_store(model, sae, texts(), batch_tokens=300))

    assert same(*stores)


def test_a_store_that_goes_on_with_other_idle_cores_is_the_one_built_at_once(idle, model, sae, tmp_path):
    options = {"context": 50, "batch_tokens": 150}
    assert len(blocks(texts(), 150)) > 1
    idle(1)
    whole = build_store(model, sae, texts(), **options)

    class Killed(Exception):
        pass

    def stop(_: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        build_store(model, sae, texts(), path=tmp_path / "store", progress=stop, **options)
    idle(2)
    resumed = build_store(model, sae, texts(), path=tmp_path / "store", **options)

    assert same(whole, resumed)


def test_activations_are_the_same_with_one_idle_core_and_with_two(idle, model, tmp_path):
    found = []
    for n in (1, 2):
        idle(n)
        stream = StreamedActivations(model, texts(), POINT, block_tokens=500)
        kept = cached_activations(model, texts(), POINT, path=tmp_path / str(n))
        found.append((stream.sample(200, seed=0)[POINT], np.array(kept.arrays[POINT])))

    assert np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("variant", ["topk", "batchtopk"])
def test_a_training_that_goes_on_with_other_idle_cores_is_the_uninterrupted_one(idle, variant, tmp_path):
    config = replace(SMALL, variant=variant, d_sae=301, batch_tokens=300)
    source = small(tokens=15_000).source()
    idle(1)
    whole = quietly(source, config)
    steps: list[int] = []

    def stop() -> bool:
        steps.append(1)
        idle(1 + len(steps) % 2)
        return len(steps) == 20

    quietly(source, config, checkpoint=tmp_path, checkpoint_every=10, stop=stop)
    idle(2)
    resumed = quietly(source, config, checkpoint=tmp_path)

    assert resumed.sae.digest == whole.sae.digest


def test_a_training_on_streamed_activations_is_the_same_whatever_is_idle(idle, model):
    config = SAEConfig(d_sae=301, k=5, learning_rate=1e-3, batch_tokens=48)
    digests = []
    for n in (1, 2):
        idle(n)
        source = StreamedActivations(model, texts(), POINT, block_tokens=600)
        digests.append(quietly(source, config).sae.digest)

    assert digests[0] == digests[1]
