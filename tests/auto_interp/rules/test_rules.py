"""Executable rules: what holds where, in words, and as plain values."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxterp.auto_interp.evidence.token_view import CLASSES, view_of_texts
from mlxterp.auto_interp.rules.rules import (
    AllOf,
    AnyOf,
    At,
    Begins,
    Class,
    Ends,
    Position,
    TokenIn,
    Topic,
    rule_from_dict,
    rule_to_dict,
)
from mlxterp.errors import LabelingError

TEXT = ["The", " cat", " was", " sitting", ".", "\n", " The", " CAT", " said", " 42", "\u00e9t\u00e9"]

EXAMPLES = [
    (At(0, TokenIn((" cat",), folded=False)), [1], 'token " cat"'),
    (At(0, TokenIn(("cat",))), [1, 7], 'word "cat"'),
    (At(0, Ends("ing")), [3], "words ending in -ing"),
    (At(0, Begins("th")), [0, 6], "words beginning in th-"),
    (At(0, Class("digits")), [9], "digits"),
    (At(0, Class("newline")), [5], "line breaks"),
    (At(0, Class("all_caps")), [7], "words in capitals"),
    (At(0, Class("capitalised")), [0, 6], "capitalised words"),
    (At(-1, TokenIn(("the",))), [1, 7], 'after word "the"'),
    (At(1, Class("digits")), [8], "before digits"),
    (Position(0, 1), [0, 1], "the first 2 tokens of the text"),
    (Position(4, 4), [4], "position 4 of the text"),
    (Topic(("cat", "dog"), 1), list(range(11)), "topic: cat, dog"),
    (Topic(("cat", "dog"), 2), [], "topic: cat, dog"),
    (
        AllOf((At(-1, TokenIn(("the",))), At(0, TokenIn((" cat",), folded=False)))),
        [1],
        'token " cat" after word "the"',
    ),
    (AnyOf((At(0, Class("digits")), Position(4, 4))), [4, 9], "digits, or position 4 of the text"),
]


@pytest.mark.parametrize(("rule", "where", "words"), EXAMPLES)
def test_a_rule_holds_where_it_says_and_says_where_it_holds(rule, where, words):
    view = view_of_texts([TEXT])

    assert np.flatnonzero(rule.holds(view, np.arange(len(TEXT)))).tolist() == where
    assert rule.words() == words


@pytest.mark.parametrize("rule", [rule for rule, _, _ in EXAMPLES])
def test_a_rule_survives_json(rule):
    assert rule_from_dict(json.loads(json.dumps(rule_to_dict(rule)))) == rule


def test_a_rule_sees_neither_the_row_before_nor_the_row_after():
    view = view_of_texts([["a", " b"], ["c", " d"]])

    assert At(-1, TokenIn(("b",))).holds(view, np.arange(4)).tolist() == [False] * 4
    assert At(1, TokenIn(("c",))).holds(view, np.arange(4)).tolist() == [False] * 4


@pytest.mark.parametrize(
    "data",
    [
        {"rule": "Import", "name": "os"},
        {"rule": "Class", "name": "spam"},
        {"rule": "Position", "first": 1, "last": 2, "more": 3},
        {"rule": "TokenIn", "tokens": ["a"]},
        {"rule": "AllOf", "rules": [3]},
        "digits",
    ],
)
def test_what_is_no_rule_is_refused(data):
    with pytest.raises(LabelingError):
        rule_from_dict(data)


@settings(deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=12), st.sampled_from(sorted(CLASSES)))
def test_the_kind_of_a_token_depends_on_its_text_only(tokens, name):
    together, rule = view_of_texts([tokens]), At(0, Class(name))

    held = rule.holds(together, np.arange(len(tokens)))

    for token, holds in zip(tokens, held, strict=True):
        assert rule.holds(view_of_texts([[token]]), np.array([0]))[0] == holds
