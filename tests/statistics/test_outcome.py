"""Verdicts at their limits, exactly: numbers of halves and quarters, which are not rounded."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mlxterp.statistics.outcome import Comparison, is_inside, missing, outcome_of, shortfalls, told

FOUND = Comparison(effect=0.75, low=0.5, high=1.0, sesoi=0.5, bar=0.5, slices={"a": 0.25})


def _mirrored(e: Comparison) -> Comparison:
    slices = {name: None if part is None else -part for name, part in e.slices.items()}
    return replace(e, effect=-e.effect, low=-e.high, high=-e.low, slices=slices)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"low": 0.25}, "interval"),
        ({"effect": 0.4375, "bar": 0.25}, "estimate"),
        ({"bar": 0.75}, "placebo"),
        ({"bar": None}, "placebo"),
        ({"slices": {"a": 0.0}}, "slice"),
        ({"slices": {"a": None}}, "slice"),
    ],
)
def test_an_effect_at_its_limit_is_not_established_on_either_side_and_says_which(change, word):
    at_limit = replace(FOUND, **change)

    assert (outcome_of(FOUND), outcome_of(_mirrored(FOUND))) == ("supported", "refuted")
    assert (outcome_of(at_limit), outcome_of(_mirrored(at_limit))) == ("inconclusive", "inconclusive")
    assert shortfalls(FOUND, 1) == shortfalls(_mirrored(FOUND), -1) == ()
    for each, sign in ((at_limit, 1), (_mirrored(at_limit), -1)):
        assert [said.partition(":")[0] for said in shortfalls(each, sign)] == [word]
        assert missing(each)[0] == shortfalls(each, sign)[0]
        assert missing(each)[-1].startswith("not ruled out: ")


def test_an_estimate_that_just_reaches_the_smallest_effect_is_established():
    assert outcome_of(replace(FOUND, effect=0.5, bar=0.25)) == "supported"
    assert outcome_of(_mirrored(replace(FOUND, effect=0.5, bar=0.25))) == "refuted"


@pytest.mark.parametrize("change", [{"low": -0.5}, {"high": 0.5}, {"low": math.nan}])
def test_an_interval_that_reaches_the_smallest_effect_is_not_inside(change):
    inside = Comparison(effect=0.0, low=-0.25, high=0.25, sesoi=0.5)

    assert is_inside(inside)
    assert outcome_of(inside) == "ruled_out"
    assert not is_inside(replace(inside, **change))
    assert outcome_of(replace(inside, **change)) == "inconclusive"


@pytest.mark.parametrize("name", ["effect", "low", "high", "sesoi", "bar"])
def test_a_comparison_is_finite_if_all_of_its_numbers_are(name):
    assert FOUND.finite
    assert replace(FOUND, bar=None, slices={"a": None}).finite
    assert not replace(FOUND, **{name: math.nan}).finite
    assert not replace(FOUND, slices={"a": 0.25, "b": math.inf}).finite


def test_a_researcher_is_told_what_there_is_none_of_and_else_that_the_interval_does_not_decide():
    undecided = replace(FOUND, low=0.25)

    assert told(undecided) == ("interval",)
    assert told(replace(undecided, bar=None)) == ("placebo",)
    assert told(replace(undecided, bar=None, direction="none")) == ("interval",)
    assert told(replace(undecided, slices={"a": None, "b": 0.5})) == ("slice",)


def test_what_is_missing_to_an_effect_of_exactly_0_is_told_of_the_predicted_side():
    nothing = Comparison(effect=0.0, low=-1.0, high=1.0, sesoi=0.5, bar=0.25)

    assert "not beyond 0.25" in missing(nothing)[0]
    assert "not beyond -0.25" in missing(replace(nothing, direction="decrease"))[0]
    assert missing(replace(nothing, direction="none")) == ("interval: [-1, 1] is not inside ±0.5",)
