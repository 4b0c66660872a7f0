"""Intervals of rates, accuracies, areas and sums: by hand or against scipy, at their ends, and coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from mlxterp.errors import StatisticsError
from mlxterp.statistics.intervals import (
    Counts,
    auroc,
    average_ranks,
    balanced_accuracy,
    exact_rate,
    of_sums,
    probability_of_accuracy,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 4), (1, 7), (5, 10), (10, 10), (37, 90)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_rates_have_scipys_wilson_interval(k, n, level):
    expected = stats.binomtest(k, n).proportion_ci(level, method="wilson")

    found = wilson(k, n, level=level)

    assert found.value == k / n
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_a_rate_of_all_or_nothing_has_an_interval_that_ends_there():
    assert wilson(0, 9).low == 0.0
    assert wilson(9, 9).high == 1.0
    assert exact_rate(0, 9).low == 0.0
    assert exact_rate(9, 9).high == 1.0


@pytest.mark.parametrize(("k", "n"), [(1, 1), (0, 4), (1, 7), (5, 10), (10, 10), (2, 250)])
def test_exact_rates_have_scipys_clopper_pearson_interval(k, n):
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="exact")

    found = exact_rate(k, n)

    assert found.value == k / n
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert exact_rate(k, n, level=0.5).high <= found.high


@pytest.mark.parametrize("interval", [wilson, exact_rate])
@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_a_rate_without_trials_or_beyond_them_is_refused(interval, k, n):
    with pytest.raises(StatisticsError, match=f"{k} successes in {n} trials"):
        interval(k, n)


def test_balanced_accuracy_combines_the_distances_of_two_exact_intervals():
    found = balanced_accuracy(Counts(8, 2, 15, 5))

    yes, no = exact_rate(8, 10), exact_rate(15, 20)
    assert found.value == pytest.approx((0.8 + 0.75) / 2)
    assert found.low == pytest.approx(found.value - np.hypot(0.8 - yes.low, 0.75 - no.low) / 2)
    assert found.high == pytest.approx(found.value + np.hypot(yes.high - 0.8, no.high - 0.75) / 2)
    assert balanced_accuracy(Counts(8, 2, 15, 5), level=0.8).low > found.low


def test_a_class_without_items_counts_one_half_and_says_nothing_of_its_rate():
    found = balanced_accuracy(Counts(1000, 0, 0, 0))

    assert found.value == 0.75
    assert found.low == pytest.approx(0.5, abs=1e-4)
    assert found.high == pytest.approx(1.0, abs=1e-12)
    assert balanced_accuracy(Counts(0, 0, 9, 1)).value == pytest.approx(0.7)
    assert balanced_accuracy(Counts(0, 0, 0, 0)).value == 0.5
    low = balanced_accuracy(Counts(0, 0, 1, 9))
    assert low.high == pytest.approx(0.3 + np.hypot(0.5, exact_rate(1, 10).high - 0.1) / 2)


def test_equal_counts_have_the_interval_of_their_rate():
    yes, no = exact_rate(5, 10), exact_rate(8, 10)

    found = balanced_accuracy(Counts(5, 5, 8, 2))

    assert found.low == pytest.approx(found.value - np.hypot(0.5 - yes.low, 0.8 - no.low) / 2)


def test_balanced_accuracy_stays_between_0_and_1():
    assert balanced_accuracy(Counts(3, 0, 3, 0)).high == 1.0
    assert balanced_accuracy(Counts(0, 3, 0, 3)).low == 0.0


@pytest.mark.parametrize("counts", [(-1, 1, 1, 1), (1, 1, 1, -1)])
def test_negative_counts_are_refused(counts):
    with pytest.raises(StatisticsError, match="a count is 0 or more"):
        balanced_accuracy(Counts(*counts))
    with pytest.raises(StatisticsError, match="a count is 0 or more"):
        probability_of_accuracy(Counts(*counts), 0.75)


def _held(m, n, rates):
    """The probability that the interval holds the truth, exactly, for every pair of these rates."""
    found = np.array(
        [[balanced_accuracy(Counts(i, m - i, j, n - j)) for j in range(n + 1)] for i in range(m + 1)]
    )
    for one, other in itertools.product(rates, rates):
        weights = np.outer(
            stats.binom.pmf(np.arange(m + 1), m, one), stats.binom.pmf(np.arange(n + 1), n, other)
        )
        truth = (one + other) / 2
        inside = (found[..., 1] - 1e-12 <= truth) & (truth <= found[..., 2] + 1e-12)
        yield float((weights * inside).sum())


RATES = [0.5, 0.6, 0.7, 0.8, 0.9, 0.94, 0.96, 0.98, 0.99]


@pytest.mark.parametrize(("m", "n", "least"), [(5, 5, 0.92), (10, 10, 0.93), (20, 20, 0.93), (10, 40, 0.93)])
def test_balanced_accuracy_is_covered_at_every_pair_of_rates(m, n, least):
    held = list(_held(m, n, RATES))

    assert min(held) >= least
    assert np.mean(held) >= 0.945


@pytest.mark.parametrize(
    "counts",
    [
        (8, 2, 15, 5),
        (0, 0, 0, 0),
        (50, 1, 49, 3),
        (3, 7, 3, 7),
        (400, 30, 350, 9),
        (5000, 5000, 10_000, 0),
        (0, 0, 900, 100),
    ],
)
@pytest.mark.parametrize("at_least", [0.5, 0.75, 0.9])
def test_the_probability_of_an_accuracy_is_that_of_two_beta_distributions(counts, at_least):
    a, b, c, d = counts
    nodes = (np.arange(20_000) + 0.5) / 20_000
    rate = stats.beta.ppf(nodes, a + 1, b + 1)
    expected = stats.beta.sf(2 * at_least - rate, c + 1, d + 1).mean()

    assert probability_of_accuracy(Counts(*counts), at_least) == pytest.approx(expected, abs=1e-4)


def test_an_accuracy_of_zero_is_certain_and_one_of_one_impossible():
    assert probability_of_accuracy(Counts(5, 1, 5, 1), 0.0) == pytest.approx(1.0)
    assert probability_of_accuracy(Counts(5, 1, 5, 1), 1.0) == pytest.approx(0.0, abs=1e-4)


def test_equal_values_share_their_mean_rank():
    assert average_ranks([3.0, 1.0, 3.0, 0.0]).tolist() == [3.5, 2.0, 3.5, 1.0]
    values = np.random.default_rng(0).integers(0, 9, 50)
    assert average_ranks(values).tolist() == stats.rankdata(values).tolist()


def _delong(yes, no):
    """Value and variance by counting pairs."""
    wins = (yes[:, None] > no[None, :]) + 0.5 * (yes[:, None] == no[None, :])
    by_yes, by_no = wins.mean(axis=1), wins.mean(axis=0)
    return wins.mean(), by_yes.var(ddof=1) / len(yes), by_no.var(ddof=1) / len(no)


def test_the_area_has_delongs_variance_on_the_log_odds_with_welchs_degrees_of_freedom():
    rng = np.random.default_rng(1)
    yes, no = rng.integers(0, 9, 12) + 2.0, rng.integers(0, 9, 30) + 0.0

    found = auroc(yes, no)

    value, a, b = _delong(yes, no)
    df = (a + b) ** 2 / (a**2 / 11 + b**2 / 29)
    spread = stats.t.ppf(0.975, df) * np.sqrt(a + b) / (value * (1 - value))
    odds = np.log(value / (1 - value))
    assert found.value == pytest.approx(value)
    assert found.low == pytest.approx(1 / (1 + np.exp(-odds + spread)))
    assert found.high == pytest.approx(1 / (1 + np.exp(-odds - spread)))
    assert auroc(yes, no, level=0.9).low > found.low


def test_swapping_the_classes_turns_the_area_and_its_interval_over():
    rng = np.random.default_rng(2)
    yes, no = rng.normal(1, 1, 9), rng.normal(0, 1, 21)

    one, other = auroc(yes, no), auroc(no, yes)

    assert one.value == pytest.approx(1 - other.value)
    assert (one.low, one.high) == (pytest.approx(1 - other.high), pytest.approx(1 - other.low))


def test_classes_apart_altogether_have_the_interval_of_a_rate_without_a_failure():
    yes, no = np.arange(5) + 10.0, np.arange(8.0)

    assert auroc(yes, no) == (1.0, pytest.approx(0.025 ** (1 / 5)), 1.0)
    assert auroc(no, yes) == (0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / 5)))


def test_one_item_of_a_class_has_an_area_and_an_interval_that_says_nothing():
    assert auroc([1.0], [0.0, 2.0]) == (0.5, 0.0, 1.0)
    assert auroc([3.0, 4.0], [0.0]) == (1.0, 0.0, 1.0)
    assert auroc([3.0, 4.0], [0.0, 1.0]).low == pytest.approx(0.025**0.5)


def test_classes_without_any_spread_say_nothing():
    assert auroc([1.0, 1.0], [1.0, 1.0]) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("yes", "no", "said"),
    [
        ([], [0.0, 2.0], "positive has shape"),
        ([1.0, 2.0], [], "negative has shape"),
        ([1.0, np.nan], [0.0, 1.0], r"positive: 1 of 2 numbers are not finite, at \(1,\)"),
    ],
)
def test_an_area_without_finite_scores_of_each_class_is_refused(yes, no, said):
    with pytest.raises(StatisticsError, match=said):
        auroc(yes, no)


@pytest.mark.parametrize("area", [0.5, 0.75, 0.9])
@pytest.mark.parametrize(("m", "n"), [(10, 10), (20, 50), (50, 20)])
def test_the_area_is_covered_in_at_least_93_percent(area, m, n):
    rng, shift, held = np.random.default_rng(3), np.sqrt(2) * stats.norm.ppf(area), []
    for _ in range(1000):
        found = auroc(rng.normal(shift, 1, m), rng.normal(0, 1, n))
        held.append(found.low <= area <= found.high)

    assert np.mean(held) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("area", [0.5, 0.75, 0.9, 0.97])
@pytest.mark.parametrize(("m", "n"), [(5, 5), (8, 30), (10, 10), (20, 20), (50, 50)])
def test_the_area_is_covered_in_at_least_93_percent_of_4000_datasets(area, m, n):
    rng, shift, held = np.random.default_rng(4), np.sqrt(2) * stats.norm.ppf(area), []
    for _ in range(4000):
        found = auroc(rng.normal(shift, 1, m), rng.normal(0, 1, n))
        held.append(found.low <= area <= found.high)

    assert np.mean(held) >= 0.93


def _share(sums):
    return sums["error"] / sums["square"]


def test_a_ratio_of_sums_has_the_jackknifes_t_interval_over_documents():
    error, square = np.array([1.0, 2.0, 2.0, 5.0, 3.0]), np.array([4.0, 6.0, 9.0, 11.0, 10.0])

    found = of_sums(_share, {"error": error, "square": square})

    left = np.array([(13 - e) / (40 - s) for e, s in zip(error, square, strict=True)])
    half = stats.t.ppf(0.975, 4) * np.sqrt(4 / 5 * ((left - left.mean()) ** 2).sum())
    assert found.value == pytest.approx(13 / 40)
    assert (found.low, found.high) == (pytest.approx(13 / 40 - half), pytest.approx(13 / 40 + half))
    assert of_sums(_share, {"error": error, "square": square}, level=0.8).low > found.low


def test_sums_of_vectors_go_to_the_statistic_as_rows():
    total = np.arange(10.0).reshape(5, 2)

    found = of_sums(lambda s: (s["total"] ** 2).sum(axis=-1) / s["n"], {"total": total, "n": np.ones(5)})

    assert found.value == pytest.approx((20.0**2 + 25.0**2) / 5)


def test_three_documents_give_no_interval_and_four_give_one():
    rng = np.random.default_rng(5)
    sums = {"error": rng.uniform(1, 2, 4), "square": rng.uniform(3, 4, 4)}

    three = of_sums(_share, {name: values[:3] for name, values in sums.items()})

    assert np.isfinite(three.value)
    assert np.isnan([three.low, three.high]).all()
    assert np.isfinite(of_sums(_share, sums).low)


def test_sums_that_do_not_go_together_or_are_not_finite_are_refused():
    with pytest.raises(StatisticsError, match=r"Sums over \[2, 3\] documents"):
        of_sums(_share, {"error": np.ones(2), "square": np.ones(3)})
    with pytest.raises(StatisticsError, match="sums of 'error': 1 of 2"):
        of_sums(_share, {"error": [1.0, np.nan], "square": np.ones(2)})


def test_a_statistic_that_rests_on_one_document_has_no_interval():
    with np.errstate(divide="ignore"):
        found = of_sums(_share, {"error": np.ones(4), "square": [2.0, 0.0, 0.0, 0.0]})

    assert found.value == 2.0
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize("documents", [4, 8, 16, 48])
def test_a_ratio_of_sums_over_documents_of_any_length_is_covered_in_at_least_93_percent(documents):
    rng, held = np.random.default_rng([6, documents]), []
    for _ in range(4000):
        square = rng.uniform(20, 60, documents)
        error = square * np.clip(rng.normal(0.3, 0.08, documents), 0, None)
        found = of_sums(_share, {"error": error, "square": square})
        held.append(found.low <= 0.3 <= found.high)

    assert np.mean(held) >= 0.93
