"""Effects of a dataset: by hand on small numbers, by cluster, and what a result says of its interval."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from mlxterp.errors import StatisticsError
from mlxterp.statistics.clusters import halves
from mlxterp.statistics.effects import effects, strongest_elsewhere
from mlxterp.statistics.multiple import confirm_winners, max_t
from mlxterp.statistics.ratio import ratio_of_means

ONE, ZERO = np.array([3.0, 1.0]), np.array([1.0, 0.0])


def test_the_effect_is_the_ratio_of_means_and_each_example_has_its_own():
    found = effects(np.array([[2.0], [1.0]]), one=ONE, zero=ZERO)

    assert found.effects[0] == pytest.approx((1.5 - 0.5) / (2.0 - 0.5))
    assert found.per_example[:, 0].tolist() == [0.5, 1.0]


def test_an_example_without_a_gap_of_its_own_has_no_effect_of_its_own():
    found = effects(np.array([[2.0], [1.0]]), one=np.array([3.0, 1.0]), zero=np.array([1.0, 1.0]))

    assert np.isnan(found.per_example[1, 0])
    assert found.effects[0] == pytest.approx(0.5)
    assert "rests on it alone" in found.cautions[0]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_than_four_examples_have_no_interval_and_say_why(n):
    found = effects(np.full((n, 1), 2.0), one=np.full(n, 3.0), zero=np.ones(n))

    assert (found.low, found.high, found.clusters) == (None, None, n)
    assert found.cautions[0].startswith(f"No interval: {n} independent cluster")
    assert found.facts() == {"clusters": n, "intervals": found.cautions[0]}


def test_the_interval_is_that_of_the_ratio_of_means_in_the_shape_of_the_effects():
    rng = np.random.default_rng(1)
    values, one, zero = rng.normal(0.5, 0.2, size=(20, 3, 2)), rng.normal(3, 0.1, 20), rng.normal(0, 0.1, 20)

    found = effects(values, one=one, zero=zero)

    expected = ratio_of_means(values - zero[:, None, None], one - zero)
    assert found.low.shape == (3, 2)
    assert found.low == pytest.approx(expected.low)
    assert found.high == pytest.approx(expected.high)


def test_a_couple_in_both_directions_counts_once():
    rng = np.random.default_rng(2)
    values = np.repeat(rng.normal(size=(4, 2)), 2, axis=0)
    couples = np.repeat(np.arange(4), 2)

    found = effects(values, one=np.ones(8), zero=np.zeros(8), clusters=couples)

    assert found.clusters == 4
    assert found.low == pytest.approx(effects(values[::2], one=np.ones(4), zero=np.zeros(4)).low)


def test_three_couples_have_no_interval_however_many_pairs_they_make():
    found = effects(np.ones((6, 1)), one=np.full(6, 2.0), zero=np.zeros(6), clusters=[0, 0, 1, 1, 2, 2])

    assert found.low is None
    assert found.per_example.shape == (6, 1)


def test_an_effect_that_is_not_finite_stays_so_and_leaves_the_others_as_they_are():
    values = np.random.default_rng(3).normal(size=(5, 3))
    broken = values.copy()
    broken[2, 1] = np.nan

    found = effects(broken, one=np.ones(5), zero=np.zeros(5))

    assert np.isnan([found.effects[1], found.low[1], found.high[1]]).all()
    assert found.low[[0, 2]] == pytest.approx(effects(values, one=np.ones(5), zero=np.zeros(5)).low[[0, 2]])
    assert found.cautions[-1] == "1 of 3 effects are not finite numbers."


def test_baselines_that_are_not_finite_or_leave_no_gap_are_refused():
    with pytest.raises(StatisticsError, match="the run that counts as 1: 1 of 2"):
        effects(np.ones((2, 1)), one=[1.0, np.nan], zero=[0.0, 0.0])
    with pytest.raises(StatisticsError, match="the run that counts as 0: 1 of 2"):
        effects(np.ones((2, 1)), one=[1.0, 1.0], zero=[0.0, np.inf])
    with pytest.raises(StatisticsError, match="gaps add up to 0"):
        effects(np.ones((2, 1)), one=[1.0, 1.0], zero=[1.0, 1.0])


def test_the_seed_of_earlier_versions_changes_nothing():
    values = np.random.default_rng(4).normal(size=(6, 2))
    first, other = (effects(values, one=np.ones(6), zero=np.zeros(6), seed=s).low for s in (0, 1))

    assert np.array_equal(first, other)


def _searched(n, sites=6, seed=5):
    rng = np.random.default_rng(seed)
    one, zero = rng.normal(3, 0.3, n), rng.normal(0, 0.3, n)
    shares = np.linspace(0.9, -0.1, sites)
    values = zero[:, None] + shares * (one - zero)[:, None] + 0.3 * rng.normal(size=(n, sites))
    return values, one, zero


def test_a_search_has_intervals_for_all_sites_at_once_in_the_shape_of_the_effects():
    values, one, zero = _searched(12)

    found = effects(values.reshape(12, 2, 3), one=one, zero=zero, search=True)

    at_once = max_t(values - zero[:, None], one - zero)
    assert found.search.low == pytest.approx(at_once.low.reshape(2, 3))
    assert found.search.high == pytest.approx(at_once.high.reshape(2, 3))
    assert (found.search.low < found.low).all()
    assert effects(values, one=one, zero=zero).search is None


def test_winners_of_a_search_are_measured_on_the_clusters_that_did_not_choose_them():
    values, one, zero = _searched(10)
    couples = np.repeat(np.arange(10), 2)

    found = effects(
        np.repeat(values, 2, axis=0),
        one=np.repeat(one, 2),
        zero=np.repeat(zero, 2),
        clusters=couples,
        search=True,
        seed=3,
    ).search

    again = confirm_winners(values - zero[:, None], one - zero, winners=5, seed=3)
    assert [each.site for each in found.winners] == again.chosen.tolist()
    assert [each.searched for each in found.winners] == pytest.approx(again.searched.tolist())
    assert [each.effect for each in found.winners] == pytest.approx(again.confirmed.effect.tolist())
    assert [each.low for each in found.winners] == pytest.approx(again.confirmed.low.tolist())
    assert [each.high for each in found.winners] == pytest.approx(again.confirmed.high.tolist())
    assert found.chosen_on == tuple(halves(couples, 3)[0].tolist())


def test_the_strongest_elsewhere_are_the_winners_of_a_search_without_its_intervals():
    values, one, zero = _searched(10)
    one, zero = one + 2.0, zero + 2.0  # the gap is their difference, wherever the baselines lie
    values = values + 2.0

    found = effects(values, one=one, zero=zero, search=True, seed=3).search

    assert len(found.winners) == 5
    winners, chosen_on = strongest_elsewhere(values, one=one, zero=zero, seed=3)
    assert [astuple(each) for each in winners] == [pytest.approx(astuple(each)) for each in found.winners]
    assert chosen_on == found.chosen_on


def test_one_value_that_is_not_finite_leaves_no_strongest_elsewhere():
    values, one, zero = _searched(10)
    values[3, 2] = np.nan

    assert strongest_elsewhere(values, one=one, zero=zero) == ((), ())


def test_seven_clusters_measure_no_winner_again_and_eight_do():
    values, one, zero = _searched(8)

    seven = effects(values[:7], one=one[:7], zero=zero[:7], search=True).search
    eight = effects(values, one=one, zero=zero, search=True).search

    assert (seven.winners, seven.chosen_on) == ((), ())
    assert (len(eight.winners), len(eight.chosen_on)) == (5, 4)


def test_three_clusters_say_nothing_of_a_search_and_four_do():
    values, one, zero = _searched(4)

    assert effects(values[:3], one=one[:3], zero=zero[:3], search=True).search is None
    assert effects(values, one=one, zero=zero, search=True).search.low.shape == (6,)


def test_winners_are_sites_of_the_whole_also_where_some_are_not_finite_and_never_without_an_effect():
    values, one, zero = _searched(8)
    values[:, 0], values[:, 2] = np.nan, zero

    found = effects(values, one=one, zero=zero, search=True).search

    assert {each.site for each in found.winners} == {1, 3, 4, 5}
    assert np.isnan([found.low[0], found.high[0]]).all()


def test_halves_whose_gaps_point_the_other_way_measure_no_winners_again():
    values, one, zero = _searched(8)
    search, _ = halves(np.arange(8), 0)
    one[search] = zero[search] - 0.5

    assert effects(values, one=one, zero=zero, search=True, seed=0).search.winners == ()


def test_halves_whose_gaps_add_up_to_0_measure_no_winners_again():
    values, one, zero = _searched(8)
    _, confirm = halves(np.arange(8), 0)
    one, zero = np.full(8, 1.0), np.zeros(8)
    one[confirm] = [1.0, -1.0, 1.0, -1.0]

    assert effects(values, one=one, zero=zero, search=True, seed=0).search.winners == ()


def test_what_a_search_does_not_say_otherwise_is_chosen_by_seed_0():
    values, one, zero = _searched(8)
    options = {"one": one, "zero": zero, "search": True}
    unsaid, said = effects(values, **options).search, effects(values, **options, seed=0).search

    again = confirm_winners(values - zero[:, None], one - zero, winners=2)
    assert unsaid.chosen_on == said.chosen_on
    assert again.searched.tolist() == [winner.searched for winner in unsaid.winners[:2]]


def test_a_site_without_an_effect_where_winners_are_chosen_is_none():
    values, one, zero = _searched(8, sites=3)
    search, _ = halves(np.arange(8), 0)
    values[search, 1] = zero[search]

    found = effects(values, one=one, zero=zero, search=True).search

    assert {each.site for each in found.winners} == {0, 2}


def test_winners_do_not_depend_on_the_units_of_the_metric():
    values, one, zero = _searched(8)

    found = effects(values, one=one, zero=zero, search=True).search
    small = effects(values / 100, one=one / 100, zero=zero / 100, search=True).search

    assert [each.site for each in small.winners] == [each.site for each in found.winners]
    assert [each.effect for each in small.winners] == pytest.approx([each.effect for each in found.winners])
