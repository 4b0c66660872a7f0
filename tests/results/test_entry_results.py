"""What the result of a log entry holds: its analyses, and its numbers as a reader sees them."""

from __future__ import annotations

from mlxterp.results.entry_results import analyses, named_numbers
from tests.results.every_kind import patching

ANALYSIS = patching().to_dict()


def test_every_analysis_is_found_where_it_stands():
    result = {"a": ANALYSIS, "more": [1, {"b": ANALYSIS}], "kind": "no kind of result"}

    assert [where for where, _ in analyses(result)] == ["result.a", "result.more[1].b"]
    assert [where for where, _ in analyses(ANALYSIS)] == ["result"]


def test_the_numbers_of_an_entry_are_those_it_names_numbers():
    result = {"numbers": {"effect_of_heads": {"L9.H6": -0.81234}, "n": 12345}, "other": 1, "step": "x"}

    assert list(named_numbers(result)) == [("effect of heads L9.H6", "−0.812"), ("n", "12,345")]


def test_without_such_a_name_they_are_the_plain_values_at_the_top_and_no_analysis():
    result = {
        "gap": "NaN",
        "kept": True,
        "none": None,
        "traceback": "…",
        "analysis": ANALYSIS,
        "few": [1, 2.5],
    }

    assert list(named_numbers(result)) == [
        ("gap", "n/a"),
        ("kept", "yes"),
        ("none", "none"),
        ("few", "1, 2.5"),
    ]
    assert list(named_numbers(ANALYSIS)) == []


def test_what_no_table_can_hold_is_left_out():
    result = {"long": "x" * 81, "many": list(range(9)), "texts": ["x" * 81], "n": 1}

    assert list(named_numbers(result)) == [("n", "1")]
    assert len(list(named_numbers({str(i): i for i in range(100)}, most=7))) == 7
