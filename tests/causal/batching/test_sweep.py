"""Sweeps give the numbers of a whole forward per row, on every family and for every kind of edit."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp.causal.batching import reference_engine, sweep
from mlxterp.causal.batching.base_run import BaseRun, CannotJoin, run_base
from mlxterp.causal.batching.sweep import Row, run_rows
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import add, replace, scale, zero
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import HookError, SlowSweep
from tests.causal.conftest import CLEAN, CORRUPTED, TOKENS, everything
from tests.rounding import backward_error
from tests.tiny_models import ByteTokenizer, tiny_module

POINTS = ("resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")


def available(model: InterpretableModel) -> list[HookPoint]:
    names = [name for name in POINTS if model.capabilities[name].available]
    return [HookPoint(name, layer) for name in names for layer in range(model.n_layers)]


def one_row_per_point(model: InterpretableModel) -> list[Row]:
    """Each hook point scaled at two positions, alternately in the two prompts."""
    points = available(model)
    return [Row(i % 2, (scale(point, 0.5, positions=[3, -1]),)) for i, point in enumerate(points)]


def test_a_sweep_equals_a_whole_forward_per_row_at_every_hook_point_of_every_family(any_family):
    rows = one_row_per_point(any_family)

    fast = run_rows(any_family, TOKENS, rows, everything)

    slow = run_rows(any_family, TOKENS, rows, everything, engine="reference")
    assert len(rows) >= 18
    assert fast == pytest.approx(slow, abs=1e-4 * np.abs(slow).max())


def test_blocks_before_a_rows_first_edit_are_skipped_by_the_reference_with_the_same_numbers(any_family):
    rows = [row for row in one_row_per_point(any_family) if row.joins_after(any_family.n_layers) >= 0]
    base = run_base(any_family, TOKENS)

    for row in rows:
        logits = reference_engine.run_from_join(any_family, base, [row])

        whole = reference_engine.run_whole(any_family, base, [row])
        assert logits == pytest.approx(whole, abs=1e-4 * float(np.abs(whole).max()))


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_rows_of_an_edited_run_have_its_edits_too(any_family, engine):
    """As in causal tracing: noise on the embedding of each draw, then one state restored."""
    own = tuple((add("embed", np.full((1, 1, 1), size), positions=[4]),) for size in (0.3, -0.5))
    edits = [(scale("L0.mlp_out", 0.5, positions=[5]), zero("L2.mlp_out", positions=[5]))]
    edits += [(scale("L2.resid_pre", 0.5),), (zero("L1.z", positions=-1),)]
    if not any_family.capabilities["mlp_out"].available:
        edits = edits[1:]
    rows = [Row(i, each) for each in edits for i in (0, 1)]

    values = run_rows(any_family, TOKENS, rows, everything, base_edits=own, engine=engine)

    together = [Row(row.base, (*own[row.base], *row.edits)) for row in rows]
    slow = run_rows(any_family, TOKENS, together, everything, engine="reference")
    assert values == pytest.approx(slow, abs=1e-4 * np.abs(slow).max())


def test_where_a_row_joins_follows_from_its_earliest_edit():
    row = Row(0, (scale("L2.z", 0.5, positions=[5, -1]), scale("L1.resid_post", 0.5, positions=-3)))

    assert row.joins_after(4) == 1
    assert row.first_position(11) == 5
    assert Row(0, (zero("L2.mlp_out"),)).first_position(11) == 0
    assert Row(0, (zero("embed", positions=4),)).joins_after(4) == -1
    assert Row(0, ()).joins_after(4) == 3
    assert Row(0, (zero("L0.z", positions=slice(-4, None)),)).first_position(11) == 7


def test_rows_with_edits_in_several_layers_equal_whole_forwards(tiny_llama):
    heads = [zero(HookPoint("z", layer), heads=[1, 2]) for layer in range(3)]
    rows = [
        Row(0, tuple(heads)),
        Row(1, tuple(heads)),
        Row(1, (add("L0.resid_pre", 0.3, positions=2), scale("L2.mlp_out", 2.0), heads[1])),
        Row(0, (add("embed", 0.1),)),
        Row(0, (scale("final_norm", 0.5, positions=-1),)),
        Row(1, (scale("model.layers.1.mlp.up_proj", 0.5), add("L1.resid_post", 1.0))),
        Row(0, ()),
    ]

    fast = run_rows(tiny_llama, TOKENS, rows, everything)

    assert fast == pytest.approx(run_rows(tiny_llama, TOKENS, rows, everything, engine="reference"), abs=1e-3)


def test_a_row_without_edits_is_its_prompt(tiny_llama):
    value = run_rows(tiny_llama, TOKENS, [Row(1, ())], everything)

    assert value[0] == pytest.approx(
        100.0 + everything(np.array(tiny_llama.logits(CORRUPTED))[:, -1], 0)[0], abs=1e-4
    )


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_small_batches_give_what_one_batch_gives_in_the_rows_order(tiny_llama, engine):
    rows = one_row_per_point(tiny_llama)
    seen: list[tuple[int, int]] = []

    small = run_rows(
        tiny_llama,
        TOKENS,
        rows,
        everything,
        engine=engine,
        token_budget=5 * TOKENS.shape[1],
        progress=lambda done, total: seen.append((done, total)),
    )

    assert small == pytest.approx(run_rows(tiny_llama, TOKENS, rows, everything, engine=engine), abs=1e-3)
    assert len(seen) >= 5
    assert seen == sorted(seen)
    assert seen[-1] == (len(rows), len(rows))


def test_answer_logits_of_a_batch_are_those_of_its_prompts_one_by_one(any_family):
    together = sweep.answer_logits(any_family, TOKENS)

    alone = [np.array(any_family.logits(prompt))[0, -1] for prompt in (CLEAN, CORRUPTED)]
    rounding = backward_error(any_family, lambda: sweep.answer_logits(any_family, TOKENS))
    assert together == pytest.approx(np.stack(alone), abs=rounding)


def test_captured_activations_are_those_of_a_trace_whatever_the_batch_size(tiny_llama):
    point = HookPoint("z", 1)

    seen = sweep.capture(tiny_llama, TOKENS, [point], token_budget=1)[point]

    def trace():
        return np.array(tiny_llama.trace(CORRUPTED, capture=["L1.z"])["L1.z"][0])

    assert np.array(seen[1]) == pytest.approx(trace(), abs=backward_error(tiny_llama, trace))


class _Block(nn.Module):
    """Keeps something per row from the block before, as models that share keys between layers do."""

    def __init__(self, width: int, memory: list[mx.array], *, strict: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self._memory, self._strict = memory, strict

    def __call__(self, h: mx.array) -> mx.array:
        if self._memory:
            before = self._memory[0]
            # Not strict: the first row's memory is spread over all rows, which is wrong without failing.
            h = h + (before if self._strict else before[:1])
        else:
            self._memory.append(h * 0.5)
        return h + self.linear(h)


class _Remembering(nn.Module):
    def __init__(self, *, strict: bool) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(128, 16)
        self._memory: list[mx.array] = []
        self.layers = [_Block(16, self._memory, strict=strict) for _ in range(3)]
        self.lm_head = nn.Linear(16, 128)

    def __call__(self, tokens: mx.array) -> mx.array:
        self._memory.clear()
        h = self.embed_tokens(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.lm_head(h)


def remembering() -> InterpretableModel:
    return InterpretableModel(_Remembering(strict=True), ByteTokenizer(), verify=False)


def test_an_architecture_whose_rows_cannot_join_falls_back_to_whole_forwards_with_a_warning():
    model, rows = (
        remembering(),
        [Row(0, (scale("L2.resid_pre", 0.5),)), Row(1, (scale("L1.resid_post", 2.0),))],
    )

    with pytest.warns(SlowSweep, match="every patch takes a whole forward"):
        values = run_rows(model, TOKENS, rows, everything)

    assert values == pytest.approx(run_rows(model, TOKENS, rows, everything, engine="reference"), abs=1e-5)


def test_an_unpatched_row_that_comes_out_wrong_is_noticed_and_whole_forwards_take_over(
    tiny_llama, monkeypatch
):
    rows = [Row(i, (scale("final_norm", 0.5, positions=-1), scale("L2.z", 0.5))) for i in (0, 1)]
    right = run_rows(tiny_llama, TOKENS, rows, everything, engine="reference")
    stream = BaseRun.stream
    monkeypatch.setattr(BaseRun, "stream", lambda base, block: stream(base, block) * 1.1)

    with pytest.raises(CannotJoin, match="an unpatched row came out"):
        reference_engine.run_from_join(tiny_llama, run_base(tiny_llama, TOKENS), rows)

    with pytest.warns(SlowSweep, match="every patch takes a whole forward"):
        assert run_rows(tiny_llama, TOKENS, rows, everything) == pytest.approx(right, abs=1e-5)


@pytest.mark.usefixtures("pinned_threads")
def test_a_model_is_what_it_was_after_an_edit_that_raises():
    model = InterpretableModel(tiny_module("llama"), ByteTokenizer())
    before = np.array(model.logits(CLEAN))
    classes = [type(module) for module in model.model.modules()]

    with pytest.raises(HookError, match="no position 40"):
        run_rows(model, TOKENS, [Row(0, (replace("L1.z", 0.0, positions=40),))], everything)

    assert [type(module) for module in model.model.modules()] == classes
    assert np.array_equal(np.array(model.logits(CLEAN)), before)


@pytest.mark.usefixtures("pinned_threads")
def test_sweeping_leaves_the_logits_bit_for_bit_what_they_were(any_family):
    before = np.array(any_family.logits(CLEAN))

    run_rows(any_family, TOKENS, one_row_per_point(any_family), everything)

    assert np.array_equal(np.array(any_family.logits(CLEAN)), before)
