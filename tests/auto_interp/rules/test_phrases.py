"""A set of tokens as a label of a few words."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.auto_interp.evidence.corpus import Corpus
from mlxterp.auto_interp.evidence.evidence import Sampling
from mlxterp.auto_interp.promoted_tokens import Promotion
from mlxterp.auto_interp.rules.fitting import OfflineRun
from mlxterp.auto_interp.rules.phrases import phrase
from mlxterp.auto_interp.rules.rules import AnyOf, At, TokenIn, is_named
from mlxterp.sae.feature_store.build import store_from_arrays

PREPOSITIONS = "in on at of for with by from to into over under"
UNLIKE = "kettle word itch valley emergency margin umbrella gross stairs copy coins offers"


NAMED = {
    PREPOSITIONS: 'prepositions such as "in", "on", "at"',
    "1 2 3 4 5 6 7 8 9 0 the xr": "digits",
    "he his she her it its they their him I": 'pronouns such as "he", "his", "she"',
    "no not never none nothing every all any": 'negations and quantifiers such as "no", "not", "never"',
    "walking going seeing being talking the": 'words ending in -ing such as "walking", "going", "seeing"',
    "Emma Harriet Anne Edmund Frank": 'names and other capitalised words such as "emma", "harriet", "anne"',
}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        *((words.split(), expected) for words, expected in NAMED.items()),
        (["\n", "\n\n", "\n   ", " \n", "."], "line breaks"),
    ],
)
def test_a_set_is_named_by_the_class_that_most_of_it_is_of(tokens, expected):
    assert phrase(tokens) == expected
    assert At(0, TokenIn(tuple(tokens))).words() == expected


def test_the_commonest_tokens_decide_what_a_set_is_called():
    rare = UNLIKE.split()[:4]

    assert phrase([*PREPOSITIONS.split(), *rare]) == 'prepositions such as "in", "on", "at"'
    assert phrase([*rare, *PREPOSITIONS.split()[:3]]) is None


def test_a_few_tokens_are_listed_and_a_long_list_is_never_cut_with_a_number():
    few, many = (At(0, TokenIn(tuple(UNLIKE.split()[:n]))) for n in (4, 12))

    assert few.words() == 'words "kettle", "word", "itch", "valley"'
    assert (is_named(few), is_named(many), is_named(AnyOf((few, many)))) == (True, False, False)
    assert many.words() == '12 unlike words such as "kettle", "word", "itch"'
    assert '"offers"' in many.words(full=True)


def test_conditions_on_the_tokens_before_are_one_phrase():
    rule = AnyOf((At(-1, TokenIn((".", "?"))), At(-2, TokenIn((".",)))))

    assert rule.words() == 'up to 2 tokens after words ".", "?"'
    assert rule.words(full=True) == 'after words ".", "?", or 2 tokens after word "."'


@pytest.mark.parametrize(("words", "status"), [(PREPOSITIONS, "ok"), (UNLIKE, "uninterpretable")])
def test_a_feature_of_many_tokens_gets_a_label_only_if_words_say_what_they_are(words, status):
    random = np.random.default_rng(0)
    names = {
        i: f" {word}"
        for i, word in enumerate([*words.split(), *(f"q{a}{b}" for a in "abcdefgh" for b in "klmnopqr")])
    }
    tokens = random.integers(len(names), size=12_000)
    fires = (tokens < 12).astype(np.float32)[:, None]
    store = store_from_arrays(tokens, np.arange(12_000) // 60, fires, names)

    label = OfflineRun(Corpus(store), Sampling()).label(0, Promotion({}, {}), {})

    assert label.status == status
    assert label.scores["rule"].balanced_accuracy > 0.95
    if status == "ok":
        assert label.label.startswith("prepositions such as ")
    else:
        assert "no few words say where it fires" in label.description
