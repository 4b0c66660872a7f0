"""Prompt pairs made for a model: equal lengths, single tokens, and only what the model really does."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.causal import PromptPair, behaviour
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import (
    CAPITALS,
    EVENTS,
    LANDMARKS,
    LANGUAGES,
    agreement_pairs,
    by_length,
    capitals_pairs,
    clusters,
    docstring_pairs,
    factual_recall_pairs,
    greater_than_pairs,
    ioi_pairs,
    languages_pairs,
    repeated_random_pairs,
)
from mlxterp.datasets.agreement import PLACES, PREPOSITIONS, VERBS
from mlxterp.datasets.selection import filter_by_behavior
from mlxterp.datasets.texts import documentation_texts
from mlxterp.errors import LengthMismatch, PromptPairError, TooLittleData
from mlxterp.models.toy import WordTokenizer
from mlxterp.remeasure import run_pairs
from tests.tiny_models import tiny_module

# For toy-induction, which continues repetitions, these are facts: after the subject comes the attribute.
FACTS = [
    ("sun river dog sun", "river"),
    ("king queen fish king", "queen"),
    ("moon star leaf moon", "star"),
    ("bird book coat bird", "book"),
]


FACTS_MORE = [
    ("flag glass horse flag", "glass"),
    ("door wind fire door", "wind"),
    ("salt ship stone salt", "ship"),
    ("tree lake road tree", "lake"),
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
    pairs = factual_recall_pairs(toy, [*SHORTER, *FACTS], template="{}")

    assert tokens_of(toy, pairs, "clean").shape == (4, 4)


def test_an_attribute_that_is_not_one_token_is_left_out(toy):
    pairs = factual_recall_pairs(toy, [*FACTS, ("salt ship salt", "ship stone")], template="{}")

    assert not any("salt" in pair.clean for pair in pairs)


SHORTER = [("lake leaf lake", "leaf"), ("rain road rain", "road")]


def test_pooled_facts_are_couples_of_every_length_each_of_which_is_measured_by_itself(toy):
    pairs = factual_recall_pairs(toy, [*SHORTER, *FACTS], template="{}", one_length=False)

    groups = by_length(toy, pairs)
    assert {length: len(group) for length, group in groups.items()} == {4: 4, 3: 2}
    assert all(behaviour(toy, group).totals for group in groups.values())
    assert len(clusters(pairs)) == 3


def test_unselected_facts_are_couples_whatever_the_model_says_of_them(toy):
    wrong = [("flag glass horse flag", "house"), ("door wind fire door", "stone")]

    candidates = factual_recall_pairs(toy, [*wrong, *FACTS], template="{}", shown=False)

    assert len(candidates) == 6
    assert candidates[0].name == "flag glass horse flag / door wind fire door"


def test_a_couple_is_one_cluster_under_every_template(toy):
    plain, longer = (factual_recall_pairs(toy, FACTS, template=t) for t in ("{}", "rain {}"))

    assert [pair.cluster for pair in plain] == [pair.cluster for pair in longer]
    assert len(clusters([*plain, *longer])) == 2


def test_one_direction_of_each_couple_is_as_many_pairs_as_clusters(toy):
    both = factual_recall_pairs(toy, FACTS, template="{}")

    one = factual_recall_pairs(toy, FACTS, template="{}", both_directions=False)

    assert one == both[::2]
    assert len(one) == len(clusters(one)) == len(clusters(both))


def test_several_templates_take_turns_and_are_the_slices(toy):
    facts = [*FACTS, ("flag glass horse flag", "glass"), ("door wind fire door", "wind")]

    pairs = factual_recall_pairs(toy, facts, template=["{}", "rain {}"], one_length=False)

    assert {pair.slice for pair in pairs} == {"{}", "rain {}"}
    for pair in pairs:
        assert pair.clean.startswith("rain ") == pair.corrupted.startswith("rain ") == (pair.slice != "{}")
    assert len(clusters(pairs)) == 2  # of the three subjects of each template


def test_the_best_length_is_of_all_templates_together(toy):
    pairs = factual_recall_pairs(toy, [*FACTS, *FACTS_MORE], template=["{} ", "  {}"])

    assert [pair.slice for pair in pairs[::2]] == ["{} ", "  {}"] * 2
    assert tokens_of(toy, pairs, "clean").shape == (8, 4)


def test_two_facts_with_the_same_attribute_make_no_couple(toy):
    same = [("sun river dog sun", "river"), ("king river fish king", "river")]

    with pytest.raises(PromptPairError, match="distinguishes no two of these 2 subjects"):
        factual_recall_pairs(toy, same, template="{}")


def test_a_model_that_knows_nothing_of_it_is_told_what_to_do(toy):
    with pytest.raises(PromptPairError, match=r"distinguishes no two of these 0 subjects.*Give other facts"):
        factual_recall_pairs(toy)


@pytest.mark.parametrize("facts", [LANDMARKS, CAPITALS, LANGUAGES])
def test_no_subject_gives_its_attribute_away_or_is_there_twice(facts):
    subjects = [subject for subject, _ in facts]

    assert [fact for fact in facts if fact[1].lower() in fact[0].lower()] == []
    assert len(set(subjects)) == len(subjects) >= 100


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


def test_every_repetition_is_a_cluster_of_its_own_and_seeds_share_none(toy):
    seeds = [repeated_random_pairs(toy, n=16, seed=seed) for seed in range(8)]

    assert len(clusters([pair for pairs in seeds for pair in pairs])) == 8 * 16


def test_pairs_apart_from_others_share_no_prompt_with_them_under_the_same_seed(toy):
    explored = repeated_random_pairs(toy, n=8)

    fresh = repeated_random_pairs(toy, n=8, apart_from=explored)

    assert len(clusters([*explored, *fresh])) == 16


def test_unselected_repetitions_are_the_first_ones_drawn_from_the_seed(toy):
    drawn, shown = (repeated_random_pairs(toy, n=8, period=6, seed=3, shown=shown) for shown in (False, True))

    assert len(clusters(drawn)) == 8
    assert [pair for pair in drawn if pair in shown] == shown[: sum(pair in shown for pair in drawn)]


def test_words_that_are_there_twice_before_they_begin_again_change_in_both(toy):
    once, twice = (repeated_random_pairs(toy, n=4, period=6, repeats=r, shown=False) for r in (1, 2))

    for one, two in zip(once, twice, strict=True):
        assert two.clean.split() == [*one.clean.split()[:6], *one.clean.split()]
        assert two.corrupted.split() == [*one.corrupted.split()[:6], *one.corrupted.split()]
        assert (two.answer, two.foil) == (one.answer, one.foil)


def test_words_that_are_not_there_to_be_repeated_are_refused(toy):
    with pytest.raises(PromptPairError, match="repeats=0: the words are there once at least"):
        repeated_random_pairs(toy, repeats=0)


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


@pytest.fixture(scope="module")
def talkative() -> InterpretableModel:
    """Random weights over the words of indirect objects, one token each."""
    words = "When and went to the store park . gave a drink ring Mary John Tom"
    return InterpretableModel(tiny_module("llama"), WordTokenizer(words.split()))


IOI = {"templates": ["When {a} and {b} went to the {place} . {s} gave a {thing} to"], "shown": False}


def test_indirect_objects_differ_in_the_giver_who_is_the_foil(talkative):
    pairs = ioi_pairs(talkative, 12, **IOI)

    for pair in pairs:
        clean, corrupted = pair.clean.split(), pair.corrupted.split()
        changed = [i for i, (c, x) in enumerate(zip(clean, corrupted, strict=True)) if c != x]
        assert changed == [clean.index(".") + 1]
        assert {clean[1], clean[3]} == {pair.answer.strip(), pair.foil.strip()}
        assert (clean[changed[0]], corrupted[changed[0]]) == (pair.foil.strip(), pair.answer.strip())
    assert {pair.clean.split()[1] == pair.answer.strip() for pair in pairs} == {True, False}
    assert len(set(pairs)) == 12
    assert {pair.slice for pair in pairs} == set(IOI["templates"])


def test_words_that_are_not_one_token_are_left_out(talkative):
    pairs = ioi_pairs(talkative, 4, names=("Mary", "Ann", "Mary Tom", "John"), **IOI)

    assert {pair.answer for pair in pairs} == {" Mary", " John"}


def test_indirect_objects_of_a_tokenizer_without_names_are_refused(tiny_llama):
    with pytest.raises(PromptPairError, match=r"need two names, .* 0 of 50 names, 0 of 12 places"):
        ioi_pairs(tiny_llama)


def test_lengths_are_pooled_on_request(talkative):
    longer = "When {a} and {b} went to the {place} . {s} gave a the {thing} to"

    pairs = ioi_pairs(talkative, 16, shown=False, one_length=False, templates=[*IOI["templates"], longer])

    assert sorted(by_length(talkative, pairs)) == [14, 15]
    assert len(clusters(pairs)) == 16


def test_drawn_pairs_share_no_prompt_so_a_pair_and_its_mirror_image_are_not_both_kept(talkative):
    few = {"names": ("Mary", "John"), "places": ("store",), "things": ("drink",)}

    pairs = ioi_pairs(talkative, 2, **few, **IOI)

    assert len(clusters(pairs)) == 2
    with pytest.raises(PromptPairError, match="and 2 share no prompt with others"):
        ioi_pairs(talkative, 3, **few, **IOI)


def test_events_leave_room_for_thousands_of_independent_years():
    assert len(set(EVENTS)) == len(EVENTS) >= 900


def test_more_pairs_than_the_words_allow_are_refused(talkative):
    with pytest.raises(PromptPairError, match=r"9 pairs of indirect objects .* 4 different ones .* drawn"):
        ioi_pairs(talkative, 9, names=("Mary", "John"), places=("store",), things=("drink",), **IOI)


def test_a_model_that_does_not_show_indirect_objects_is_refused(talkative):
    with pytest.raises(PromptPairError, match="shows it on"):
        ioi_pairs(talkative, 12, templates=IOI["templates"])


def test_prompts_of_the_commonest_length_are_kept(talkative):
    longer = "When {a} and {b} went to the {place} . {s} gave a the {thing} to"

    pairs = ioi_pairs(talkative, 6, shown=False, templates=[*IOI["templates"] * 4, longer])

    assert tokens_of(talkative, pairs, "clean").shape == (6, 14)


def test_after_a_later_year_the_answer_is_later_and_the_foil_earlier_than_it(tiny_llama):
    """A tokenizer of bytes: the next token is the decade."""
    pairs = greater_than_pairs(tiny_llama, 12, shown=False, events=["war"])

    clean, corrupted = tokens_of(tiny_llama, pairs, "clean"), tokens_of(tiny_llama, pairs, "corrupted")
    decade = len("The war lasted from the year 17")
    assert {tuple(np.flatnonzero(c != x)) for c, x in zip(clean, corrupted, strict=True)} == {(decade,)}
    for pair, c, x in zip(pairs, clean, corrupted, strict=True):
        assert x[decade] < pair.foil < c[decade] < pair.answer <= ord("9")


def test_the_century_is_the_one_in_which_it_began(tiny_llama):
    for pair in greater_than_pairs(tiny_llama, 6, shown=False, events=["war"]):
        assert pair.clean.partition("year ")[2][:2] == pair.clean[-2:]


def test_a_tokenizer_that_does_not_split_years_is_refused(tiny_llama):
    class WholeYears(WordTokenizer):
        """Every word is the token of its length."""

        def encode(self, text):
            return [len(word) for word in text.split()]

    model = InterpretableModel(tiny_module("llama"), WholeYears(str(i) for i in range(128)))

    with pytest.raises(PromptPairError, match="needs a year that splits after its century"):
        greater_than_pairs(model)


def test_a_tokenizer_without_digits_is_refused(toy):
    with pytest.raises(PromptPairError, match="has no tokens for them"):
        greater_than_pairs(toy)


def test_a_tokenizer_that_gives_clean_and_corrupted_other_lengths_is_refused_with_both_splits(tiny_llama):
    uneven = PromptPair("aa", "aaa", answer="x", foil="y")

    with pytest.raises(LengthMismatch, match=r"clean +a\|a\n +corrupted +a\|a\|a"):
        by_length(tiny_llama, [uneven])


def test_capitals_are_facts_about_countries(toy):
    pairs = capitals_pairs(toy, FACTS, template="{}")

    assert pairs == factual_recall_pairs(toy, FACTS, template="{}")
    assert [c for c, capital in CAPITALS if capital.lower() in c.lower()] == []


@pytest.mark.parametrize("make", [ioi_pairs, greater_than_pairs])
def test_another_seed_draws_others(tiny_llama, talkative, make):
    rest = IOI if make is ioi_pairs else {"shown": False, "events": ["war", "siege"], "one_length": False}
    model = talkative if make is ioi_pairs else tiny_llama

    assert make(model, 4, **rest) == make(model, 4, **rest)
    assert make(model, 4, **rest) != make(model, 4, seed=1, **rest)


@pytest.fixture(scope="module")
def programmer() -> InterpretableModel:
    """Random weights over what a very small language's docstrings are made of."""
    words = "function : parameter a b c d e f g one two three four five six seven"
    return InterpretableModel(tiny_module("llama"), WordTokenizer(words.split()))


DOCSTRINGS = {
    "arguments": ("a", "b", "c", "d", "e", "f", "g", "class"),
    "words": ("one", "two", "three", "four", "five", "six", "seven", "eight"),
    "template": "function {name} {a} {b} {c} {d} : parameter {a} : {w0} {w1} parameter {b} : {w2} parameter",
    "shown": False,
}


def test_docstrings_differ_in_the_argument_that_comes_next(programmer):
    pairs = docstring_pairs(programmer, 8, **DOCSTRINGS)

    assert len(set(pairs)) == 8
    for pair in pairs:
        clean, corrupted = pair.clean.split(), pair.corrupted.split()
        changed = [i for i, (c, x) in enumerate(zip(clean, corrupted, strict=True)) if c != x]
        assert changed == [4]
        assert (clean[4], corrupted[4]) == (pair.answer.strip(), pair.foil.strip())
        assert (clean[8], clean[13]) == (clean[2], clean[3])
        assert not {clean[4], corrupted[4]} & {*clean[:4], *clean[5:], "class"}
    assert docstring_pairs(programmer, 8, seed=1, **DOCSTRINGS) != pairs


def test_docstrings_are_kept_where_the_model_shows_them(toy):
    """The toy continues a repetition, so after a described argument it says the next of the definition."""
    arguments = ["king", "queen", "fish", "river", "dog", "cat"]
    words = ["sun", "moon", "star", "leaf", "bird", "book", "coat"]

    shown = docstring_pairs(toy, 4, arguments=arguments, words=words, template="{a} {b} {c} {d} {w0} {b}")

    for pair in shown:
        a, b, c, _, _, again = pair.clean.split()
        assert (b, c) == (again, pair.answer.strip())
        assert a not in (b, c, pair.foil.strip())


def test_docstrings_of_a_tokenizer_without_such_words_are_refused(programmer, tiny_llama):
    with pytest.raises(PromptPairError, match="0 of 54 arguments and 0 of 32 words"):
        docstring_pairs(tiny_llama)
    with pytest.raises(PromptPairError, match="the template cannot be written"):
        docstring_pairs(programmer, **DOCSTRINGS | {"template": "def {a} {b} {c}"})


AGREEMENT = {
    "subjects": ("king", "dog", "cow", "ox"),
    "template": "the {subject} {preposition} a {place}",
    "shown": False,
}


@pytest.fixture(scope="module")
def grammarian() -> InterpretableModel:
    """Random weights over the words of agreement; "ox" has no plural among them."""
    words = "the a king kings dog dogs cow cows ox were was are is have has"
    return InterpretableModel(tiny_module("llama"), WordTokenizer([*words.split(), *PREPOSITIONS, *PLACES]))


def test_agreement_pairs_differ_in_the_number_of_the_subject_and_the_answer_follows_it(grammarian):
    pairs = agreement_pairs(grammarian, 8, **AGREEMENT)

    assert len(set(pairs)) == 8
    for pair in pairs:
        clean, corrupted = pair.clean.split(), pair.corrupted.split()
        assert [i for i, (c, x) in enumerate(zip(clean, corrupted, strict=True)) if c != x] == [1]
        assert clean[1] == f"{corrupted[1]}s"
        assert corrupted[1] in ("king", "dog", "cow")
        assert (pair.answer.strip(), pair.foil.strip()) in VERBS
    assert agreement_pairs(grammarian, 8, seed=1, **AGREEMENT) != pairs
    assert not set(pairs) & set(agreement_pairs(grammarian, 8, apart_from=pairs, **AGREEMENT))


def test_agreement_needs_subjects_of_one_token_in_both_numbers(grammarian):
    with pytest.raises(PromptPairError, match="none of 1 subjects is one"):
        agreement_pairs(grammarian, **AGREEMENT | {"subjects": ("ox",)})


@pytest.fixture(scope="module")
def smollm2() -> InterpretableModel:
    return InterpretableModel("smollm2-135m")


@pytest.mark.slow
@pytest.mark.parametrize("make", [ioi_pairs, greater_than_pairs, docstring_pairs, agreement_pairs])
def test_smollm2_shows_the_behaviour_on_most_pairs_that_were_not_chosen_for_it(smollm2, make):
    result = behaviour(smollm2, make(smollm2, 8, shown=False))

    assert result.mean("logit_diff", run="clean") > 1
    assert result.mean("logit_diff", run="corrupted") < -1
    assert result.totals["clean prefers the answer, corrupted the foil"] >= 0.75


def test_smollm2_knows_capitals(smollm2):
    assert len(capitals_pairs(smollm2)) >= 12


@pytest.mark.slow
@pytest.mark.timeout(900)  # 1,000 forwards, which may have to share their cores
@pytest.mark.parametrize("make", [factual_recall_pairs, capitals_pairs, languages_pairs])
def test_smollm2_knows_enough_facts_to_explore_8_and_to_confirm_on_24_independent_ones(smollm2, make):
    candidates = make(smollm2, shown=False, one_length=False)
    shown = filter_by_behavior(smollm2, candidates)
    of_one_length = make(smollm2, both_directions=False)
    ranks = run_pairs(smollm2, of_one_length, "logit_diff", keep=False)

    assert len(clusters(make(smollm2, one_length=False))) >= 32
    assert len(of_one_length) == len(clusters(of_one_length)) >= 32
    assert np.mean(np.concatenate([ranks.answer_rank, ranks.foil_rank]) <= 10) >= 0.6
    assert len(shown) >= 0.75 * len(candidates)


@pytest.mark.slow
@pytest.mark.parametrize("make", [ioi_pairs, greater_than_pairs])
def test_smollm2_shows_most_drawn_pairs_of_every_length_and_seeds_share_few(smollm2, make):
    seeds = [make(smollm2, 48, seed=seed, shown=False, one_length=False) for seed in range(4)]
    shown = filter_by_behavior(smollm2, seeds[0])

    assert len(shown) >= 0.75 * 48
    assert len(clusters([pair for pairs in seeds for pair in pairs])) >= 4 * 48 - 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_knows_enough_landmarks_of_one_length(smollm2):
    model = smollm2

    pairs = factual_recall_pairs(model)

    assert len(pairs) >= 12
    assert pairs[0].name == "Eiffel Tower / Colosseum"
    assert tokens_of(model, pairs, "clean").shape == tokens_of(model, pairs, "corrupted").shape
    assert behaviour(model, pairs).totals == {"clean prefers the answer, corrupted the foil": 1.0}


def test_documentation_is_prose_of_this_python_that_needs_no_download():
    texts = documentation_texts(40)

    assert len(texts) == 40
    assert all(len(text.split()) >= 60 for text in texts)
    assert any("Return" in text for text in texts)
    with pytest.raises(TooLittleData, match="there are"):
        documentation_texts(1_000_000)
