"""A model is used by one run at a time, and what a run gave can be read anywhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.causal import activation_patching
from mlxterp.core.interventions import edit, zero
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import HookError, TokenError
from tests.tiny_models import ByteTokenizer, tiny_module

IDS = [3, 14, 15, 9, 2, 6]


def in_another_thread(function: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function).result()


def test_a_plain_run_never_gets_the_interventions_of_another_thread(tiny_llama):
    plain = np.array(tiny_llama.logits(IDS))
    start = threading.Barrier(2)

    def edited() -> None:
        start.wait()
        for _ in range(60):
            tiny_llama.logits(IDS, interventions=[zero("L0.attn_out"), zero("L1.pattern")])

    def untouched() -> list[bool]:
        start.wait()
        return [np.array_equal(np.array(tiny_llama.logits(IDS)), plain) for _ in range(60)]

    with ThreadPoolExecutor(2) as threads:
        other = threads.submit(edited)
        same = threads.submit(untouched).result()
        other.result()

    assert all(same)


def test_a_plain_run_inside_an_edit_of_the_same_model_is_refused(tiny_llama):
    def with_the_model(x: mx.array) -> mx.array:
        return x + tiny_llama.logits(IDS)[..., :1]

    with pytest.raises(HookError, match="from inside one of its own runs"):
        tiny_llama.logits(IDS, interventions=[edit("L1.mlp_out", with_the_model)])

    assert np.isfinite(np.array(tiny_llama.logits(IDS))).all()


def test_so_is_a_call_of_its_module(tiny_llama):
    def with_the_module(x: mx.array) -> mx.array:
        return x + tiny_llama.model(mx.array([IDS]))[..., :1]

    with pytest.raises(HookError, match="from inside one of its own runs"):
        tiny_llama.logits(IDS, interventions=[edit("L1.mlp_out", with_the_module)])

    assert np.isfinite(np.array(tiny_llama.model(mx.array([IDS])))).all()


def test_a_call_of_the_module_in_another_thread_gets_no_intervention(tiny_llama):
    plain, seen = np.array(tiny_llama.model(mx.array([IDS]))), []

    def call_elsewhere(x: mx.array) -> mx.array:
        seen.append(in_another_thread(lambda: np.array(tiny_llama.model(mx.array([IDS])))))
        return x

    tiny_llama.logits(IDS, interventions=[zero("L0.mlp_out"), edit("L1.mlp_out", call_elsewhere)])

    assert np.array_equal(seen[0], plain)


def test_an_edit_may_run_another_model_of_the_same_family(tiny_llama):
    other = InterpretableModel(tiny_module("llama", seed=5), ByteTokenizer())
    expected, seen = np.array(other.logits(IDS)), []

    def with_the_other(x: mx.array) -> mx.array:
        seen.append(np.array(other.logits(IDS)))
        return x

    trace = tiny_llama.trace(
        IDS, capture=["L1.pattern"], interventions=[edit("L1.v", with_the_other), zero("L1.pattern")]
    )

    assert np.array_equal(seen[0], expected)
    assert not np.array(trace["L1.pattern"]).any()


def test_a_trace_is_readable_in_another_thread(tiny_llama):
    trace = tiny_llama.trace(IDS, capture="all")

    def read() -> list[np.ndarray]:
        return [np.array(x) for x in (trace.logits, *trace.activations.values())]

    assert all(np.isfinite(x).all() for x in in_another_thread(read))


@pytest.mark.parametrize(
    "scaling",
    [
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ],
    ids=["llama3", "yarn"],
)
def test_the_first_forward_may_come_from_another_thread(scaling):
    # verify=False is what a kept self-check amounts to: no forward at load.
    model = InterpretableModel(tiny_module("llama", rope_scaling=scaling), ByteTokenizer(), verify=False)

    logits = in_another_thread(lambda: np.array(model.logits(IDS)))

    assert np.isfinite(logits).all()


LONG = [1 + i % 60 for i in range(70)]


@pytest.fixture(scope="module")
def gpt2() -> InterpretableModel:
    """Learned positions for 64 tokens."""
    return InterpretableModel(tiny_module("gpt2", n_positions=64, n_ctx=64), ByteTokenizer())


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m.logits(LONG),
        lambda m: m.trace(LONG, capture=["L0.z"]),
        lambda m: m.generate(LONG[:60], max_new_tokens=10, stop_at_end=False),
        lambda m: activation_patching(m, LONG, [2, *LONG[1:]], component="resid_pre", answer=3, foil=4),
        lambda m: activation_patching(m, LONG, [2, *LONG[1:]], component="z", answer=3, foil=4),
    ],
    ids=["logits", "trace", "generate", "sweep", "heads"],
)
def test_more_tokens_than_learned_positions_are_refused(gpt2, use):
    with pytest.raises(TokenError, match="this model has 64 learned positions"):
        use(gpt2)


def test_as_many_tokens_as_learned_positions_are_computed(gpt2):
    assert gpt2.logits(LONG[:64]).shape[1] == 64
    assert len(gpt2.generate(LONG[:60], max_new_tokens=5, stop_at_end=False).tokens) == 5


def test_a_sweep_in_one_thread_leaves_plain_runs_of_another_alone(tiny_llama):
    plain = np.array(tiny_llama.logits(IDS))
    start = threading.Barrier(2)

    def sweeps() -> None:
        start.wait()
        for _ in range(4):
            activation_patching(
                tiny_llama, IDS, [8, *IDS[1:]], component="z", by="layer_head", answer=5, foil=7
            )

    def untouched() -> list[bool]:
        start.wait()
        return [np.array_equal(np.array(tiny_llama.logits(IDS)), plain) for _ in range(80)]

    with ThreadPoolExecutor(2) as threads:
        other = threads.submit(sweeps)
        same = threads.submit(untouched).result()
        other.result()

    assert all(same)


def test_an_edit_function_of_a_sweep_cannot_run_the_model(tiny_llama):
    from mlxterp.causal.batching.sweep import Row, run_rows

    def with_the_model(x: mx.array) -> mx.array:
        return x + tiny_llama.logits(IDS)[..., :1].mean()

    rows = [Row(0, (edit("L1.mlp_out", with_the_model, positions=-1),))]

    with pytest.raises(HookError, match="from inside one of its own runs"):
        run_rows(tiny_llama, np.array([IDS]), rows, lambda logits, _: logits[:, 0])
