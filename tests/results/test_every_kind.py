"""What holds for every kind of result, also for later ones: read back, published, drawn, never harmful."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from mlxterp.errors import ResultError
from mlxterp.reports import generate_report, interactive
from mlxterp.results import AnalysisResult, Component, json_schema, kinds
from mlxterp.results.base import result_class
from tests.payloads import PAYLOADS, assert_harmless, assert_harmless_markdown
from tests.regenerate_docs import results_schema
from tests.results.every_kind import (
    EXAMPLES,
    rotated,
    with_numbers,
    with_words,
)

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "reference" / "results.schema.json"
EVERY = sorted(EXAMPLES)
_OFFSETS = (0, 5, 11)


def test_every_kind_has_an_example():
    ours = {kind for kind in kinds() if result_class(kind).__module__.startswith("mlxterp.")}

    without = ours - set(EXAMPLES)
    assert not without, f"write an example of {sorted(without)} in tests/results/every_kind.py, EXAMPLES"
    assert not set(EXAMPLES) - ours


@pytest.mark.parametrize("kind", EVERY)
def test_a_result_does_what_every_result_does(kind):
    result = EXAMPLES[kind]()

    assert result.kind == kind
    assert result.title
    assert result.summary()
    assert result.to_markdown().startswith("## ")
    assert isinstance(result.plot(), Figure)
    assert all(isinstance(each, Component) for each in result.top_components(3))
    assert "<" in result._repr_html_()
    assert result.section().title == result.title


@pytest.mark.parametrize("kind", EVERY)
@settings(max_examples=3, deadline=None)
@given(
    numbers=st.lists(
        st.floats() | st.sampled_from([float("nan"), float("inf"), 0.1]), min_size=20, max_size=20
    ),
    words=st.lists(st.text(max_size=8), min_size=6, max_size=6),
)
def test_a_result_read_back_from_its_json_is_equal(kind, numbers, words):
    result = with_words(with_numbers(EXAMPLES[kind](), rotated(numbers, 0)), rotated(words, 0), shown=False)

    text = result.to_json()

    back = AnalysisResult.from_json(text)
    assert type(back) is type(result)
    assert back == result
    assert back.to_json() == text
    json.loads(text, parse_constant=lambda word: pytest.fail(f"bare {word} in JSON"))


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_result_with_numbers_that_are_not_finite_is_told_and_drawn(kind, wrong):
    result = with_numbers(EXAMPLES[kind](), rotated([0.5, wrong, wrong, 0.25], 0))

    assert result.section().text
    assert result.to_markdown()
    assert all(math.isfinite(each.effect) for each in result.top_components(5))
    result.plot()


@cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("kind", EVERY)
def test_what_a_result_writes_is_what_the_schema_says(kind):
    numbers = rotated([float("nan"), 0.5, float("-inf"), 1.0], 0)
    data = json.loads(with_numbers(EXAMPLES[kind](), numbers).to_json())

    _validator().validate(data)
    assert not _validator().is_valid({k: v for k, v in data.items() if k != "measured_on"})
    assert not _validator().is_valid(data | {"colour": 1})
    assert not _validator().is_valid(data | {"kind": "horoscope"})


def test_the_schema_of_one_kind_accepts_that_kind_only():
    check = _validator().evolve(schema=json_schema("patching"))

    assert check.is_valid(json.loads(EXAMPLES["patching"]().to_json()))
    assert not check.is_valid(json.loads(EXAMPLES["metrics"]().to_json()))
    with pytest.raises(ResultError, match="no result kind 'horoscope'"):
        json_schema("horoscope")


def test_the_published_schema_is_the_one_the_code_makes():
    published = SCHEMA.read_text(encoding="utf-8")

    assert json.loads(published) == json_schema(), "run `python -m tests.regenerate_docs`"
    assert published == results_schema()


@pytest.mark.parametrize("offset", _OFFSETS)
def test_hostile_words_in_every_field_of_every_kind_stay_words(offset):
    results = [with_words(EXAMPLES[kind](), rotated(PAYLOADS, offset + i)) for i, kind in enumerate(EVERY)]

    assert_harmless(generate_report(results, format="html", include_plots=False, include_json=True))
    assert_harmless_markdown(generate_report(results))
    for result in results:
        assert_harmless_markdown(result.to_markdown())


@pytest.mark.parametrize("kind", EVERY)
def test_hostile_words_do_nothing_in_a_page_to_explore(kind):
    result = with_words(EXAMPLES[kind](), rotated(PAYLOADS, 3))

    assert_harmless(interactive(result).html, scripts=1)
