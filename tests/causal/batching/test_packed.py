"""A packed pass gives the numbers of a whole forward per row, checks itself, and reads only what is asked."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp.causal import activation_patching
from mlxterp.causal.batching import packed, packed_blocks
from mlxterp.causal.batching.base_run import CannotJoin, run_base
from mlxterp.causal.batching.packed_blocks import calls_attention_function
from mlxterp.causal.batching.sweep import Row, run_prompts, run_rows
from mlxterp.causal.patching.activation_patching import activation_patchings
from mlxterp.causal.prompts.pair import prepare
from mlxterp.core import forward as engine
from mlxterp.core.hook_points import HookPoint, axes
from mlxterp.core.interventions import add, clamp, edit, mean, noise, replace, scale, zero
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import CapabilityUnavailable, HookError, SweepError
from tests.causal.conftest import CLEAN, PAIR, PAIRS, TOKENS, everything
from tests.rounding import backward_error
from tests.tiny_models import ByteTokenizer, tiny_module


def rows_of(model: InterpretableModel) -> list[Row]:
    """At every hook point of a pass: one and several positions, one head, whole suffixes, both prompts."""
    rows = []
    for name in packed.POINTS:
        for layer in range(model.n_layers if model.capabilities[name].available else 0):
            point, heads = HookPoint(name, layer), 1 if name == "z" else None
            value = np.full((1, 2, 1, 1) if name == "z" else (1, 2, 1), 0.3)
            rows += [
                Row(0, (scale(point, 0.5, positions=[3, -1]),)),
                Row(1, (replace(point, value, positions=(5, 7), heads=heads),)),
                Row(1, (add(point, 0.3, positions=slice(6, None)),)),
                Row(0, (scale(point, 2.0, positions=10), add(point, -0.1, positions=[9]))),
            ]
    return rows


def run(model: InterpretableModel, rows: list[Row], vocabulary=None) -> np.ndarray:
    return packed.run(model, run_base(model, TOKENS, packed.needed(rows)), rows, vocabulary)


def test_a_packed_pass_equals_a_whole_forward_per_row_on_every_family(any_family):
    rows = rows_of(any_family)
    values = everything(run(any_family, rows), np.array([row.base for row in rows]))

    slow = run_rows(any_family, TOKENS, rows, everything, engine="reference")
    assert len(rows) >= 60
    assert values == pytest.approx(slow, abs=1e-4 * np.abs(slow).max())


def whole_positions(point: HookPoint) -> np.ndarray:
    """A constant with one entry for each position, whichever axis positions are on."""
    shape = [1] * axes(point).ndim
    shape[axes(point).pos] = TOKENS.shape[1]
    return np.full(shape, 0.2)


def rows_with_several_edits(model: InterpretableModel) -> list[Row]:
    """Heads and components of every layer at once, and drawn edits at two to four hook points."""
    rng = np.random.default_rng(0)
    inside = calls_attention_function(model.architecture)  # not gemma2, whose attention is its own
    names = (*packed.POINTS, *packed.IN_ATTENTION) if inside else packed.POINTS
    have = [name for name in names if model.capabilities[name].available]
    heads = tuple(zero(HookPoint("z", layer), heads=[1, 2]) for layer in range(model.n_layers))
    points = [HookPoint(name, layer) for layer in range(model.n_layers) for name in have]
    rows = [Row(0, heads), Row(1, heads), Row(1, heads[::-1])]
    rows.append(Row(0, tuple(mean(p, whole_positions(p)) for p in points)))
    while len(rows) < 40:
        edits = []
        for _ in range(rng.integers(2, 5)):
            point = HookPoint(have[rng.integers(len(have))], int(rng.integers(model.n_layers)))
            positions = [None, [3, -1], slice(6, None), 10, 5][rng.integers(5)]
            make = [lambda p, **k: scale(p, 0.5, **k), lambda p, **k: clamp(p, -0.2, 0.2, **k)][
                rng.integers(2)
            ]
            edits.append(make(point, positions=positions))
        if len({e.point for e in edits}) > 1:
            rows.append(Row(int(rng.integers(2)), tuple(edits)))
    return rows


def test_rows_edited_in_flight_equal_whole_forwards_on_every_family(any_family):
    rows = rows_with_several_edits(any_family)
    assert all(packed.fits(any_family.architecture, row) for row in rows)

    def values():
        return everything(run(any_family, rows), np.array([row.base for row in rows]))

    slow = run_rows(any_family, TOKENS, rows, everything, engine="reference")
    assert values() == pytest.approx(slow, abs=backward_error(any_family, values))


def test_what_needs_to_see_all_of_a_row_at_once_takes_another_engine(tiny_llama):
    key = mx.random.key(3)
    whole = [
        Row(0, (noise("L0.z", 0.5, key=key), zero("L2.z", heads=0))),
        Row(1, (edit("L2.attn_out", lambda x: x - x.mean(axis=1, keepdims=True)), zero("L0.mlp_out"))),
        Row(1, (edit("L1.k", lambda x: x - x.mean(axis=1, keepdims=True)),)),
        Row(0, (scale("model.layers.1.mlp.up_proj", 0.5), zero("L2.z"))),
    ]

    assert not any(packed.fits(tiny_llama.architecture, row) for row in whole)
    values = run_rows(tiny_llama, TOKENS, whole, everything)
    assert values == pytest.approx(
        run_rows(tiny_llama, TOKENS, whole, everything, engine="reference"), abs=1e-3
    )


def test_a_later_edit_at_a_position_that_does_not_exist_is_refused(tiny_llama):
    for positions in ([11], [-12], slice(20, None)):
        row = Row(0, (zero("L0.z"), zero("L2.z", positions=positions)))
        with pytest.raises(HookError):
            run_rows(tiny_llama, TOKENS, [row], everything)


def test_an_edit_in_flight_of_a_part_that_the_model_does_not_have_is_refused(toy_model):
    tokens = np.array([[1, 2, 3, 1]])

    with pytest.raises(CapabilityUnavailable, match="no 'mlp_out'"):
        run_rows(toy_model, tokens, [Row(0, (zero("L0.z"), zero("L1.mlp_out")))], everything)


def test_windows_of_attention_reach_back_into_the_prompt():
    """gemma3's sliding window of 4 ends before the first token of a row that starts at position 8."""
    model = InterpretableModel(tiny_module("gemma3"), ByteTokenizer())
    rows = [Row(0, (scale(f"L{la}.mlp_out", 0.5, positions=[8, 9]),)) for la in range(3)]

    slow = run_rows(model, TOKENS, rows, everything, engine="reference")
    assert everything(run(model, rows), np.zeros(3)) == pytest.approx(slow, abs=1e-4 * np.abs(slow).max())


def test_quantised_weights_give_what_their_whole_forwards_give():
    module = tiny_module("llama", hidden_size=64, intermediate_size=64, head_dim=16)
    nn.quantize(module, group_size=32, bits=4)
    model = InterpretableModel(module, ByteTokenizer())
    rows = rows_of(model)

    slow = run_rows(model, TOKENS, rows, everything, engine="reference")
    values = everything(run(model, rows), np.array([row.base for row in rows]))
    assert values == pytest.approx(slow, abs=1e-4 * np.abs(slow).max())


def test_types_of_16_bits_stay_on_the_fast_engines():
    model = InterpretableModel(tiny_module("llama"), ByteTokenizer(), dtype=mx.bfloat16)
    rows = [Row(i % 2, (scale(f"L{i % 3}.z", 0.5, positions=[4 + i]),)) for i in range(6)]

    values = everything(run(model, rows), np.array([row.base for row in rows]))

    slow = run_rows(model, TOKENS, rows, everything, engine="reference")
    assert values == pytest.approx(slow, abs=4e-2 * np.abs(slow).max())


def test_long_prompts_are_swept_within_the_budget_of_tokens(tiny_llama):
    tokens = np.array([[(7 * i + i * i) % 128 for i in range(512)]])
    rows = [Row(0, (zero(f"L{la}.z", positions=[p], heads=1),)) for la in (0, 2) for p in (0, 200, 511)]

    fast = run_rows(tiny_llama, tokens, rows, everything, token_budget=1024)

    slow = run_rows(tiny_llama, tokens, rows, everything, engine="reference")
    assert fast == pytest.approx(slow, abs=1e-4 * np.abs(slow).max())


def test_any_function_of_an_activation_can_be_an_edit(tiny_llama):
    rows = [
        Row(0, (edit("L1.z", lambda z: mx.tanh(z) * 3, positions=[6], heads=2),)),
        Row(1, (noise("L0.resid_pre", 0.5, key=mx.random.key(3), positions=[8, 4]),)),
        Row(1, (zero("L2.attn_out"),)),
    ]

    slow = run_rows(tiny_llama, TOKENS, rows, everything, engine="reference")
    assert everything(run(tiny_llama, rows), np.array([0, 1, 1])) == pytest.approx(slow, abs=1e-3)


def test_only_the_logits_that_are_read_are_computed_and_they_are_the_same(any_family):
    rows, vocabulary = rows_of(any_family), np.array([3, 77, 120])

    chosen = run(any_family, rows, vocabulary)

    assert chosen.shape == (len(rows), 3)
    assert chosen == pytest.approx(run(any_family, rows)[:, vocabulary], abs=1e-4)


@pytest.mark.parametrize("kind", ["auto", "reference"])
def test_both_engines_read_the_same_logits(tiny_llama, kind):
    edits = (zero("L1.z", positions=[5]), scale("final_norm", 0.5, positions=-1))
    vocabulary = np.array([3, 77])

    def second(logits, _):
        return logits[:, 1].astype(np.float64)

    got = run_rows(tiny_llama, TOKENS, [Row(0, edits)], second, vocabulary=vocabulary, engine=kind)
    full = run_rows(tiny_llama, TOKENS, [Row(0, edits)], lambda x, _: x[:, 77].astype(np.float64))

    assert got == pytest.approx(full, abs=1e-4)


def test_small_budgets_make_more_passes_and_the_same_numbers(tiny_llama):
    rows = rows_of(tiny_llama)
    sizes = [len(chunk) for chunk in packed.chunks(rows, range(len(rows)), 11, 40)]

    small = run_rows(tiny_llama, TOKENS, rows, everything, token_budget=40)

    assert len(sizes) > 5
    assert sum(sizes) == len(rows)
    assert small == pytest.approx(
        run_rows(tiny_llama, TOKENS, rows, everything, engine="reference"), abs=1e-3
    )


@pytest.mark.parametrize("part", ["_rotary", "behind_attention"])
def test_a_pass_that_comes_out_wrong_is_noticed_and_another_engine_takes_over(tiny_llama, monkeypatch, part):
    rows = [Row(1, (scale("L0.z", 0.5, positions=[p]),)) for p in (3, 5, 8)]
    right = run_rows(tiny_llama, TOKENS, rows, everything, engine="reference")
    if part == "_rotary":  # rotary positions are not those of the prompt
        monkeypatch.setattr(packed_blocks, "_rotary", lambda _: [])
    else:
        own = packed_blocks.Blocks.behind_attention
        spoilt = lambda *args, **kwargs: own(*args, **kwargs) * 1.1  # noqa: E731
        monkeypatch.setattr(packed_blocks.Blocks, "behind_attention", spoilt)

    with pytest.raises(CannotJoin, match="an unpatched row came out"):
        run(tiny_llama, rows)

    assert run_rows(tiny_llama, TOKENS, rows, everything) == pytest.approx(right, abs=1e-3)


@pytest.mark.parametrize("wrong", [{"positions": 40}, {"positions": [5], "heads": 9}])
@pytest.mark.usefixtures("pinned_threads")
def test_places_that_do_not_exist_are_refused_and_the_model_is_what_it_was(wrong):
    model = InterpretableModel(tiny_module("llama"), ByteTokenizer())
    before = np.array(model.logits(CLEAN))

    with pytest.raises(HookError, match="has no"):
        run_rows(model, TOKENS, [Row(0, (replace("L1.z", 0.0, **wrong),))], everything)

    assert np.array_equal(np.array(model.logits(CLEAN)), before)


def test_a_dataset_of_pairs_shares_its_passes(tiny_llama):
    together = activation_patching(tiny_llama, PAIRS, component="z", by="layer_pos_head")

    assert together.per_example is not None
    for i, pair in enumerate(PAIRS):
        alone = activation_patching(tiny_llama, pair, component="z", by="layer_pos_head")
        assert together.per_example[i] == pytest.approx(alone.effects, abs=1e-4)


SWEEPS = [
    ("resid_pre", "layer_pos"),
    ("mlp", "layer"),
    ("z", None),
    ("k", "layer_head"),
    ("pattern", "layer"),
]


def test_several_sweeps_in_one_call_are_each_what_they_are_alone(tiny_llama):
    found = activation_patchings(tiny_llama, PAIR, sweeps=SWEEPS, direction="noising")

    for (component, by), result in zip(SWEEPS, found, strict=True):
        alone = activation_patching(tiny_llama, PAIR, component=component, by=by, direction="noising")
        assert result.effects == pytest.approx(alone.effects, abs=1e-4)
        assert (result.axes, result.component, result.labels) == (alone.axes, alone.component, alone.labels)


def test_a_patch_that_two_sweeps_share_runs_once(any_family, monkeypatch):
    asked = [("resid_pre", "layer_pos"), ("resid_mid", "layer_pos"), ("resid_post", "layer_pos")]
    asked = [(name, by) for name, by in asked if any_family.capabilities[name].available]
    alone = [activation_patching(any_family, PAIR, component=name, by=by).effects for name, by in asked]
    done: list[int] = []

    found = activation_patchings(any_family, PAIR, sweeps=asked, progress=lambda _, total: done.append(total))

    assert done[-1] == (any_family.n_layers + 1) * 7
    for result, effects in zip(found, alone, strict=True):
        assert result.effects == pytest.approx(effects, abs=1e-4)


def test_several_sweeps_run_both_prompts_once_together(tiny_llama, monkeypatch):
    runs = []
    own = engine.run
    monkeypatch.setattr(
        engine, "run", lambda a, tokens, **k: runs.append(tokens.shape) or own(a, tokens, **k)
    )

    activation_patchings(tiny_llama, PAIR, sweeps=[s for s in SWEEPS if s[0] not in ("k", "pattern")])

    assert runs == [(2, 11)]


def test_no_sweep_is_refused(tiny_llama):
    with pytest.raises(SweepError, match="Name at least one"):
        activation_patchings(tiny_llama, PAIR, sweeps=[])


def test_runs_too_large_to_keep_are_made_again(tiny_llama, monkeypatch):
    kept = activation_patching(tiny_llama, PAIRS, component="z", by="layer_pos_head")
    monkeypatch.setattr("mlxterp.causal.batching.sweep.KEPT_TOKENS", 10)
    assert run_prompts(tiny_llama, TOKENS) is None
    assert prepare(tiny_llama, PAIR).clean_run is None

    again = activation_patching(tiny_llama, PAIRS, component="z", by="layer_pos_head")

    assert again.effects == pytest.approx(kept.effects, abs=1e-4)
