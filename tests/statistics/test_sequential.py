"""Alpha wealth: its formula, what discoveries earn, the cap, and the share of false findings over a night."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlxterp.errors import StatisticsError
from mlxterp.statistics.sequential import LEAST_LEVEL, JudgedClaim, level, level_after, spending


def test_spending_is_the_stated_series():
    for j in (1, 2, 3, 10, 500):
        expected = 0.07720838 * math.log(max(j, 2)) / (j * math.exp(math.sqrt(math.log(j))))
        assert spending(j) == pytest.approx(expected, rel=1e-14)
    assert spending(1) == pytest.approx(0.07720838 * math.log(2))


def test_spending_never_adds_up_to_more_than_one():
    parts = [spending(j) for j in range(1, 200_001)]
    u = math.sqrt(math.log(200_000))
    rest = 2 * 0.07720838 * (u**3 + 3 * u**2 + 6 * u + 6) * math.exp(-u)  # the integral from there on

    assert 0.97 < sum(parts) + rest < 1.0
    assert min(parts) > 0


def test_the_first_claim_gets_its_share_of_the_initial_wealth():
    assert level(1) == pytest.approx(0.025 * spending(1))
    assert level(7) == pytest.approx(0.025 * spending(7))
    assert level(7, initial=0.01) == pytest.approx(0.01 * spending(7))


def test_the_first_discovery_earns_fdr_less_the_initial_wealth_and_later_ones_all_of_it():
    uncapped = {"cap": 1.0}

    assert level(5, [2], **uncapped) == pytest.approx(0.025 * spending(5) + 0.025 * spending(3))
    assert level(9, [2, 4, 8], **uncapped) == pytest.approx(
        0.025 * spending(9) + 0.025 * spending(7) + 0.05 * spending(5) + 0.05 * spending(1)
    )
    assert level(9, [2, 4], fdr=0.1, **uncapped) == pytest.approx(
        0.025 * spending(9) + 0.075 * spending(7) + 0.1 * spending(5)
    )


def test_a_discovery_earns_from_the_next_claim_on():
    assert level(3, [3]) == level(3)
    assert level(3, [3, 4]) == level(3)
    assert level(4, [3]) > level(4)


def test_no_level_exceeds_the_cap():
    every = list(range(1, 40))

    assert level(40, every, cap=1.0) > 0.005
    assert level(40, every) == 0.005
    assert level(40, every, cap=0.001) == 0.001


def test_after_a_thousand_fruitless_claims_the_level_is_about_one_in_a_million():
    assert 1e-7 < level(1000) < 1e-5


@pytest.mark.parametrize(("t", "discoveries"), [(0, []), (3, [0]), (5, [3, 2]), (5, [2, 2])])
def test_claims_and_discoveries_that_are_not_numbered_in_order_are_refused(t, discoveries):
    with pytest.raises(StatisticsError, match="Claims are numbered from 1, and discoveries ascend"):
        level(t, discoveries)
    assert level(1, [1]) == level(1)


def test_over_a_night_of_nulls_at_most_5_percent_of_nights_hold_a_false_finding():
    rng, nights = np.random.default_rng(0), []
    for _ in range(1000):
        found: list[int] = []
        for t, p in enumerate(rng.uniform(size=100), start=1):
            if p <= level(t, found):
                found.append(t)
        nights.append(bool(found))

    assert np.mean(nights) <= 0.05


def test_with_true_claims_among_nulls_the_share_of_false_findings_stays_below_5_percent():
    rng, shares, power = np.random.default_rng(1), [], []
    for _ in range(200):
        real = rng.uniform(size=150) < 0.3
        p = np.where(real, rng.beta(0.05, 30, size=150), rng.uniform(size=150))
        found: list[int] = []
        for t in range(1, 151):
            if p[t - 1] <= level(t, found):
                found.append(t)
        hits = real[np.array(found, dtype=int) - 1]
        shares.append(float((~hits).mean()) if len(found) else 0.0)
        power.append(hits.sum() / real.sum())

    assert np.mean(shares) <= 0.05
    assert np.mean(power) > 0.5


def _judged(*claims):
    return [JudgedClaim(frozenset(sites.split()), told, told == "supported") for sites, told in claims]


def test_a_claim_about_other_sites_is_judged_at_the_level_of_lord():
    judged = _judged(("a", "supported"), ("b", "inconclusive"), ("c", "supported"), ("d", "ruled_out"))

    assert level_after([], ["a"]) == level(1)
    assert level_after(judged, ["e"]) == level(5, [1, 3])


def test_a_set_of_what_was_left_open_pays_for_how_rare_that_is():
    """Two of eight were left open: two bits for each of them in the set."""
    judged = _judged(
        *[(f"r{i}", "ruled_out") for i in range(6)], ("a", "inconclusive"), ("b", "inconclusive")
    )

    assert level_after(judged, ["a", "b"]) == pytest.approx(level(9) / 2**4)
    assert level_after(judged, ["a", "other"]) == pytest.approx(level(9) / 2**2)
    assert level_after(judged, ["r0"]) == pytest.approx(level(9) * 6 / 8)


def test_a_set_of_what_was_found_pays_nothing_where_all_was_found():
    judged = _judged(("a", "supported"), ("b", "supported"))

    assert level_after(judged, ["a", "b"]) == level(3)


def test_a_discovery_lends_nothing_to_claims_that_share_a_site_with_it_and_earns_once():
    judged = _judged(("a", "supported"), ("a b", "supported"), ("c", "supported"))

    assert level_after(judged, ["e"]) == level(4, [1, 3])
    assert level_after(judged, ["c"]) == level(4, [1])
    assert level_after(judged, ["b"]) == level(4, [1, 3])


def test_a_claim_that_pays_for_everything_still_has_a_level():
    judged = _judged(*[(f"a {i}", "ruled_out" if i % 2 else "inconclusive") for i in range(400)])

    assert level_after(judged, ["a"]) == LEAST_LEVEL
