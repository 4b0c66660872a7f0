"""Effects of a dataset: by hand on small numbers, and the interval around them."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.statistics.effects import effects

ONE, ZERO = np.array([3.0, 1.0]), np.array([1.0, 0.0])


def test_the_effect_is_the_ratio_of_means_and_each_example_has_its_own():
    found = effects(np.array([[2.0], [1.0]]), one=ONE, zero=ZERO, seed=0)

    assert found.effects[0] == pytest.approx((1.5 - 0.5) / (2.0 - 0.5))
    assert found.per_example[:, 0].tolist() == [0.5, 1.0]


def test_an_example_without_a_gap_of_its_own_has_no_effect_of_its_own():
    found = effects(np.array([[2.0], [1.0]]), one=np.array([3.0, 1.0]), zero=np.array([1.0, 1.0]), seed=0)

    assert np.isnan(found.per_example[1, 0])
    assert found.effects[0] == pytest.approx(0.5)


def test_a_single_example_has_no_interval():
    found = effects(np.array([[2.0]]), one=[3.0], zero=[1.0], seed=0)

    assert found.low is None
    assert found.high is None


def test_the_interval_holds_about_the_middle_95_percent_of_resampled_means():
    rng = np.random.default_rng(1)
    values = rng.normal(0.5, 0.2, size=(100, 1, 2))

    found = effects(values, one=np.ones(100), zero=np.zeros(100), seed=0)

    half_width = 1.96 * values.std(axis=0) / 10
    assert found.low == pytest.approx(values.mean(axis=0) - half_width, abs=0.01)
    assert found.high == pytest.approx(values.mean(axis=0) + half_width, abs=0.01)


def test_the_interval_follows_the_seed():
    values = np.random.default_rng(1).normal(size=(20, 3))
    first, again, other = (effects(values, one=np.ones(20), zero=np.zeros(20), seed=s).low for s in (0, 0, 1))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_many_effects_are_resampled_in_blocks_with_the_same_draws():
    values = np.repeat(np.random.default_rng(1).normal(size=(5, 1)), 5000, axis=1)

    low = effects(values, one=np.ones(5), zero=np.zeros(5), seed=0).low

    assert low.shape == (5000,)
    assert np.ptp(low) < 1e-12
