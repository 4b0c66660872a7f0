"""Any value an experiment returns can be logged; a field of the wrong type is refused in words."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxterp.autointerpret import ExperimentLog
from mlxterp.autointerpret.encoding import (
    MAX_LINE,
    compared,
    count,
    decode_object,
    encode_object,
    plain,
)
from mlxterp.errors import EntryError
from mlxterp.results import PatchingResult
from mlxterp.statistics.duplicates import is_copy
from tests.autointerpret.conftest import an_entry


@dataclass
class Setting:
    layer: int
    scale: np.float32


class Colour(Enum):
    RED = "red"


Point = namedtuple("Point", "x y")


def _patching() -> PatchingResult:
    return PatchingResult(
        effects=np.array([0.25, np.nan]),
        axes=("layer",),
        component="mlp_out",
        by="layer",
        direction="denoising",
        metric="logit_diff",
        clean_metric=2.0,
        corrupted_metric=-1.0,
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(2.0), 2.0),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array([0.5], dtype=np.float16), [0.5]),
        (np.array([1.5], dtype=np.longdouble), [1.5]),
        (np.longdouble(1.5), 1.5),
        (
            {3: 1, (1, "b"): 2, None: 3, 0.5: 4, np.int64(7): 5},
            {"3": 1, "1,b": 2, "None": 3, "0.5": 4, "7": 5},
        ),
        ({1: "int", "1": "text"}, {"1": "int", "1'": "text"}),
        (OrderedDict(a=(1, 2), b={3}), {"a": [1, 2], "b": [3]}),
        (Setting(3, np.float32(0.5)), {"layer": 3, "scale": 0.5}),
        (Point(1, 2), [1, 2]),
        (range(3), [0, 1, 2]),
        (Colour.RED, "red"),
        (Path("a/b"), "a/b"),
        ("half \ud800 pair", "half \\ud800 pair"),
    ],
)
def test_common_values_become_plain_without_a_flag(value, expected):
    converted = plain({"v": value})

    assert converted.value == {"v": expected}
    assert converted.flags() == {}
    assert decode_object(encode_object(converted.value).rstrip()) == converted.value


@pytest.mark.parametrize("value", [object(), 3 + 4j, b"bytes", len, np.complex64(1), int("9" * 4000)])
def test_what_has_no_json_form_becomes_text_and_is_flagged(tmp_path, value):
    log = ExperimentLog(tmp_path / "results.jsonl")

    log.append(an_entry(result={"good": 1.0, "odd": value}))

    (entry,) = log.entries()
    assert entry.result["good"] == 1.0
    assert isinstance(entry.result["odd"], str)
    assert entry.metadata == {"unserialisable": ["result.odd"]}


def test_a_value_that_contains_itself_or_is_very_deep_is_cut_not_followed(tmp_path):
    loop: dict[str, object] = {"name": "loop"}
    loop["self"] = loop
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]

    ExperimentLog(tmp_path / "r.jsonl").append(an_entry(result={"loop": loop, "deep": deep}))

    (entry,) = ExperimentLog(tmp_path / "r.jsonl").entries()
    assert entry.result["loop"]["name"] == "loop"
    assert entry.metadata["unserialisable"][0] == "result.loop.self"


def test_a_repr_that_raises_does_not_cost_the_entry(tmp_path):
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    entry = ExperimentLog(tmp_path / "r.jsonl").append(an_entry(result={"x": Broken(), "y": 1}))

    assert entry.result["y"] == 1
    assert "Broken instance" in entry.result["x"]


def test_non_finite_numbers_are_written_as_texts_and_flagged_by_path(tmp_path):
    result = {"a": math.nan, "b": [1.0, -math.inf], "c": np.array([[1.0, np.inf]]), "n": "NaN"}

    entry = ExperimentLog(tmp_path / "r.jsonl").append(an_entry(result=result))

    assert entry.result == {"a": "NaN", "b": [1.0, "-Infinity"], "c": [[1.0, "Infinity"]], "n": "NaN"}
    assert entry.metadata["nonfinite"] == ["result.a", "result.b[1]", "result.c[0][1]"]


def test_a_long_list_of_flags_is_shortened(tmp_path):
    entry = ExperimentLog(tmp_path / "r.jsonl").append(an_entry(result={"x": [math.nan] * 500}))

    assert len(entry.metadata["nonfinite"]) == 21
    assert entry.metadata["nonfinite"][-1] == "and 480 more"


@pytest.mark.parametrize("given_itself", [True, False])
def test_a_result_of_an_analysis_is_logged_as_its_dict(tmp_path, given_itself):
    analysis = _patching()

    entry = ExperimentLog(tmp_path / "r.jsonl").append(
        an_entry(result=analysis if given_itself else {"analysis": analysis})
    )

    logged = entry.result if given_itself else entry.result["analysis"]
    assert (logged["kind"], logged["effects"]) == ("patching", [0.25, "NaN"])
    assert len(entry.metadata["nonfinite"]) == 1


def test_logging_an_entry_again_adds_no_flags(tmp_path):
    log = ExperimentLog(tmp_path / "r.jsonl")

    first = log.append(an_entry(result={"x": math.nan}))
    second = log.append(first)

    assert (second.result, second.metadata) == (first.result, first.metadata)


def test_an_entry_too_large_for_a_line_leaves_out_its_largest_values_by_name(tmp_path):
    result = {"analysis": {"kind": "x", "effect": 0.5, "all": np.random.default_rng(0).normal(size=300_000)}}

    entry = ExperimentLog(tmp_path / "r.jsonl").append(an_entry(result=result, conclusion="c" * 30_000))

    assert entry.result["analysis"]["effect"] == 0.5
    assert entry.result["analysis"]["all"].startswith("left out: ")
    assert entry.metadata["omitted"] == ["result.analysis.all"]
    assert len(entry.conclusion) == 20_000
    assert len((tmp_path / "r.jsonl").read_bytes()) < MAX_LINE


def test_an_entry_of_too_many_small_values_is_logged_without_them(tmp_path):
    entry = ExperimentLog(tmp_path / "r.jsonl").append(
        an_entry(result={f"{i:0100d}": i for i in range(40_000)}, metadata={"k": 1})
    )

    assert (entry.result, entry.metadata) == ({}, {"omitted": ["result", "metadata"]})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hypothesis": None}, "hypothesis is None, a NoneType. Give a text."),
        ({"method": 3}, "method is 3"),
        ({"result": 0.82}, 'result is 0.82, a float. Give a dict of names to values, as in {"effect": 0.82}'),
        ({"result": [1, 2]}, "result is [1, 2], a list"),
        ({"informative": "yes"}, "informative is 'yes', a str. Give True or False"),
        ({"informative": 1}, "informative is 1, a int"),
        ({"duration_seconds": "fast"}, "duration_seconds is 'fast'"),
        ({"duration_seconds": math.nan}, "duration_seconds is nan"),
        ({"duration_seconds": -1.0}, "seconds, a finite number from 0 up, or None"),
        ({"metadata": ["a"]}, "metadata is ['a'], a list. Give a dict"),
        ({"record": "x"}, "record is 'x'"),
    ],
)
def test_a_field_of_the_wrong_type_is_refused(changes, says):
    with pytest.raises(EntryError) as refused:
        an_entry(**changes)

    assert says in str(refused.value)
    assert isinstance(refused.value, TypeError)


def test_numpy_scalars_are_fine_as_fields():
    entry = an_entry(informative=np.bool_(False), duration_seconds=np.float32(0.5))

    assert (entry.informative, entry.duration_seconds) == (False, 0.5)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(codec=None)),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(value=st.dictionaries(st.text(max_size=5), VALUES, max_size=5))
def test_whatever_is_written_is_read_back_the_same(value):
    written = plain(value).value

    assert decode_object(encode_object(written).rstrip(b"\n")) == written
    assert plain(written).value == written


def test_numbers_are_counted_without_what_describes_the_measurement():
    result = {"numbers": {"a": 1, "b": "NaN", "ok": True}, "xs": [0.5, "Infinity"], "measured_on": {"n": 3}}

    assert count(result) == (4, 2)


def test_results_are_compared_by_their_numbers_whatever_the_names_are():
    mine = compared({"a": [1, 2.0, 0.5]})

    assert is_copy(mine, compared({"b": {"x": 1.0, "y": 2}, "c": 0.5, "note": "text"}))
    assert not is_copy(mine, compared({"a": [1, 2.0, 0.25]}))
    assert not is_copy(compared({"accuracy": 1.0}), compared({"accuracy": 1.0}))
