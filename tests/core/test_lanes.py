"""Parts of a batch side by side: the same numbers, whatever else runs, and BLAS as it was afterwards."""

from __future__ import annotations

import threading
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.core import blas, cores, lanes
from mlxterp.core.blas import Candidate
from mlxterp.core.model import InterpretableModel

linux_only = pytest.mark.skipif("sys.platform != 'linux'", reason="elsewhere MLX's own BLAS computes")
WEIGHTS = mx.random.normal((96, 96), key=mx.random.key(0))


def part(seed: int) -> dict[str, mx.array]:
    x = mx.random.normal((50, 96), key=mx.random.key(seed))
    for _ in range(4):
        x = mx.tanh(x @ WEIGHTS / 10)
    return {"x": x, "sum": x.sum(axis=-1)}


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that were set, of a BLAS that is ours."""
    used: list[int] = []
    monkeypatch.setattr(blas, "_installed", Candidate(blas.which(), {}.get, used.append))
    return used


@pytest.mark.parametrize("idle", [1, 2, 3, 8])
def test_parts_side_by_side_give_what_they_give_one_after_the_other(
    threads: list[int], monkeypatch: pytest.MonkeyPatch, idle: int
):
    monkeypatch.setattr(cores, "idle", lambda: idle)
    found = lanes.side_by_side([partial(part, seed) for seed in range(5)])

    for seed, each in enumerate(found):
        alone = part(seed)
        assert np.array_equal(np.array(each["x"]), np.array(alone["x"]))
        assert np.array_equal(np.array(each["sum"]), np.array(alone["sum"]))
    assert threads == [1, idle]


def test_each_part_has_a_stream_of_its_own_where_cores_are_idle(
    threads: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cores, "idle", lambda: 2)
    used: list[mx.Stream] = []

    def where() -> mx.array:
        used.append(mx.default_stream(mx.default_device()))
        return mx.zeros(1)

    lanes.side_by_side([where] * 4)

    assert used[0] == used[2]
    assert used[1] == used[3]
    assert used[0] != used[1]
    assert threads[0] == 1


def test_after_a_part_that_fails_the_number_of_threads_follows_the_idle_cores_again(
    threads: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cores, "idle", lambda: 2)

    def fails() -> mx.array:
        raise ValueError("no such row")

    with pytest.raises(ValueError, match="no such row"):
        lanes.side_by_side([partial(part, 0), fails])

    assert threads == [1, 2]


def test_the_users_number_of_threads_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blas, "_installed", Candidate(blas.which(), {}.get, None))
    monkeypatch.setattr(cores, "idle", lambda: pytest.fail("nobody asks how many cores are idle"))

    found = lanes.side_by_side([partial(part, seed) for seed in range(3)])

    assert np.array_equal(np.array(found[2]["x"]), np.array(part(2)["x"]))


def test_another_thread_has_streams_of_its_own(threads: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "idle", lambda: 2)
    found: list[list[float]] = []

    def work() -> None:
        parts = [lambda i=i: mx.arange(4.0) + i for i in range(2)]
        found.append([float(x.sum()) for x in lanes.side_by_side(parts)])

    work()
    other = threading.Thread(target=work)
    other.start()
    other.join()

    assert found == [[6.0, 10.0]] * 2
    assert threads[::2] == [1, 1]


@pytest.mark.parametrize(("n_rows", "tokens"), [(1, 5000), (7, 100), (32, 4096), (33, 4200), (3, 9000)])
def test_a_batch_is_cut_into_nearly_equal_parts_without_losing_a_row(n_rows: int, tokens: int):
    rows = list(range(n_rows))
    parts = lanes.cut(rows, tokens)

    assert [row for part in parts for row in part] == rows
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts) == max(1, min(n_rows, tokens // lanes.PART_TOKENS))


def test_a_model_runs_on_several_streams_at_once(
    tiny_llama: InterpretableModel, threads: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cores, "idle", lambda: 2)
    tokens = np.random.default_rng(0).integers(0, 50, (4, 12))

    def run(rows: np.ndarray) -> mx.array:
        return tiny_llama.run(mx.array(rows), capture=["L1.resid_post"])[0]

    found = lanes.side_by_side([partial(run, tokens[:2]), partial(run, tokens[2:])])

    whole = np.array(run(tokens))
    assert np.allclose(np.concatenate([np.array(x) for x in found]), whole, atol=1e-5)
    assert threads[0] == 1
