"""Numbers on their way into a statistic."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.errors import StatisticsError
from mlxterp.statistics.arrays import finite, finite_row


def test_a_row_has_at_least_so_many_numbers_and_one_axis():
    assert finite_row([1, 2, 3], "values", at_least=3).tolist() == [1.0, 2.0, 3.0]
    assert finite_row([1], "values").dtype == np.float64
    for values, least in ([1, 2], 3), ([], 1), ([[1, 2]], 1), (1.0, 1):
        with pytest.raises(StatisticsError, match=f"one axis of at least {least} numbers"):
            finite_row(values, "values", at_least=least)


def test_the_first_five_places_that_are_not_finite_are_named():
    five, six = np.zeros((2, 4)), np.zeros((2, 4))
    five.flat[:5] = np.nan
    six.flat[:6] = np.inf

    with pytest.raises(StatisticsError, match=r"5 of 8 .*at .*\(1, 0\)\. Leave"):
        finite(five, "values")
    with pytest.raises(StatisticsError, match=r"6 of 8 .*\(1, 0\) …\. Leave"):
        finite(six, "values")
