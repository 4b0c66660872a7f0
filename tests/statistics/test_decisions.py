"""The decision on a claim: each condition with a case on either side of its limit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mlxterp.errors import StatisticsError
from mlxterp.statistics.decisions import (
    Cells,
    Claim,
    Prefixed,
    cells_of,
    gate,
    judge,
    look,
    m_value,
    more_than_all,
    placebo_bar,
    split,
)
from mlxterp.statistics.ratio import ratio_of_means

ALPHA = 0.0025


def _cells(effect: float, spread: float, n: int = 24) -> Cells:
    """n clusters with gap 1, mean exactly `effect` and standard deviation exactly `spread`."""
    z = np.where(np.arange(n) % 2, 1.0, -1.0)
    z[n - n % 2 :] = 0.0
    z /= z.std(ddof=1)
    return Cells(effect + spread * z, np.ones(n), tuple(f"c{i}" for i in range(n)))


def _half(spread: float, n: int = 24, alpha: float = ALPHA) -> float:
    """From the effect to an end of its interval."""
    return float(stats.t.isf(alpha, n - 1)) * spread / math.sqrt(n)


CLAIM = Claim(sesoi=0.1, bar=0.02)


def test_an_effect_is_supported_and_its_mirror_image_refuted():
    up, down = look(_cells(0.3, 0.1), CLAIM, ALPHA), look(_cells(-0.3, 0.1), CLAIM, ALPHA)

    assert (up.outcome, down.outcome) == ("supported", "refuted")
    assert up.missing == down.missing == ()
    assert up.low == pytest.approx(0.3 - _half(0.1))
    assert up.high == pytest.approx(0.3 + _half(0.1))
    assert (down.low, down.high) == (pytest.approx(-up.high), pytest.approx(-up.low))
    assert (up.n, up.alpha) == (24, ALPHA)


def test_a_look_has_the_jackknifes_standard_error_with_its_floor():
    rng = np.random.default_rng(0)
    cells = Cells(rng.normal(0.3, 0.1, 24), rng.uniform(1, 2, 24), tuple("abcdefghijklmnopqrstuvwx"))

    assert look(cells, CLAIM, ALPHA).se == pytest.approx(float(ratio_of_means(cells.change, cells.gap).se))
    assert look(_cells(0.3, 0.0), CLAIM, ALPHA).se == 5e-4


@pytest.mark.parametrize(("sign", "outcome"), [(1, "supported"), (-1, "refuted")])
def test_the_end_of_the_interval_must_be_beyond_half_the_smallest_effect(sign, outcome):
    spread = 0.2
    limit = 0.05 + _half(spread)
    assert limit > 0.1

    assert look(_cells(sign * (limit + 1e-6), spread), CLAIM, ALPHA).outcome == outcome
    short = look(_cells(sign * (limit - 1e-6), spread), CLAIM, ALPHA)
    assert short.outcome == "inconclusive"
    assert short.missing[0].startswith("interval: [")
    assert short.missing[0].endswith(f"is not beyond {sign * 0.05:g}")
    assert len(short.missing) == 2


@pytest.mark.parametrize(("sign", "outcome"), [(1, "supported"), (-1, "refuted")])
def test_the_estimate_must_reach_the_smallest_effect(sign, outcome):
    assert look(_cells(sign * 0.1, 0.0), CLAIM, ALPHA).outcome == outcome
    claim = replace(CLAIM, sesoi=0.5)
    assert look(_cells(sign * 0.5, 0.1), claim, ALPHA).outcome == outcome
    short = look(_cells(sign * 0.499, 0.1), claim, ALPHA)
    assert short.outcome == "inconclusive"
    assert short.missing[0] == f"estimate: {sign * 0.499:g} does not reach {sign * 0.5:g}"


@pytest.mark.parametrize("sign", [1, -1])
def test_the_size_must_exceed_the_placebos_and_they_must_have_been_measured(sign):
    cells = _cells(sign * 0.3, 0.05)

    assert look(cells, replace(CLAIM, bar=0.299999), ALPHA).outcome != "inconclusive"
    assert look(cells, replace(CLAIM, bar=0.300001), ALPHA).missing[0] == "placebo: other sites reach 0.3"
    exact = look(_cells(sign * 0.25, 0.0), replace(CLAIM, bar=0.25), ALPHA)
    assert exact.missing[0] == "placebo: other sites reach 0.25"
    unmeasured = look(cells, replace(CLAIM, bar=None), ALPHA)
    assert unmeasured.outcome == "inconclusive"
    assert unmeasured.missing[0] == "placebo: fewer than 6 were measured"


@pytest.mark.parametrize(("sign", "outcome"), [(1, "supported"), (-1, "refuted")])
def test_the_sign_must_hold_in_every_slice(sign, outcome):
    cells = _cells(sign * 0.3, 0.05)
    with_it, without = _cells(sign * 1e-6, 0.0), _cells(0.0, 0.0)

    assert look(cells, replace(CLAIM, slices={"a": with_it}), ALPHA).outcome == outcome
    against = look(cells, replace(CLAIM, slices={"a": with_it, "b": without}), ALPHA)
    assert against.outcome == "inconclusive"
    assert against.missing[0] == "slice: the sign does not hold in b"


def test_a_slice_is_read_on_the_clusters_of_the_look_and_must_have_some():
    cells = _cells(0.3, 0.05)
    later = Cells(np.ones(2), np.ones(2), ("c30", "c31"))
    mixed = Cells(np.array([-5.0, 1.0]), np.ones(2), ("c30", "c3"))
    without_gap = Cells(np.ones(2), np.array([1.0, -1.0]), ("c1", "c2"))

    assert look(cells, replace(CLAIM, slices={"t": mixed}), ALPHA).outcome == "supported"
    assert (
        look(cells, replace(CLAIM, slices={"t": later}), ALPHA).missing[0]
        == "slice: t has none of these clusters"
    )
    assert look(cells, replace(CLAIM, slices={"t": without_gap}), ALPHA).outcome == "inconclusive"


@pytest.mark.parametrize("effect", [0.0, 0.03, -0.03])
def test_a_null_is_ruled_out_when_both_ends_are_inside_the_smallest_effect(effect):
    spread = (0.1 - abs(effect)) * math.sqrt(24) / float(stats.t.isf(ALPHA, 23))

    assert look(_cells(effect, spread * 0.999), CLAIM, ALPHA).outcome == "ruled_out"
    open_ = look(_cells(effect, spread * 1.001), CLAIM, ALPHA)
    assert open_.outcome == "inconclusive"
    assert open_.missing[-1].startswith("not ruled out: [")
    assert open_.missing[-1].endswith("is not inside ±0.1")


def test_a_decrease_is_supported_below_and_refuted_above():
    claim = replace(CLAIM, direction="decrease")

    assert look(_cells(-0.3, 0.1), claim, ALPHA).outcome == "supported"
    assert look(_cells(0.3, 0.1), claim, ALPHA).outcome == "refuted"
    assert look(_cells(0.0, 0.02), claim, ALPHA).outcome == "ruled_out"


def test_a_claim_of_no_effect_is_supported_inside_and_refuted_on_either_side():
    claim = replace(CLAIM, direction="none")

    assert look(_cells(0.0, 0.02), claim, ALPHA).outcome == "supported"
    assert look(_cells(0.3, 0.1), claim, ALPHA).outcome == "refuted"
    assert look(_cells(-0.3, 0.1), claim, ALPHA).outcome == "refuted"
    assert look(_cells(0.1, 0.2), claim, ALPHA).outcome == "inconclusive"


def test_a_claim_of_either_direction_is_supported_on_both_at_half_the_level():
    claim = replace(CLAIM, direction="either")

    for sign in (1, -1):
        found = look(_cells(sign * 0.3, 0.1), claim, ALPHA)
        assert found.outcome == "supported"
        assert found.alpha == ALPHA / 2
        assert found.high - found.effect == pytest.approx(_half(0.1, alpha=ALPHA / 2))
    assert look(_cells(0.0, 0.02), claim, ALPHA).outcome == "ruled_out"


@pytest.mark.parametrize("direction", ["increase", "either"])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_missing_is_said_of_the_side_the_effect_is_on(direction, sign):
    found = look(_cells(sign * 0.08, 0.3), replace(CLAIM, direction=direction), ALPHA)

    assert any(each.endswith(f"does not reach {sign * 0.1:g}") for each in found.missing)


def test_an_effect_of_exactly_0_is_read_in_the_predicted_direction():
    found = look(_cells(0.0, 0.5), replace(CLAIM, direction="decrease"), ALPHA)

    assert found.missing[1] == "estimate: 0 does not reach -0.1"
    assert look(_cells(0.0, 0.5), CLAIM, ALPHA).missing[1] == "estimate: 0 does not reach 0.1"


def test_the_smallest_detectable_effect_is_half_the_sesoi_plus_both_quantiles():
    found = look(_cells(0.3, 0.1), CLAIM, ALPHA)

    expected = 0.05 + (float(stats.t.isf(ALPHA, 23)) + 1.645) * 0.1 / math.sqrt(24)
    assert found.mde == pytest.approx(expected)


def test_at_the_smallest_detectable_effect_nineteen_of_twenty_are_supported():
    rng, found = np.random.default_rng(1), []
    target = 0.05 + (float(stats.t.isf(ALPHA, 23)) + 1.645) * 0.2 / math.sqrt(24)
    for _ in range(1000):
        cells = Cells(rng.normal(target, 0.2, 24), np.ones(24), tuple(str(i) for i in range(24)))
        found.append(look(cells, CLAIM, ALPHA).outcome == "supported")

    assert np.mean(found) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("alpha", [0.0, 0.5, -0.1, float("nan")])
def test_a_level_that_is_none_is_refused(alpha):
    with pytest.raises(StatisticsError, match="a look at level"):
        look(_cells(0.3, 0.1), CLAIM, alpha)


def test_a_look_takes_two_clusters():
    with pytest.raises(StatisticsError, match="a look at 1 cluster"):
        look(Cells(np.ones(1), np.ones(1), ("a",)), CLAIM, ALPHA)
    assert look(_cells(0.3, 0.0, 2), CLAIM, ALPHA).n == 2


def test_fewer_than_sixteen_clusters_decide_nothing_and_sixteen_do():
    few = judge(_cells(0.5, 0.01, 15), CLAIM, 0.005)

    assert few.outcome == "inconclusive"
    assert few.missing == ("15 independent clusters; a verdict takes 16",)
    assert few.effect == pytest.approx(0.5)
    assert few.low < few.effect < few.high
    assert (few.n, few.alpha) == (15, 0.0025)
    assert few.mde > 0.05
    assert few.se == pytest.approx(0.01 / math.sqrt(15))
    assert judge(_cells(0.5, 0.01, 16), CLAIM, 0.005).outcome == "supported"


def test_the_first_look_is_at_24_clusters_with_half_of_the_level():
    cells = _cells(0.5, 0.1, 60)

    found = judge(cells, CLAIM, 0.005)

    assert (found.outcome, found.n, found.alpha) == ("supported", 24, 0.0025)
    assert found.effect == pytest.approx(float(cells.change[:24].mean()))


def test_an_inconclusive_first_look_is_followed_by_one_at_48_with_the_other_half():
    rng = np.random.default_rng(2)
    change = np.r_[rng.normal(0.1, 0.3, 24), rng.normal(0.9, 0.05, 24), np.full(12, -50.0)]
    cells = Cells(change, np.ones(60), tuple(str(i) for i in range(60)))

    found = judge(cells, CLAIM, 0.005)

    assert (found.outcome, found.n, found.alpha) == ("supported", 48, 0.0025)
    assert judge(Cells(change[:24], np.ones(24), cells.clusters[:24]), CLAIM, 0.005).n == 24
    assert judge(Cells(change[:25], np.ones(25), cells.clusters[:25]), CLAIM, 0.005).n == 25


@pytest.mark.parametrize("sesoi", [0.05, 0.1, 0.2, 0.3, 0.5])
def test_smallest_effects_come_from_a_grid(sesoi):
    assert Claim(sesoi=sesoi).sesoi == sesoi
    with pytest.raises(StatisticsError, match="Choose one of"):
        Claim(sesoi=sesoi * 1.01)


def test_a_direction_that_is_none_and_a_bar_that_is_no_size_are_refused():
    with pytest.raises(StatisticsError, match="direction 'up'"):
        Claim(sesoi=0.1, direction="up")
    for bar in (-0.1, float("nan"), float("inf")):
        with pytest.raises(StatisticsError, match="a placebo bar"):
            Claim(sesoi=0.1, bar=bar)
    assert Claim(sesoi=0.1, bar=0.0).bar == 0.0


def test_cells_hold_one_finite_row_per_cluster():
    with pytest.raises(StatisticsError, match="2 changes, 2 gaps and 1 distinct clusters"):
        Cells(np.ones(2), np.ones(2), ("a", "a"))
    with pytest.raises(StatisticsError, match="2 changes, 1 gaps"):
        Cells(np.ones(2), np.ones(1), ("a", "b"))
    with pytest.raises(StatisticsError, match="1 changes, 1 gaps and 2"):
        Cells(np.ones(1), np.ones(1), ("a", "b"))
    with pytest.raises(StatisticsError, match=r"change: 1 of 2 numbers are not finite, at \(1,\)"):
        Cells(np.array([1.0, np.nan]), np.ones(2), ("a", "b"))
    with pytest.raises(StatisticsError, match="gap: 1 of 2"):
        Cells(np.ones(2), np.array([np.inf, 1.0]), ("a", "b"))
    assert Cells([1, 2], [3, 4], ("a", "b")).change.dtype == np.float64
    assert Cells([1, 2], [3, 4], ("a", "b")).gap.dtype == np.float64


def test_pairs_are_joined_by_cluster_in_order_of_appearance():
    cells = cells_of([1.0, 2.0, 3.0, 6.0], [1.0, 1.0, 3.0, 1.0], ["z", "a", "z", "b"])

    assert cells.clusters == ("z", "a", "b")
    assert cells.change.tolist() == [2.0, 2.0, 6.0]
    assert cells.gap.tolist() == [2.0, 1.0, 1.0]
    assert len(cells) == 3


@pytest.mark.parametrize(
    ("n", "explore", "confirm", "unused"),
    [(24, 8, 16, 0), (56, 8, 48, 0), (71, 8, 48, 15), (72, 24, 48, 0), (90, 24, 48, 18)],
)
def test_the_split_is_by_cluster_in_hashed_order(n, explore, confirm, unused):
    names = [f"c{i}" for i in range(n)]

    found = split([*names, *names], "salt")

    assert (len(found.explore), len(found.confirm), len(found.unused)) == (explore, confirm, unused)
    assert set(found.explore) | set(found.confirm) | set(found.unused) == set(names)
    assert found.reason is None
    assert split(names, "salt") == found
    assert split(names, "other") != found


def test_below_24_clusters_nothing_can_be_confirmed_and_the_split_says_why():
    found = split([f"c{i}" for i in range(23)], "salt")

    assert (len(found.explore), found.confirm, found.unused) == (23, (), ())
    assert found.reason == "needs at least 24 independent clusters, setup.py has 23"


def test_the_placebo_bar_is_the_median_and_three_scaled_deviations():
    assert placebo_bar([0.01, -0.02, 0.03, 0.04, -0.05, 0.06]) == pytest.approx(0.035 + 3 * 1.4826 * 0.015)
    assert placebo_bar(np.full(24, -0.01)) == pytest.approx(0.01)


def test_five_placebos_are_too_few_and_six_enough_and_nan_is_refused():
    assert placebo_bar(np.full(5, 0.01)) is None
    assert placebo_bar(np.full(6, 0.01)) == pytest.approx(0.01)
    with pytest.raises(StatisticsError, match="placebo effects: 1 of 6"):
        placebo_bar([0.1, 0.1, 0.1, 0.1, 0.1, np.nan])


def _others(n=24):
    z = _cells(0.0, 0.1, n).change
    own = np.full(n, 0.5)
    return own, np.stack([0.2 + z, 0.3 - z], axis=1)


def test_a_site_exceeds_all_others_only_if_every_difference_is_beyond_0():
    own, others = _others()
    limit = _half(0.1)

    assert more_than_all(own, others, np.ones(24), ALPHA) == ()
    close = np.stack([own - limit * 1.001, own - limit * 0.999], axis=1) + _cells(0.0, 0.1).change[:, None]
    assert more_than_all(own, close, np.ones(24), ALPHA) == (1,)
    assert more_than_all(own, own[:, None], np.ones(24), ALPHA) == (0,)


def test_a_comparison_takes_sixteen_clusters_and_others():
    own, others = _others(16)

    assert more_than_all(own, others, np.ones(16), ALPHA) == ()
    with pytest.raises(StatisticsError, match="15 clusters; a comparison takes 16"):
        more_than_all(own[:15], others[:15], np.ones(15), ALPHA)
    with pytest.raises(StatisticsError, match=r"Give \[n, m\]"):
        more_than_all(own, others[:, 0], np.ones(16), ALPHA)
    with pytest.raises(StatisticsError, match=r"Give \[n, m\]"):
        more_than_all(own, others[:15], np.ones(16), ALPHA)
    with pytest.raises(StatisticsError, match=r"Give \[n, m\]"):
        more_than_all(own, others[:, :0], np.ones(16), ALPHA)


GAPS = np.r_[np.full(10, 2.0), np.full(10, 4.0)]


def _gate(**changes):
    given = {"gaps": GAPS, "preferred": np.ones(40), "ranks": np.ones(40), "d_vocab": 50_000} | changes
    return gate(**given)


def test_a_behaviour_passes_the_gate():
    found = _gate()

    assert found.passed
    assert found.reasons == ()
    assert found.t == pytest.approx(3 / (GAPS.std(ddof=1) / math.sqrt(20)))
    assert (found.preference, found.rank_share, found.first, found.candidates) == (1.0, 1.0, 10, None)


def test_the_gap_must_be_five_standard_errors_from_0():
    spread = GAPS - GAPS.mean()
    se = spread.std(ddof=1) / math.sqrt(20)

    assert _gate(gaps=spread + 5.001 * se).passed
    low = _gate(gaps=spread + 4.999 * se)
    assert low.reasons == ("the gap is 5.0 standard errors from 0; 5 are needed",)
    assert not _gate(gaps=spread - 9 * se).passed
    assert _gate(gaps=[4.0, 6.0]).t == pytest.approx(5.0)
    assert _gate(gaps=[4.0, 6.0]).passed


def test_gaps_without_any_spread_are_infinitely_far_from_0_unless_they_are_0():
    assert _gate(gaps=np.ones(5)).t == math.inf
    assert not _gate(gaps=-np.ones(5)).passed
    assert _gate(gaps=np.zeros(5)).t == 0.0


def test_four_of_five_runs_must_prefer_their_answer():
    assert _gate(preferred=np.r_[np.ones(32), np.zeros(8)]).passed
    low = _gate(preferred=np.r_[np.ones(31), np.zeros(9)])
    assert low.reasons == ("the answer is preferred in 78 % of runs; 80 % are needed",)


def test_half_of_the_answers_must_be_among_the_first_tokens():
    assert _gate(ranks=np.r_[np.full(20, 10), np.full(20, 11)]).passed
    low = _gate(ranks=np.r_[np.full(19, 10), np.full(21, 11)])
    assert low.reasons == ("the answer is among the first 10 tokens in 48 % of runs; 50 % are needed",)


@pytest.mark.parametrize(
    ("d_vocab", "first"), [(1, 1), (99, 1), (100, 2), (128, 2), (500, 10), (549, 10), (50_000, 10)]
)
def test_a_small_vocabulary_must_have_the_answer_further_in_front(d_vocab, first):
    assert _gate(d_vocab=d_vocab).first == first


def test_half_of_the_unselected_candidates_must_show_it():
    assert _gate(candidates=[1, 1, 0, 0]).passed
    low = _gate(candidates=[1, 0, 0])
    assert low.reasons == ("33 % of unselected candidates show it; 50 % are needed",)
    assert low.candidates == pytest.approx(1 / 3)


def test_the_behaviour_must_survive_an_unrelated_prefix():
    assert _gate().prefixed is None
    assert _gate(prefixed=Prefixed(GAPS, np.r_[np.ones(26), np.zeros(14)])).passed
    few = _gate(prefixed=Prefixed(GAPS, np.r_[np.ones(25), np.zeros(15)]))
    assert few.reasons == (
        "behind an unrelated prefix the answer is preferred in 62 % of runs; 65 % are needed",
    )
    small = _gate(prefixed=Prefixed(GAPS - 2.0, np.ones(40)))
    assert small.prefixed == 1.0
    assert len(small.reasons) == 1
    assert small.reasons[0].startswith("behind an unrelated prefix the gap is 4.4 standard errors from 0")


def test_a_gate_without_runs_or_with_runs_that_do_not_go_together_is_refused():
    for changes, said in [
        ({"gaps": [1.0]}, "gaps has shape"),
        ({"ranks": np.ones(39)}, "40 preferences, 39 ranks"),
        ({"ranks": np.zeros(40)}, "a rank of 0. Count from 1"),
        ({"d_vocab": 0}, "a vocabulary of 0"),
        ({"preferred": []}, "preferred has shape"),
        ({"ranks": []}, "ranks has shape"),
        ({"candidates": []}, "candidates has shape"),
        ({"prefixed": Prefixed(GAPS, [])}, "preferred behind a prefix has shape"),
        ({"prefixed": Prefixed([1.0], [1.0])}, "gaps behind a prefix has shape"),
        ({"gaps": [1.0, np.nan]}, "gaps: 1 of 2"),
    ]:
        with pytest.raises(StatisticsError, match=said):
            _gate(**changes)


def test_the_m_value_is_the_share_of_variations_with_the_sign_and_an_interval_beyond_0():
    effects, low, high = [0.3, 0.2, -0.1, 0.4], [0.1, -0.1, -0.3, 0.0], [0.5, 0.5, 0.1, 0.8]

    assert m_value(effects, low, high, sign=1) == 0.25
    assert m_value(np.negative(effects), np.negative(high), np.negative(low), sign=-1) == 0.25
    with pytest.raises(StatisticsError, match="effects has shape"):
        m_value([], [0.1], [0.2], sign=1)
