"""Corrections for the number of sites: against scipy or by hand, and their error over whole sweeps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mlxterp.errors import StatisticsError
from mlxterp.statistics import multiple
from mlxterp.statistics.clusters import halves
from mlxterp.statistics.multiple import benjamini_hochberg, confirm_winners, holm, max_t
from mlxterp.statistics.ratio import ratio_of_means
from tests.statistics.simulate import NOISE


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_never_descends():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0]


def test_benjamini_hochberg_is_scipys():
    p = np.random.default_rng(0).uniform(size=40) ** 2

    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    assert benjamini_hochberg([0.01, 0.02, 0.9]).tolist() == pytest.approx([0.03, 0.03, 0.9])


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_what_is_no_probability_is_refused(adjust):
    for p, said in [
        ([], "shape"),
        ([0.5, 1.01], "Give probabilities"),
        ([-0.01], "Give prob"),
        ([np.nan], "1 of 1"),
    ]:
        with pytest.raises(StatisticsError, match=said):
            adjust(p)
    assert adjust([0.0, 1.0]).tolist() == [0.0, 1.0]


def _sweep(rng, n, sites, kind="normal", effect=0.0):
    gap = 3.0 + 0.75 * rng.normal(size=n)
    return effect * gap[:, None] + 0.75 * NOISE[kind](rng, (n, sites)), gap


def test_max_t_of_one_site_is_the_exact_sign_flip_test():
    change, gap = np.array([1.0, 2.0, 0.5, 1.5, -0.25, 0.75]), np.ones(6)
    signs = np.array(np.meshgrid(*[[1.0, -1.0]] * 6)).reshape(6, -1).T
    t = [abs(stats.ttest_1samp(each * change, 0.0).statistic) for each in signs]
    exact = np.mean(np.array(t) >= t[0] - 1e-9)

    found = max_t(change[:, None], gap)

    assert found.p.tolist() == pytest.approx([exact])
    assert (found.n, found.sites, found.level) == (6, 1, 0.95)


def test_max_t_intervals_are_the_effect_and_the_critical_t_of_flipped_residuals():
    rng = np.random.default_rng(1)
    change, gap = rng.normal(0.5, 1, size=(6, 3)), np.ones(6)
    residual = change - change.mean(axis=0)
    signs = np.array(np.meshgrid(*[[1.0, -1.0]] * 6)).reshape(6, -1).T
    largest = sorted(
        np.abs(stats.ttest_1samp(each[:, None] * residual, 0.0).statistic).max() for each in signs
    )
    critical = largest[int(np.ceil(0.95 * len(largest))) - 1]

    found = max_t(change, gap)

    se = ratio_of_means(change, gap).se
    assert found.effect == pytest.approx(change.mean(axis=0))
    assert found.high - found.effect == pytest.approx(critical * se)
    assert found.effect - found.low == pytest.approx(critical * se)


def test_four_and_five_clusters_have_bonferronis_intervals_and_say_so_and_six_those_of_flips():
    rng = np.random.default_rng(2)
    change, gap = _sweep(rng, 6, 4)

    five = max_t(change[:5], gap[:5])

    alone = ratio_of_means(change[:5], gap[:5], level=1 - 0.05 / 4)
    assert five.low == pytest.approx(alone.low)
    assert five.high == pytest.approx(alone.high)
    t = stats.ttest_1samp(change[:5] / gap[:5].mean(), 0.0).statistic
    assert five.p == pytest.approx(np.minimum(1.0, 4 * 2 * stats.t.sf(np.abs(t), 4)))
    few, skew, searched = five.cautions
    assert few == (
        "5 clusters give 16 sign flips, too few for intervals over 4 sites at once: these are Student's with "
        "Bonferroni's correction, very wide. Give at least 6 clusters."
    )
    assert skew.startswith("5 clusters: the interval assumes that effects are not skewed")
    assert "sweeps without any real one have a site that looks established" in searched
    six = max_t(change, gap)
    assert "sign flips" not in " ".join(six.cautions)
    assert six.p * 32 == pytest.approx(np.rint(six.p * 32))


def test_three_clusters_give_no_simultaneous_interval_and_say_why_and_four_give_one():
    change, gap = _sweep(np.random.default_rng(2), 4, 3)

    three = max_t(change[:3], gap[:3])

    assert (three.low, three.high) == (None, None)
    assert three.cautions == (
        "3 clusters give 4 sign flips, too few for intervals over 3 sites at once. Give at least 4 clusters.",
    )
    assert not three.beyond(0.0).any()
    assert max_t(change, gap).low is not None
    assert max_t(change[:3], gap[:3], level=0.75).low is not None


def test_sites_beyond_a_size_are_so_in_either_direction():
    rng = np.random.default_rng(3)
    gap = np.ones(24)
    change = np.array([0.5, -0.5, 0.0, 0.2]) + 0.01 * rng.normal(size=(24, 4))

    found = max_t(change, gap)

    assert found.beyond(0.3).tolist() == [True, True, False, False]
    assert found.beyond(0.6).tolist() == [False] * 4


def test_a_site_without_spread_is_held_by_the_floor_of_the_standard_error():
    change = np.repeat([[1e-4, 0.0, 0.5]], 8, axis=0)

    found = max_t(change, np.ones(8))

    assert found.p[1] == 1.0
    assert found.p[2] == 1 / 128
    assert found.high[0] - found.effect[0] >= 0.0
    assert np.isfinite(found.low).all()


def test_many_sites_are_searched_in_blocks_with_the_same_flips(monkeypatch):
    rng = np.random.default_rng(4)
    change, gap = _sweep(rng, 10, 50, effect=0.1)
    whole = max_t(change, gap)

    monkeypatch.setattr(multiple, "_SITES_AT_ONCE", 7)

    parts = max_t(change, gap)
    assert parts.p.tolist() == whole.p.tolist()
    assert parts.low == pytest.approx(whole.low)


def test_the_seed_decides_the_flips_only_where_there_are_too_many_of_them():
    rng = np.random.default_rng(5)
    change, gap = _sweep(rng, 20, 5)

    assert max_t(change, gap, seed=1).p.tolist() == max_t(change, gap, seed=1).p.tolist()
    assert max_t(change, gap, seed=1).p.tolist() != max_t(change, gap, seed=2).p.tolist()
    assert max_t(change[:8], gap[:8], seed=1).p.tolist() == max_t(change[:8], gap[:8], seed=2).p.tolist()


def test_the_seed_is_0_where_none_is_given():
    change, gap = _sweep(np.random.default_rng(5), 20, 5)

    assert max_t(change, gap).p.tolist() == max_t(change, gap, seed=0).p.tolist()


def test_effects_are_shares_of_the_gap_whatever_its_unit_also_where_the_floor_holds():
    rng = np.random.default_rng(10)
    change = 3e-4 * rng.normal(size=(8, 3)) + 2e-4

    found, thrice = (max_t(unit * change, unit * np.ones(8)) for unit in (1.0, 3.0))

    assert thrice.p.tolist() == found.p.tolist()
    assert thrice.low == pytest.approx(found.low)
    assert ((found.p > 1 / 128) & (found.p < 1)).any()


def test_couples_are_one_cluster_in_a_sweep_too():
    rng = np.random.default_rng(6)
    change, gap = _sweep(rng, 6, 3)

    doubled = max_t(np.repeat(change, 2, axis=0), np.repeat(gap, 2), clusters=np.repeat(np.arange(6), 2))

    assert doubled.n == 6
    assert doubled.p.tolist() == max_t(change, gap).p.tolist()


def test_one_cluster_or_a_single_axis_is_refused():
    with pytest.raises(StatisticsError, match="at least two clusters"):
        max_t([[1.0, 2.0]], [1.0])
    with pytest.raises(StatisticsError, match=r"give \[clusters, sites\]"):
        max_t([1.0, 2.0], [1.0, 1.0])


def test_skewed_effects_of_a_search_are_cautioned_and_others_are_not():
    rng = np.random.default_rng(7)
    change, gap = _sweep(rng, 24, 36, "lognormal")

    skewed, searched = max_t(change, gap).cautions
    assert "effects are skewed over 24 clusters" in skewed
    assert searched.startswith("If effects are skewed, 8 to 53 % of sweeps without any real one have a site")
    assert max_t(change[:15], gap[:15]).cautions[1] == searched
    assert max_t(np.linspace(-1, 1, 24)[:, None] * np.ones(3), np.ones(24)).cautions == ()
    assert max_t(np.r_[np.zeros(23), 1e-4][:, None], np.ones(24)).cautions == ()


@pytest.mark.parametrize("n", [4, 5, 6, 8, 16, 24])
@pytest.mark.parametrize("kind", ["normal", "t3"])
def test_without_any_effect_the_best_of_36_heads_is_called_one_in_at_most_5_percent_of_sweeps(kind, n):
    rng, best, missed = np.random.default_rng([8, n]), [], []
    for i in range(600):
        change, gap = _sweep(rng, n, 36, kind)
        found = max_t(change, gap, draws=499, seed=i)
        best.append(found.p.min() <= 0.05)
        missed.append(found.beyond(0.0).any())

    limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)
    assert np.mean(best) <= limit
    assert np.mean(missed) <= limit


def test_effects_of_all_sites_are_held_at_once_in_95_percent_of_sweeps():
    rng, missed = np.random.default_rng(9), []
    truth = np.linspace(-1, 1, 36)
    for i in range(600):
        gap = 3.0 + 0.75 * rng.normal(size=12)
        found = max_t(truth * gap[:, None] + rng.normal(size=(12, 36)), gap, draws=499, seed=i)
        missed.append(((found.low > truth) | (found.high < truth)).any())

    assert np.mean(missed) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)


def test_winners_are_chosen_on_one_half_and_measured_on_the_other_with_their_number_corrected():
    rng = np.random.default_rng(10)
    change, gap = _sweep(rng, 20, 30)
    change[:, 4] += 3.0 * gap
    change[:, 7] -= 2.0 * gap

    found = confirm_winners(change, gap, winners=2, seed=3)

    search, confirm = halves(np.arange(20), 3)
    alone = ratio_of_means(change[np.ix_(confirm, [4, 7])], gap[confirm], level=0.975)
    assert found.chosen.tolist() == [4, 7]
    assert found.searched == pytest.approx(ratio_of_means(change[search], gap[search]).effect[[4, 7]])
    assert found.confirmed.effect == pytest.approx(alone.effect)
    assert found.confirmed.low == pytest.approx(alone.low)
    assert found.sites == 30


def test_a_winner_shrinks_towards_the_truth_where_it_was_not_chosen():
    rng, searched, confirmed, held = np.random.default_rng(11), [], [], []
    for i in range(400):
        change, gap = _sweep(rng, 16, 36)
        found = confirm_winners(change, gap, winners=1, seed=i)
        sign = np.sign(found.searched[0])
        searched.append(sign * found.searched[0])
        confirmed.append(sign * found.confirmed.effect[0])
        held.append(found.confirmed.low[0] <= 0 <= found.confirmed.high[0])

    assert np.mean(searched) > 0.15
    assert abs(np.mean(confirmed)) < 4 * np.std(confirmed) / 20
    assert np.mean(held) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 400)


def test_clusters_stay_together_when_winners_are_confirmed():
    rng = np.random.default_rng(12)
    change, gap = _sweep(rng, 16, 5)

    found = confirm_winners(change, gap, winners=5, clusters=np.repeat(np.arange(8), 2))

    assert found.confirmed.n == 4


@pytest.mark.parametrize("winners", [0, 6])
def test_no_winners_or_more_than_there_are_sites_are_refused(winners):
    with pytest.raises(StatisticsError, match=f"{winners} winners among changes"):
        confirm_winners(np.ones((8, 5)), np.ones(8), winners=winners)
    with pytest.raises(StatisticsError, match="1 winners among changes"):
        confirm_winners(np.ones(8), np.ones(8), winners=1)


def test_max_t_of_many_sites_is_the_largest_t_over_them_under_every_flip():
    rng = np.random.default_rng(13)
    change = rng.normal(size=(7, 4)) * [0.1, 1.0, 5.0, 20.0] + [0.05, 1.0, 0.0, 8.0]
    signs = np.array(np.meshgrid(*[[1.0, -1.0]] * 7)).reshape(7, -1).T
    t = np.array([np.abs(stats.ttest_1samp(each[:, None] * change, 0.0).statistic) for each in signs])
    own = np.abs(stats.ttest_1samp(change, 0.0).statistic)
    exact = [(t.max(axis=1) >= each * (1 - 1e-9)).mean() for each in own]

    assert max_t(change, np.full(7, 2.0)).p.tolist() == pytest.approx(exact)


def test_the_floor_is_in_units_of_the_effect_whatever_the_size_of_the_gap():
    rng = np.random.default_rng(14)
    change = rng.normal(0.001, 0.002, size=(8, 3))

    small, large = max_t(change, np.full(8, 2.0)), max_t(change * 100, np.full(8, 200.0))

    assert small.p.tolist() == large.p.tolist()
    assert small.high == pytest.approx(large.high)
    assert max_t(change * 100, np.full(8, 2.0)).p.min() < small.p.min()


def test_a_search_without_intervals_says_all_else():
    found = max_t([[1.0, 2.0], [3.0, 4.0]], [1.0, 1.0], level=0.9)

    assert found.effect.tolist() == [2.0, 3.0]
    assert (found.n, found.sites, found.level) == (2, 2, 0.9)
    assert found.beyond(0.0).dtype == bool


def test_winners_of_unequal_clusters_are_chosen_by_cluster():
    change, gap = np.zeros((9, 2)), np.ones(9)
    clusters = np.array([0, 0, 0, 0, 0, 0, 1, 2, 3])
    for seed in range(20):
        if 0 in clusters[halves(clusters, seed)[0]]:
            break
    change[clusters == 0] = [1.0, 0.9]
    change[clusters != 0] = [0.0, 0.9]

    assert confirm_winners(change, gap, winners=1, clusters=clusters, seed=seed).chosen.tolist() == [1]


def test_equal_sites_are_ranked_in_their_order():
    found = confirm_winners(np.ones((8, 40)), np.ones(8), winners=40)

    assert found.chosen.tolist() == list(range(40))


def test_an_interval_for_all_sites_is_never_narrower_than_that_of_one():
    change = np.repeat([[0.5, 1.0, 0.0]], 8, axis=0) + 1e-5 * np.random.default_rng(15).normal(size=(8, 3))

    found = max_t(change, np.ones(8))

    alone = ratio_of_means(change, np.ones(8))
    assert found.low == pytest.approx(alone.low)
    assert found.high == pytest.approx(alone.high)


def test_there_are_4999_flips_and_the_identity_unless_others_are_asked_for():
    change, gap = _sweep(np.random.default_rng(16), 20, 3)

    p = max_t(change, gap).p
    assert p * 5000 == pytest.approx(np.rint(p * 5000), abs=1e-9)
    assert p.tolist() == max_t(change, gap, draws=4999).p.tolist()
