"""Placebos lie near the claim and never on it; the gate reads both runs; a role is where heads attend."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp import InterpretableModel, PromptPair
from mlxterp.component_names import parse_component
from mlxterp.errors import PromptPairError, SweepError
from mlxterp.remeasure import gate_cells, measure_role, other_heads, placebo_sites
from mlxterp.worlds import (
    compiled_program,
    llama_with_preferred_answers,
    random_llama,
    toy_induction,
    toy_with_moved_heads,
)
from tests.tiny_models import tiny_module


@pytest.fixture(scope="module")
def deep():
    return InterpretableModel(tiny_module("llama", num_hidden_layers=9))


def _claim(*sites, op="patch"):
    return {"site": list(sites), "intervention": {"op": op}}


def _layers(sets):
    return [tuple(parse_component(site).layer for site in each.sites) for each in sets]


def test_placebos_of_a_head_are_other_heads_at_its_position_within_two_layers(deep):
    sets = placebo_sites(deep, _claim("L4.H1@-1"), seed=1, n=12)

    assert len({each.sites for each in sets}) == 12
    for (text,) in (each.sites for each in sets):
        site = parse_component(text)
        assert (site.name, site.pos) == ("z", -1)
        assert (site.layer, site.head) != (4, 1)
        assert 2 <= site.layer <= 6


def test_where_few_are_near_the_nearest_layers_follow(deep):
    sets = placebo_sites(deep, _claim("L0.mlp"), seed=1, n=8)

    assert set(_layers(sets[:2])) == {(1,), (2,)}
    assert _layers(sets[2:]) == [(3,), (4,), (5,), (6,), (7,), (8,)]


def test_placebos_are_the_same_for_one_seed_and_others_for_another(deep):
    drawn = [placebo_sites(deep, _claim("L4.H1"), seed=seed, n=8) for seed in (1, 1, 2)]

    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_a_set_has_placebos_with_as_many_heads_in_each_layer(deep):
    claim = _claim("L2.H0", "L2.H1", "L5.H3", "L5.mlp")

    sets = placebo_sites(deep, claim, seed=3, n=20)

    claimed = {str(parse_component(site)) for site in claim["site"]}
    assert len({frozenset(each.sites) for each in sets}) == 20
    for each in sets:
        assert not claimed & set(each.sites)
        assert len(set(each.sites)) == 4
    for each in sets[:6]:  # two free heads in layer 2, three in layer 5, two MLPs beside it: no more than 6
        sites = [parse_component(site) for site in each.sites]
        assert [site.layer for site in sites if site.name == "z"] == [2, 2, 5]
        assert sites[3].layer in (4, 6)
    for each in sets[6:]:
        layers = np.array([parse_component(site).layer for site in each.sites])
        assert np.abs(layers - [2, 2, 5, 5]).max() <= 1


def test_where_fewer_than_six_sites_exist_random_directions_take_their_place():
    model = toy_induction(2).model

    sets = placebo_sites(model, _claim("L1.attn_out@-1"), seed=5, n=10)

    assert {each.sites for each in sets} == {("L1.attn_out@-1",)}
    assert len({each.direction_seed for each in sets}) == 10


@pytest.mark.parametrize("op", ["steer", "project_out", "clamp_feature"])
def test_a_claim_about_a_direction_is_compared_with_random_directions(deep, op):
    sets = placebo_sites(deep, _claim("L4.resid_post", op=op), seed=1, n=6)

    assert all(each.direction_seed is not None for each in sets)


def test_placebos_of_a_path_send_from_before_its_receivers(deep):
    claim = {
        "site": ["L2.H1"],
        "intervention": {"op": "path_patch", "receivers": ["L1.mlp", "L3.H0.q"]},
    }

    assert set(_layers(placebo_sites(deep, claim, seed=1, n=99))) == {(0,), (1,), (2,)}


def test_the_other_heads_of_a_layer_are_all_but_the_claimed_one(deep):
    assert [each.sites for each in other_heads(deep, _claim("L4.H1@-1"))] == [
        ("L4.z.h0@-1",),
        ("L4.z.h2@-1",),
        ("L4.z.h3@-1",),
    ]
    with pytest.raises(SweepError, match="is not one head"):
        other_heads(deep, _claim("L4.mlp"))


def test_the_gate_sees_gap_preference_and_rank_of_both_runs():
    world = toy_induction(6)
    backwards = [PromptPair(p.clean, p.corrupted, answer=p.foil, foil=p.answer) for p in world.pairs]

    forwards = gate_cells(world.model, world.pairs, "logit_diff", world.candidates)
    reversed_ = gate_cells(world.model, backwards, "logit_diff").pairs

    assert forwards.candidates is not None
    assert (forwards.pairs.gap > 19).all()
    assert forwards.pairs.answer_preferred.all()
    assert forwards.pairs.foil_preferred.all()
    assert (forwards.pairs.answer_rank == 1).all()
    assert (forwards.pairs.foil_rank == 1).all()
    assert not reversed_.answer_preferred.any()
    assert not reversed_.foil_preferred.any()
    assert reversed_.gap == pytest.approx(-forwards.pairs.gap)
    assert (reversed_.answer_rank > 1).all()


def test_a_behaviour_survives_an_unrelated_prefix_and_selected_first_tokens_do_not():
    rule = toy_induction(16)
    accident = llama_with_preferred_answers(0, 16)

    kept = gate_cells(rule.model, rule.pairs, "logit_diff").prefixed
    lost = gate_cells(accident.model, accident.pairs, "logit_diff").prefixed

    assert kept.answer_preferred.all()
    assert kept.foil_preferred.all()
    assert np.r_[lost.answer_preferred, lost.foil_preferred].mean() < 0.65


def test_prefixes_are_those_of_their_seed():
    world = random_llama(0, 8)

    one, same, other = (
        gate_cells(world.model, world.pairs, "logit_diff", seed=seed).prefixed.gap for seed in (1, 1, 2)
    )

    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_there_is_no_prefix_where_the_model_has_no_positions_left_for_one():
    world = compiled_program("shift", 4)

    assert gate_cells(world.model, world.pairs, "logit_diff").prefixed is None


def test_the_gate_needs_answer_and_foil():
    world = toy_induction(2)
    without = [PromptPair(p.clean, p.corrupted, answer=p.answer) for p in world.pairs]

    with pytest.raises(PromptPairError, match="these pairs lack one"):
        gate_cells(world.model, without, "log_prob")


@pytest.mark.parametrize("world", [toy_induction(4), toy_with_moved_heads(2, 4)], ids=lambda w: w.name)
@pytest.mark.parametrize(("role", "layer"), [("previous-token head", 0), ("induction head", 1)])
def test_a_planted_head_has_its_role_and_the_models_other_heads_have_not(world, role, layer):
    (planted,) = (parse_component(site) for site in world.planted if parse_component(site).layer == layer)

    found = measure_role(world.model, {"site": [str(planted)], "role": role}, seed=0)

    assert found.masses.shape == (24, 1)
    # Its layer has three others, too few to compare with, so it is compared with all seven.
    assert found.others.shape == (24, 7)
    assert found.masses.min() > 0.99
    # A previous-token head's rival looks at position 0, which precedes position 1.
    assert found.others.max() < 0.1


def test_the_head_that_copies_the_answer_is_the_name_mover():
    world = toy_induction(4)

    found = measure_role(world.model, {"site": ["L1.H1"], "role": "name mover"}, seed=0, pairs=world.pairs)

    assert found.masses.min() > 0.99
    assert found.others.max() < 0.01


def test_a_head_that_attends_without_copying_is_no_name_mover():
    world = toy_induction(4)
    repeated = [
        PromptPair(p.clean, p.corrupted, answer=p.clean.split()[-1], foil=p.foil) for p in world.pairs
    ]

    found = measure_role(world.model, {"site": ["L0.H1"], "role": "name mover"}, seed=0, pairs=repeated)

    # It attends to the word itself, and writes where nothing reads.
    assert found.masses.max() == 0


def test_fresh_texts_differ_by_seed(deep):
    claim = {"site": ["L0.H1"], "role": "duplicate-token head"}

    masses = [measure_role(deep, claim, seed=seed, n=3).masses for seed in (0, 0, 1)]

    assert np.array_equal(masses[0], masses[1])
    assert not np.array_equal(masses[0], masses[2])


def test_a_name_mover_needs_prompts_that_hold_their_answer():
    world = toy_induction(2)
    claim = {"site": ["L1.H1"], "role": "name mover"}
    pair = world.pairs[0]
    absent = next(word for word in world.model.tokenizer.words if word not in pair.clean.split())

    with pytest.raises(PromptPairError, match="Give pairs"):
        measure_role(world.model, claim, seed=0)
    with pytest.raises(PromptPairError, match="does not hold its answer"):
        measure_role(
            world.model, claim, seed=0, pairs=[PromptPair(pair.clean, pair.corrupted, answer=absent)]
        )
