"""On the model whose circuit is known, every method names that circuit and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.causal import PromptPair, ablate, activation_patching, behaviour, direct_logit_attribution
from mlxterp.core.interventions import replace

PREVIOUS, INDUCTION = (0, 2), (1, 1)


def induction_pairs(n: int = 6, n_words: int = 26) -> list[PromptPair]:
    """`A B C D E A` → B, against the same with another B: [1] differs, and is asked for at the end."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(n):
        a, b, c, d, e, other = rng.choice(n_words, size=6, replace=False).tolist()
        pairs.append(PromptPair((a, b, c, d, e, a), (a, other, c, d, e, a), answer=b, foil=other))
    return pairs


PAIRS = induction_pairs()


def only(shape, *places):
    expected = np.zeros(shape)
    for place in places:
        expected[place] = 1.0
    return expected


def test_the_model_does_induction_on_these_prompts(toy_model):
    result = behaviour(toy_model, PAIRS)

    assert result.totals["clean prefers the answer, corrupted the foil"] == 1.0
    assert all(row.rank == 1 for row in result.rows if row.run == "clean")


def test_denoising_the_induction_head_recovers_everything_and_no_other_head_anything(toy_model):
    effects = activation_patching(toy_model, PAIRS, component="z").effects

    assert effects == pytest.approx(only((2, 4), INDUCTION), abs=1e-2)


def test_where_the_word_before_differs_both_planted_heads_carry_it(toy_model):
    """`A B … A` against `X B … A`: the previous-token head tells the induction head where A was."""
    pairs = [
        PromptPair(pair.clean, (pair.foil, *pair.clean[1:]), answer=pair.answer, foil=pair.clean[2])
        for pair in PAIRS
    ]

    effects = activation_patching(toy_model, pairs, component="z", by="layer_pos_head").effects

    assert effects == pytest.approx(only((2, 6, 4), (0, 1, 2), (1, 5, 1)), abs=0.05)


def test_the_head_acts_at_the_last_position(toy_model):
    effects = activation_patching(toy_model, PAIRS, component="z", by="layer_pos_head").effects

    assert effects == pytest.approx(only((2, 6, 4), (1, 5, 1)), abs=1e-2)


def test_the_token_itself_is_what_is_copied_so_its_residual_carries_the_answer(toy_model):
    effects = activation_patching(toy_model, PAIRS, component="resid_pre", by="layer_pos").effects

    assert effects == pytest.approx(only((2, 6), (0, 1), (1, 1)), abs=1e-2)


def test_the_attribution_names_the_induction_head(toy_model):
    result = direct_logit_attribution(toy_model, PAIRS[0].clean, answer=PAIRS[0].answer, foil=PAIRS[0].foil)

    assert result.top_components(1)[0].label == "L1.H1"
    assert result.head_contributions[INDUCTION] == pytest.approx(result.total, rel=0.05)


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_the_planted_heads_are_necessary_and_sufficient_and_random_ones_neither(toy_model, kind):
    necessary = ablate(toy_model, PAIRS, [PREVIOUS, INDUCTION], kind=kind, random_sets=3)
    sufficient = ablate(toy_model, PAIRS, [PREVIOUS, INDUCTION], kind=kind, keep=True, random_sets=3)

    assert necessary.rows[0].share == pytest.approx(0, abs=0.02)
    assert sufficient.rows[0].share == pytest.approx(1, abs=0.02)
    assert necessary.shares("random") == pytest.approx([1, 1, 1], abs=0.02)
    assert sufficient.shares("random", keep=True) == pytest.approx([0, 0, 0], abs=0.02)


@pytest.mark.parametrize("head", [PREVIOUS, INDUCTION])
def test_each_planted_head_is_necessary_by_itself(toy_model, head):
    assert ablate(toy_model, PAIRS, [head], kind="zero").rows[0].share < 0.3


def test_the_two_heads_compose_through_the_keys(toy_model):
    """Moving where the previous-token head looked moves the answer to another word of the prompt."""
    pair = PAIRS[0]
    plain = int(np.array(toy_model.logits(list(pair.clean)))[0, -1].argmax())
    trace = toy_model.trace(list(pair.clean), capture=["L0.z"])
    swapped = np.array(trace["L0.z"])[:, [0, 3, 2, 1, 4, 5]]

    moved = toy_model.logits(list(pair.clean), interventions=[replace("L0.z", swapped, heads=2)])

    assert plain == pair.clean[1]
    assert int(np.array(moved)[0, -1].argmax()) == pair.clean[3]
