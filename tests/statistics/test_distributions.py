"""Distributions against scipy's, and at the ends of their domains."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from mlxterp.errors import StatisticsError
from mlxterp.statistics import distributions as d

LEVELS = [0.5, 0.4, 0.1, 0.05, 0.025, 0.005, 0.0025, 1e-4, 1e-7, 1e-10]
DEGREES = [1, 2, 3, 5, 7, 15, 23, 47, 100, 1000, 1e5]


def test_the_incomplete_beta_function_is_scipys_to_ten_digits():
    rng = np.random.default_rng(0)
    a, b = 10 ** rng.uniform(-1, 4, 2000), 10 ** rng.uniform(-1, 4, 2000)
    x = rng.beta(a, b)

    assert d.incomplete_beta(a, b, x) == pytest.approx(special.betainc(a, b, x), abs=1e-10)


def test_the_incomplete_beta_function_has_exact_ends_and_small_tails_to_nine_digits():
    assert d.incomplete_beta(3.0, 4.0, [0.0, 1.0]).tolist() == [0.0, 1.0]
    assert d.incomplete_beta(30.0, 2.0, 0.01) == pytest.approx(special.betainc(30, 2, 0.01), rel=1e-9)
    assert d.incomplete_beta(2.0, 3.0, [[0.5], [0.25]]).shape == (2, 1)


@pytest.mark.parametrize(
    ("a", "b", "x"),
    [([1.0, 0.0], [1.0, 1.0], [0.5, 0.5]), ([1.0, 1.0], [0.0, 1.0], [0.5, 0.5]), (1.0, 1.0, [0.5, 1.5])],
)
def test_one_value_of_several_outside_the_domain_is_enough_to_refuse_all(a, b, x):
    with pytest.raises(StatisticsError, match="incomplete beta"):
        d.incomplete_beta(a, b, x)


@pytest.mark.parametrize(
    ("a", "b", "x"), [(0.0, 1.0, 0.5), (1.0, 0.0, 0.5), (1.0, 1.0, -0.1), (1.0, 1.0, 1.1)]
)
def test_a_beta_distribution_outside_its_domain_is_refused(a, b, x):
    with pytest.raises(StatisticsError, match="must be positive, and x between 0 and 1"):
        d.incomplete_beta(a, b, x)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.5, 0.5)])
def test_quantiles_of_beta_distributions_with_parameters_of_1_and_less_are_scipys(a, b):
    ours = [d.beta_quantile(p, a, b) for p in (0.025, 0.5, 0.9)]

    assert ours == pytest.approx(special.betaincinv(a, b, [0.025, 0.5, 0.9]), rel=1e-9)


@pytest.mark.parametrize("df", DEGREES)
def test_t_quantiles_are_scipys_to_ten_digits_far_into_the_tail(df):
    ours = [d.upper_t_quantile(p, df) for p in LEVELS]

    assert ours == pytest.approx(stats.t.isf(LEVELS, df), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("p", [0.001, 0.3, 0.5, 0.7, 0.999])
def test_t_quantiles_of_both_sides_are_scipys(p):
    assert d.t_quantile(p, 7) == pytest.approx(stats.t.ppf(p, 7), rel=1e-10, abs=1e-12)
    assert d.upper_t_quantile(p, 7) == pytest.approx(stats.t.isf(p, 7), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("df", [1, 3, 10, 50, 1e4])
def test_the_t_distribution_is_scipys_on_both_sides(df):
    t = np.linspace(-30, 30, 121)

    assert d.t_cdf(t, df) == pytest.approx(stats.t.cdf(t, df), abs=1e-12)
    assert d.t_sf(t, df) == pytest.approx(stats.t.sf(t, df), abs=1e-12)


@pytest.mark.parametrize("p", [1e-12, 1e-5, 0.025, 0.3, 0.5, 0.7, 0.975, 0.99999])
def test_normal_quantiles_are_scipys(p):
    assert d.normal_quantile(p) == pytest.approx(stats.norm.ppf(p), abs=1e-10)


def test_normal_tails_are_scipys_and_keep_their_shape():
    z = np.array([[-3.0, 0.0], [2.0, 8.0]])

    assert d.normal_sf(z) == pytest.approx(stats.norm.sf(z), rel=1e-12)


def test_beta_quantiles_are_scipys():
    rng = np.random.default_rng(1)
    for p, a, b in zip(rng.uniform(0.001, 0.999, 60), *rng.uniform(0.6, 300, (2, 60)), strict=True):
        assert d.beta_quantile(p, a, b) == pytest.approx(special.betaincinv(a, b, p), abs=1e-10)
    with pytest.raises(StatisticsError, match="Both must be positive"):
        d.beta_quantile(0.5, 0.0, 1.0)
    with pytest.raises(StatisticsError, match="Both must be positive"):
        d.beta_quantile(0.5, 1.0, -1.0)


def test_binomial_tails_are_scipys():
    for k, n, p in [
        (0, 5, 0.3),
        (1, 5, 0.3),
        (5, 5, 0.3),
        (60, 100, 0.5),
        (3, 1000, 0.001),
        (2, 5, 0.0),
        (2, 5, 1.0),
    ]:
        assert d.binomial_sf(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-10)


@pytest.mark.parametrize(("k", "n", "p"), [(-1, 5, 0.5), (6, 5, 0.5), (1, 5, -0.1), (1, 5, 1.1)])
def test_a_count_outside_its_trials_is_refused(k, n, p):
    with pytest.raises(StatisticsError, match="give 0 ≤ k ≤ n and a probability"):
        d.binomial_sf(k, n, p)


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize(
    "quantile",
    [
        d.normal_quantile,
        lambda p: d.t_quantile(p, 3),
        lambda p: d.upper_t_quantile(p, 3),
        lambda p: d.beta_quantile(p, 2.0, 2.0),
    ],
)
def test_a_quantile_at_no_probability_is_refused(quantile, p):
    with pytest.raises(StatisticsError, match="Give one between 0 and 1, both excluded"):
        quantile(p)
