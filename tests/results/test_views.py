"""The builders that kinds of results share: heatmaps, bars, tables of effects."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlxterp.results.views import Component, bars, effects_table, heatmap, intervals, listed

ONE = Component("L0.H1", 0.8, ci=(0.7, 0.9))
TWO = Component("L1.H0", -0.25)


def drawn(values, **changes):
    values = np.array(values, dtype=np.float64)
    given = {
        "title": "Heads",
        "rows": ("head", [f"H{i}" for i in range(values.shape[0])]),
        "columns": ("layer", [f"L{i}" for i in range(values.shape[1])]),
        "unit": "recovery",
    }
    return heatmap(values, **(given | changes))


def test_a_diverging_heatmap_has_equal_limits_and_marks_its_strongest_cells_first():
    show = drawn([[0.1, -0.8], [0.5, 0.0]])

    assert (show.low, show.high) == (-0.8, 0.8)
    assert show.marks == ((0, 1), (1, 0))  # 0.1 is less than a quarter of the limit


def test_a_heatmap_without_sign_begins_at_zero():
    assert (drawn([[0.25, 0.5]], diverging=False).low, drawn([[0.25, 0.5]], diverging=False).high) == (0, 0.5)


@pytest.mark.parametrize("values", [[[0.0, 0.0]], [[math.nan, math.inf]]])
def test_a_heatmap_without_a_finite_effect_has_limits_all_the_same_and_no_marks(values):
    assert (drawn(values).high, drawn(values).marks) == (1.0, ())


def test_intervals_stand_beside_every_cell_of_a_heatmap():
    low, high = np.array([[-0.5, 0.25]]), np.array([[0.5, 0.75]])

    assert drawn([[0.0, 0.5]], intervals=(low, high)).details == (("−0.5 to 0.5", "0.25 to 0.75"),)


def test_bars_have_intervals_only_if_every_component_has_one():
    assert bars([ONE], title="t", unit="u").intervals == ((0.7, 0.9),)
    assert bars([ONE, TWO], title="t", unit="u").intervals is None
    assert bars([], title="t", unit="u").intervals is None


@pytest.mark.parametrize(("accented", "places"), [(3, (0, 1)), (1, (0,)), (0, ()), ([1], (1,))])
def test_the_first_bars_stand_out_or_those_that_are_named(accented, places):
    assert bars([ONE, TWO], title="t", unit="u", accented=accented).accented == places


def test_a_table_of_effects_has_columns_for_intervals_where_there_is_one():
    with_ends = effects_table(
        [ONE, TWO], title="t", columns=("head", "effect"), more={"found by": ["a", "b"]}
    )
    without = effects_table([TWO], title="t", columns=("head", "effect"))

    assert with_ends.columns == ("head", "effect", "from", "to", "found by")
    assert with_ends.rows == (("L0.H1", 0.8, 0.7, 0.9, "a"), ("L1.H0", -0.25, None, None, "b"))
    assert (without.columns, without.rows) == (("head", "effect"), (("L1.H0", -0.25),))


def test_intervals_are_in_the_order_of_the_flattened_effects():
    low = np.arange(4.0).reshape(2, 2)

    assert intervals(low, low + 1, 4) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert intervals(None, None, 2) == [None, None]


def test_components_are_listed_with_their_effects():
    assert listed([ONE, TWO]) == "L0.H1 0.8, L1.H0 -0.25"
