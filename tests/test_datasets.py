"""Prompt pairs made for a model: equal lengths, single tokens, and only what the model really does."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.causal import PromptPair, behaviour
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import LANDMARKS, factual_recall_pairs, repeated_random_pairs
from mlxterp.errors import PromptPairError

# For toy-induction, which continues repetitions, these are facts: after the subject comes the attribute.
FACTS = [
    ("sun river dog sun", "river"),
    ("king queen fish king", "queen"),
    ("moon star leaf moon", "star"),
    ("bird book coat bird", "book"),
]


@pytest.fixture(scope="module")
def toy() -> InterpretableModel:
    return InterpretableModel("toy-induction")


def tokens_of(model: InterpretableModel, pairs: list[PromptPair], which: str) -> np.ndarray:
    return np.stack([model.to_tokens(getattr(pair, which))[0] for pair in pairs])


def test_factual_pairs_are_couples_in_both_directions_that_share_no_subject_with_others(toy):
    pairs = factual_recall_pairs(toy, FACTS, template="{}")

    assert [(pair.answer, pair.foil) for pair in pairs] == [
        (" river", " queen"),
        (" queen", " river"),
        (" star", " book"),
        (" book", " star"),
    ]
    assert [(pair.clean, pair.corrupted) for pair in pairs[:2]] == [
        ("sun river dog sun", "king queen fish king"),
        ("king queen fish king", "sun river dog sun"),
    ]


def test_a_fact_that_the_model_does_not_know_is_left_out(toy):
    wrong = ("flag glass horse flag", "house")

    pairs = factual_recall_pairs(toy, [wrong, *FACTS], template="{}")

    assert len(pairs) == 4
    assert not any("flag" in pair.clean for pair in pairs)


def test_the_token_length_with_the_most_couples_is_chosen(toy):
    shorter = [("lake leaf lake", "leaf"), ("rain road rain", "road")]

    pairs = factual_recall_pairs(toy, [*shorter, *FACTS], template="{}")

    assert tokens_of(toy, pairs, "clean").shape == (4, 4)


def test_an_attribute_that_is_not_one_token_is_left_out(toy):
    pairs = factual_recall_pairs(toy, [*FACTS, ("salt ship salt", "ship stone")], template="{}")

    assert not any("salt" in pair.clean for pair in pairs)


def test_two_facts_with_the_same_attribute_make_no_couple(toy):
    same = [("sun river dog sun", "river"), ("king river fish king", "river")]

    with pytest.raises(PromptPairError, match="tells no two of these 2 subjects apart"):
        factual_recall_pairs(toy, same, template="{}")


def test_a_model_that_knows_nothing_of_it_is_told_what_to_do(toy):
    with pytest.raises(PromptPairError, match=r"tells no two of these 0 subjects apart.*Give other facts"):
        factual_recall_pairs(toy)


def test_no_landmark_gives_its_city_away():
    assert [name for name, city in LANDMARKS if city.lower() in name.lower()] == []


def test_a_corrupted_repetition_holds_the_same_words_and_changes_the_same_two_positions(toy):
    pairs = repeated_random_pairs(toy, n=8, period=12)

    clean, corrupted = tokens_of(toy, pairs, "clean"), tokens_of(toy, pairs, "corrupted")

    assert (np.sort(clean, axis=1) == np.sort(corrupted, axis=1)).all()
    assert [np.flatnonzero(c != x).tolist() for c, x in zip(clean, corrupted, strict=True)] == [[3, 8]] * 8


def test_the_answer_followed_the_last_word_before_and_the_foil_does_in_the_corrupted_prompt(toy):
    for pair in repeated_random_pairs(toy, n=8, period=12):
        for prompt, continuation in ((pair.clean, pair.answer), (pair.corrupted, pair.foil)):
            words = prompt.split()
            assert words[words.index(words[-1]) + 1] == continuation.strip()


def test_a_head_that_attends_a_fixed_distance_back_cannot_tell_clean_from_corrupted(toy):
    """Behind the answer's and the foil's place, both prompts hold the same words at the same distance."""
    for pair in repeated_random_pairs(toy, n=8, period=12):
        clean, corrupted = pair.clean.split(), pair.corrupted.split()
        assert clean[4] == corrupted[4] == pair.answer.strip()
        assert clean[9] == corrupted[9] == pair.foil.strip()


def test_the_model_shows_the_behaviour_on_every_pair(toy):
    result = behaviour(toy, repeated_random_pairs(toy, n=8))

    assert result.totals == {"clean prefers the answer, corrupted the foil": 1.0}


def test_the_same_seed_gives_the_same_pairs_and_another_gives_others(toy):
    assert repeated_random_pairs(toy, n=4) == repeated_random_pairs(toy, n=4)
    assert repeated_random_pairs(toy, n=4) != repeated_random_pairs(toy, n=4, seed=1)


@pytest.mark.parametrize("period", [5, 41])
def test_a_period_that_the_words_do_not_allow_is_refused(toy, period):
    with pytest.raises(
        PromptPairError, match=f"period={period}: sequences are made of 6 to 40 different words"
    ):
        repeated_random_pairs(toy, period=period)


def test_a_model_without_the_behaviour_is_refused(tiny_llama):
    """Random weights continue nothing, and bytes are no words."""
    with pytest.raises(PromptPairError, match="6 to 0 different words"):
        repeated_random_pairs(tiny_llama)


@pytest.mark.slow
def test_smollm2_knows_enough_landmarks_of_one_length():
    model = InterpretableModel("smollm2-135m")

    pairs = factual_recall_pairs(model)

    assert len(pairs) >= 12
    assert pairs[0].name == "Eiffel Tower / Colosseum"
    assert tokens_of(model, pairs, "clean").shape == tokens_of(model, pairs, "corrupted").shape
    assert behaviour(model, pairs).totals == {"clean prefers the answer, corrupted the foil": 1.0}
