"""Tests of significance: exact values on small data, the observed arrangement counted, and their level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from mlxterp.errors import StatisticsError
from mlxterp.statistics.significance import binomial_p, p_among_controls, permutation_p, sign_flips


def test_the_smallest_permutation_p_is_one_in_the_draws_and_the_observed_one():
    yes, no = np.arange(20) + 100.0, np.arange(20.0)

    assert permutation_p(yes, no, seed=0, draws=99) == 1 / 100
    assert permutation_p(yes, no, seed=0) == 1 / 10_000


def test_classes_that_are_alike_or_the_wrong_way_round_have_a_large_p():
    assert permutation_p([1.0, 1.0], [1.0, 1.0], seed=0, draws=50) == 1.0
    assert permutation_p(np.arange(9.0), np.arange(9.0) + 20, seed=0, draws=50) == 1.0


def test_permutation_p_is_that_of_all_deals():
    yes, no = np.array([3.0, 5.0, 5.0, 8.0]), np.array([1.0, 3.0, 4.0, 2.0, 6.0])
    ranks = stats.rankdata(np.concatenate([yes, no]))
    deals = [sum(ranks[list(each)]) for each in itertools.combinations(range(9), 4)]
    exact = np.mean(np.array(deals) >= ranks[:4].sum() - 1e-9)

    assert permutation_p(yes, no, seed=1, draws=20_000) == pytest.approx(
        exact, abs=4 * np.sqrt(exact / 20_000)
    )


def test_permutation_p_follows_the_seed_and_not_the_size_of_blocks(monkeypatch):
    rng = np.random.default_rng(2)
    yes, no = rng.normal(0.5, 1, 10), rng.normal(size=12)
    found = permutation_p(yes, no, seed=3, draws=500)

    assert permutation_p(yes, no, seed=3, draws=500) == found
    assert permutation_p(yes, no, seed=4, draws=500) != found
    monkeypatch.setattr("mlxterp.statistics.significance._NUMBERS_AT_ONCE", 22 * 7)
    assert permutation_p(yes, no, seed=3, draws=500) == found
    monkeypatch.setattr("mlxterp.statistics.significance._NUMBERS_AT_ONCE", 4 * 3)
    assert permutation_p([1.0, 1.0], [1.0, 1.0], seed=0, draws=10) == 1.0
    assert permutation_p([1.0, 1.0], [1.0, 1.0], seed=0, draws=1) == 1.0


def test_permutation_p_rejects_five_percent_of_equal_classes():
    rng = np.random.default_rng(5)
    p = [permutation_p(rng.normal(size=8), rng.normal(size=8), seed=i, draws=199) for i in range(1000)]

    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 1000))


def test_no_draws_no_items_and_scores_that_are_not_finite_are_refused():
    with pytest.raises(StatisticsError, match="0 draws"):
        permutation_p([1.0], [2.0], seed=0, draws=0)
    with pytest.raises(StatisticsError, match="positive has shape"):
        permutation_p([], [2.0], seed=0)
    with pytest.raises(StatisticsError, match="negative: 1 of 1"):
        permutation_p([1.0], [np.nan], seed=0)


def test_few_clusters_get_every_sign_flip_once_with_the_first_sign_kept():
    flips = sign_flips(4, seed=0, draws=8)

    assert len(flips) == len({tuple(each) for each in flips.tolist()}) == 8
    assert flips[0].tolist() == [1.0] * 4
    assert set(flips.ravel()) == {-1.0, 1.0}
    assert len({tuple(each * each[-1]) for each in flips}) == 8


def test_more_flips_than_asked_for_are_drawn_after_the_identity():
    flips = sign_flips(5, seed=0, draws=15)

    assert flips.shape == (16, 5)
    assert flips[0].tolist() == [1.0] * 5
    assert not np.array_equal(flips, sign_flips(5, seed=1, draws=15))
    assert len(sign_flips(5, seed=0, draws=16)) == 16
    assert sign_flips(30, seed=0, draws=4000).mean() == pytest.approx(0.0, abs=0.02)
    with pytest.raises(StatisticsError, match="0 draws"):
        sign_flips(5, seed=0, draws=0)


@pytest.mark.parametrize(("k", "n", "chance"), [(0, 6, 0.5), (5, 6, 0.5), (9, 40, 0.1)])
def test_binomial_p_is_scipys_exact_one_sided_test(k, n, chance):
    expected = stats.binomtest(k, n, chance, alternative="greater").pvalue

    assert binomial_p(k, n, chance) == pytest.approx(expected)


def test_chance_is_one_half_by_default():
    assert binomial_p(8, 8) == pytest.approx(1 / 256)


def test_the_best_of_eleven_has_p_one_in_eleven_and_ties_count_against_it():
    assert p_among_controls(0.9, np.arange(10) / 20) == 1 / 11
    assert p_among_controls(0.5, [0.5, 0.1, 0.7]) == 3 / 4
    assert p_among_controls(2.0, np.zeros(19)) == 0.05


def test_a_value_without_controls_or_beside_nan_is_refused():
    with pytest.raises(StatisticsError, match="controls has shape"):
        p_among_controls(1.0, [])
    with pytest.raises(StatisticsError, match="controls: 1 of 2"):
        p_among_controls(1.0, [0.0, np.nan])
    with pytest.raises(StatisticsError, match="value: 1 of 1"):
        p_among_controls(np.nan, [0.0])
