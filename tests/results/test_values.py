"""How the fields of a result are converted: by their annotations, and back from JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from mlxterp.errors import ResultError
from mlxterp.results.values import converters, plain
from mlxterp.results.views import Flags, Floats, Interval


@dataclass(frozen=True)
class Row:
    label: str
    share: float
    parts: tuple[str, ...] = ()
    ci: Interval | None = None


@dataclass(frozen=True)
class Fields:
    effects: Floats
    measured: Flags
    gap: float
    fvu: float | None
    layers: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    rows: tuple[Row, ...]
    scores: Mapping[str, Floats]
    labels: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, Any]
    method: str
    doubled: int = field(metadata={"convert": lambda value: 2 * value})


def converted(name, value):
    return converters(Fields)[name](value)


def test_an_array_is_float64_and_cannot_be_changed():
    made = converted("effects", [[1, "NaN"], [2, "-Infinity"]])

    assert made.dtype == np.float64
    np.testing.assert_array_equal(made, [[1.0, math.nan], [2.0, -math.inf]])
    with pytest.raises(ValueError, match="read-only"):
        made[0, 0] = 3.0


def test_numbers_and_texts_are_converted_inside_tuples_and_mappings():
    assert converted("gap", "Infinity") == math.inf
    assert converted("fvu", np.float32(0.5)) == 0.5
    assert converted("layers", [np.int64(3), 4]) == (3, 4)
    assert converted("spans", [[1, 2], [3, 4]]) == ((1, 2), (3, 4))
    assert converted("labels", {"pos": [" a", 7]}) == {"pos": (" a", "7")}
    assert converted("scores", {"induction": [1]})["induction"].shape == (1,)


def test_a_record_is_made_from_its_fields_or_from_another_record():
    given = {"label": "a", "share": "NaN", "parts": ["x", 1], "ci": [0, "Infinity"]}

    first, second = converted("rows", [given, Row("b", 1)])

    assert math.isnan(first.share)
    assert (first.parts, first.ci) == (("x", "1"), (0.0, math.inf))
    assert second == Row("b", 1.0)
    with pytest.raises(TypeError, match="colour"):
        converted("rows", [given | {"colour": 1}])


def test_what_takes_any_value_stays_and_a_field_may_name_its_own_conversion():
    assert "method" not in converters(Fields)
    assert converted("doubled", 4) == 8


def test_facts_become_plain_values_and_what_is_not_plain_is_named():
    assert converted("facts", {"n": np.int64(3), "ids": (1, 2)}) == {"n": 3, "ids": [1, 2]}
    with pytest.raises(ResultError, match=r"facts\.model holds a builtins\.object"):
        converted("facts", {"model": object()})


@pytest.mark.parametrize("value", [[0, 1], ["yes"], [math.nan]])
def test_flags_are_never_made_of_numbers_or_texts(value):
    with pytest.raises(ResultError, match="True or False"):
        converted("measured", value)


def test_plain_values_are_those_that_json_has():
    assert plain({"a": np.float32(0.5), "b": np.arange(2), "row": Row("x", 1.0)}) == {
        "a": 0.5,
        "b": [0, 1],
        "row": {"label": "x", "share": 1.0, "parts": [], "ci": None},
    }


def test_an_annotation_whose_name_is_not_there_at_run_time_is_refused_with_its_class():
    unknown = dataclass(type("Broken", (), {"__annotations__": {"effects": "NowhereImported"}}))

    with pytest.raises(ResultError, match=r"fields of Broken .*NowhereImported"):
        converters(unknown)
