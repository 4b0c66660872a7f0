"""Errors and cautions name what was given: a reader must find the value that is wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mlxterp.errors import StatisticsError
from mlxterp.statistics.decisions import Cells, gate, m_value, more_than_all
from mlxterp.statistics.intervals import average_ranks
from mlxterp.statistics.multiple import confirm_winners, holm
from mlxterp.statistics.ratio import mean_of, ratio_of_means

NAN = np.full(3, np.nan)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: more_than_all(NAN, np.ones((3, 1)), np.ones(3), 0.01), r"change: 3 of 3 .*"),
        (lambda: more_than_all(np.ones(3), NAN[:, None], np.ones(3), 0.01), r"others: 3 of 3 .*"),
        (lambda: m_value([1.0], [np.nan], [2.0], sign=1), r"ends of the intervals: 1 of 1 .*"),
        (lambda: average_ranks(NAN), r"values: 3 of 3 .*"),
        (lambda: confirm_winners(NAN[:, None], np.ones(3), winners=1), r"change: 3 of 3 .*"),
        (lambda: confirm_winners(np.ones((3, 1)), NAN, winners=1), r"gap: 3 of 3 .*"),
        (lambda: holm(NAN), r"p-values: 3 of 3 .*"),
        (lambda: mean_of(1.0), r"the mean of one number without an axis\. Give \[n, …\]\."),
        (
            lambda: ratio_of_means([1.0, 1.0], [1.0, -1.0]),
            r"the gaps add up to 0, so there is nothing an effect could be a share of\.",
        ),
        (
            lambda: Cells(np.ones(2), np.ones(2), ("a", "a")),
            r".* distinct clusters\. Give one of each per cluster: join pairs with `cells_of`\.",
        ),
        (
            lambda: gate(np.ones(2), np.ones(2), np.ones(1), 9),
            r"2 preferences, 1 ranks, a vocabulary of 9\. Give both for each run\.",
        ),
    ],
)
def test_an_error_names_what_is_wrong(call, said):
    with pytest.raises(StatisticsError) as caught:
        call()

    assert re.fullmatch(said, str(caught.value), flags=re.DOTALL)


def test_a_caution_is_one_sentence_after_another():
    found = ratio_of_means(np.linspace(0, 1, 9), np.ones(9))

    assert found.cautions == (
        "9 clusters: the interval assumes that effects are not skewed, which takes 16 to see. If they are, a "
        "95 % interval covers 83 to 93 %.",
    )
