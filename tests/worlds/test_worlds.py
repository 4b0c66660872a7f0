"""Each world is what it says: planted sites matter, inert ones do not, null ones have no behaviour."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.errors import PromptPairError, SweepError
from mlxterp.remeasure import gate_cells, measure, run_pairs
from mlxterp.statistics.clusters import clusters
from mlxterp.worlds import (
    PROGRAMS,
    backup_heads,
    compiled_program,
    llama_with_preferred_answers,
    null_effect,
    random_llama,
    shuffled_labels,
    shuffled_twin,
    smollm2_with_direction,
    toy_induction,
    toy_with_moved_heads,
    weight_shuffled,
    with_effect,
    with_inert_heads,
    with_planted_direction,
)

PATCH = {"op": "patch", "source": "clean"}
# A float32 run of the toy, logits of about 20: its last bits, over the gap of 20.
EXACT = 64 * float(np.finfo(np.float32).eps)


def _effects(world, runs):
    found = {}
    for site in world.truth:
        measured = measure(world.model, {"site": [site], "intervention": PATCH}, runs)
        found[site] = measured.effect
    return found


@pytest.mark.parametrize("world", [toy_induction(8), toy_with_moved_heads(3, 8)], ids=lambda w: w.name)
def test_both_planted_heads_recover_the_gap_and_the_six_others_nothing(world):
    effects = _effects(world, run_pairs(world.model, world.pairs, world.metric))

    assert len(world.planted) == 2
    assert len(world.inert) == 6
    for site, known in world.truth.items():
        # Attention leaks less than 0.1 % (toy_circuit.py).
        assert effects[site] == pytest.approx(known.effect, abs=1e-3)


def test_moving_heads_moves_them_and_keeps_what_the_model_computes():
    original, moved = toy_induction(4), [toy_with_moved_heads(seed, 4) for seed in range(6)]

    assert len({world.planted for world in moved}) > 2
    for world in moved:
        prompt = world.pairs[0].clean
        # The heads of a layer are summed in another order.
        difference = mx.abs(world.model.logits(prompt) - original.model.logits(prompt)).max().item()
        assert difference <= EXACT * 20


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_of_a_compiled_program_every_idle_part_is_without_effect_and_some_part_has_one(name):
    world = compiled_program(name, 12)
    runs = run_pairs(world.model, world.pairs, world.metric)

    effects = _effects(world, runs)

    assert max(abs(effects[site]) for site in world.inert) < 1e-5
    assert max(abs(effects[site]) for site in world.planted) > 0.3
    assert len(clusters(world.pairs)) == len(world.pairs)


def test_asking_a_program_for_more_pairs_than_it_has_says_how_many_there_are():
    with pytest.raises(
        PromptPairError, match=r"\d+ independent pairs were found for 'sort', 20000 were asked"
    ):
        compiled_program("sort", 20_000)


def test_answers_of_a_random_model_are_preferred_by_selection_and_not_among_its_first():
    world = random_llama(0, 16)

    cells = gate_cells(world.model, world.pairs, world.metric, world.candidates)

    assert cells.pairs.answer_preferred.all()
    assert cells.pairs.foil_preferred.all()
    assert (cells.pairs.answer_rank <= 2).mean() < 0.5
    assert cells.candidates is not None
    assert (cells.candidates.answer_preferred & cells.candidates.foil_preferred).mean() < 0.5


def test_shuffled_labels_and_the_shuffled_twin_have_no_gap_like_the_planted_one():
    world = toy_induction(24)
    gap = gate_cells(world.model, world.pairs, world.metric).pairs.gap.mean()

    for null in (shuffled_labels(world, 1), weight_shuffled(world, 1)):
        cells = gate_cells(null.model, null.pairs, null.metric).pairs
        assert not null.behaviour
        assert abs(cells.gap.mean()) < gap / 4
        assert (cells.answer_rank <= 1).mean() < 0.5


def test_no_pair_keeps_its_own_labels():
    world = toy_induction(8)

    shuffled = shuffled_labels(world, 0)

    labels = [(pair.answer, pair.foil) for pair in world.pairs]
    moved = [(pair.answer, pair.foil) for pair in shuffled.pairs]
    assert sorted(labels) == sorted(moved)
    assert len(set(labels)) < len(labels) or all(a != b for a, b in zip(labels, moved, strict=True))


def test_a_twin_has_the_same_numbers_in_another_order_and_leaves_the_model_alone():
    model = random_llama(1, 2).model
    before = dict(tree_flatten(model.model.parameters()))
    copies = {path: np.array(array) for path, array in before.items()}

    twin = dict(tree_flatten(shuffled_twin(model, 0).model.parameters()))

    for path, array in before.items():
        assert np.array_equal(np.array(array), copies[path])
        assert twin[path].shape == array.shape
        assert np.array_equal(np.sort(np.array(twin[path]).ravel()), np.sort(copies[path].ravel()))
        assert np.array_equal(np.array(twin[path]), copies[path]) == (array.ndim < 2)


def test_twins_of_one_seed_are_equal_and_of_two_are_not():
    model = random_llama(1, 2).model

    digests = [shuffled_twin(model, seed).digest for seed in (0, 0, 1)]

    assert digests[0] == digests[1] != digests[2]


def test_cells_get_the_effect_that_is_asked_and_keep_their_spread():
    rng = np.random.default_rng(0)
    gap = rng.normal(8, 1, size=24)
    change = 0.3 * gap + rng.standard_t(4, size=24)

    null, planted = null_effect(change, gap, 0.1), with_effect(change, gap, 0.2)

    assert null.sum() / gap.sum() == pytest.approx(0.05, rel=1e-12)
    assert planted.sum() / gap.sum() == pytest.approx(0.2, rel=1e-12)
    residuals = [cells - cells.sum() / gap.sum() * gap for cells in (change, null, planted)]
    assert residuals[1] == pytest.approx(residuals[0], abs=1e-12)
    assert residuals[2] == pytest.approx(residuals[0], abs=1e-12)


def _one(world, sites, intervention, runs):
    return measure(world.model, {"site": list(sites), "intervention": intervention}, runs).effect


def test_of_two_backup_heads_each_recovers_half_and_neither_is_missed():
    world = backup_heads(12)
    runs = run_pairs(world.model, world.pairs, world.metric)

    recovered = _effects(world, runs)

    for site, known in world.truth.items():
        assert recovered[site] == pytest.approx(known.effect, abs=1e-3)
    heads = ("L0.z.h0", "L0.z.h2")
    assert _one(world, heads, PATCH, runs) == pytest.approx(1.0, abs=1e-3)
    for head in heads:
        assert _one(world, [head], {"op": "zero"}, runs) == pytest.approx(0.0, abs=1e-3)
    # Without either head no answer is written: the logits of answer and foil are equal, half of the gap.
    assert _one(world, heads, {"op": "zero"}, runs) == pytest.approx(0.5, abs=1e-3)


def test_a_head_that_is_cut_off_changes_its_activation_and_nothing_else():
    whole = random_llama(0, 8)
    world = with_inert_heads(whole, [(0, 1), (2, 3)])
    runs = run_pairs(world.model, world.pairs, world.metric)

    assert world.inert == ("L0.z.h1", "L2.z.h3")
    for site in world.inert:
        found = measure(world.model, {"site": [site], "intervention": PATCH}, runs)
        assert found.fired.all()
        assert found.changed.all()
        assert np.abs(found.change).max() <= EXACT * 10  # logits of about 10
    assert whole.model.digest != world.model.digest


def test_cutting_off_a_head_that_is_not_there_says_which_heads_are():
    with pytest.raises(SweepError, match="has layers 0 to 3 and heads 0 to 3"):
        with_inert_heads(random_llama(0, 2), [(4, 0)])


def test_of_a_planted_direction_its_head_recovers_the_gap_and_cut_off_heads_nothing():
    model = random_llama(0, 2).model
    rng = np.random.default_rng(0)
    prompts = [rng.integers(128, size=2).tolist() for _ in range(24)]
    pairs = [
        PromptPair((*p, 5, 6, 7), (*p, 9, 10, 11), answer=17, foil=40, cluster=f"planted {i}")
        for i, p in enumerate(prompts)
    ]

    world = with_planted_direction(model, pairs[8:], pairs[:8], gap=5.0)

    runs = run_pairs(world.model, world.pairs, world.metric)
    (head,) = world.planted
    assert len(world.inert) == 2
    assert (runs.metric_of["clean"] - runs.metric_of["corrupted"]).mean() == pytest.approx(5, abs=2)
    assert _one(world, [head], PATCH, runs) > 0.5
    assert all(abs(_one(world, [site], PATCH, runs)) <= EXACT for site in world.inert)


def test_a_direction_is_planted_between_one_answer_and_one_foil():
    world = random_llama(0, 4)

    with pytest.raises(PromptPairError, match="give the same two to all pairs"):
        with_planted_direction(world.model, world.pairs[2:], world.pairs[:2])


@pytest.mark.slow
def test_smollm2_with_a_planted_direction_behaves_as_planted_and_passes_the_gate():
    world = smollm2_with_direction(24)

    cells = gate_cells(world.model, world.pairs, world.metric)
    assert cells.pairs.answer_preferred.mean() >= 0.8
    assert cells.pairs.foil_preferred.mean() >= 0.8
    runs = run_pairs(world.model, world.pairs, world.metric)
    (head,) = world.planted
    assert _one(world, [head], PATCH, runs) > 0.8
    assert all(abs(_one(world, [site], PATCH, runs)) < 1e-5 for site in world.inert)


def test_own_first_tokens_of_a_random_model_are_first_in_every_run_and_in_candidates():
    world = llama_with_preferred_answers(0, 16)

    cells = gate_cells(world.model, world.pairs, world.metric, world.candidates)

    for each in (cells.pairs, cells.candidates):
        assert (each.answer_rank == 1).all()
        assert (each.foil_rank == 1).all()
    assert not world.behaviour
