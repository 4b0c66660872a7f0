"""Several ablated features, one conclusion: what is left once their number counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mlxterp.errors import ResultError
from mlxterp.results import FeatureEffectsResult


def effects_of(larger, *, controls=20, fired=None):
    """Features of which `larger[i]` random ones have an effect as large."""
    n = len(larger)
    table = np.zeros((n, controls))
    for i, many in enumerate(larger):
        table[i, :many] = 2.0
    return FeatureEffectsResult(
        features=tuple(range(10, 10 + n)),
        effects=np.ones(n),
        fired=tuple(fired or [3] * n),
        maxima=np.ones(n),
        controls=table,
        percentiles=np.full(n, np.nan),
        ablation="zero",
        metric="kl",
        clean_metric=0.0,
        hook_point="L0.resid_post",
    )


def test_one_of_eight_features_is_what_chance_gives_and_three_are_not():
    one, two, three = (effects_of([0] * k + [9] * (8 - k)).against_chance() for k in (1, 2, 3))

    assert one.passed == (10,)
    assert one.p_value == pytest.approx(1 - (20 / 21) ** 8)  # 0.32
    assert two.p_value == pytest.approx(1 - (20 / 21) ** 8 - 8 / 21 * (20 / 21) ** 7)
    assert (one.more_than_chance, two.more_than_chance, three.more_than_chance) == (False, False, True)


def test_studies_of_random_features_pass_no_more_often_than_they_say():
    random = np.random.default_rng(0)
    passed = naive = 0
    for _ in range(1_000):
        larger = random.integers(0, 21, size=8).tolist()  # exchangeable with 20 controls
        found = effects_of(larger).against_chance()
        passed += found.more_than_chance
        naive += len(found.passed) > 0

    assert 0.25 < naive / 1_000 < 0.40
    assert passed / 1_000 <= 0.05


def test_a_feature_passes_corrected_with_enough_controls_only():
    few, many = (effects_of([0, 9, 9, 9], controls=n).against_chance() for n in (20, 79))

    assert (few.passed, few.holm, few.controls_for_holm) == ((10,), (), 79)
    assert many.holm == (10,)
    assert "each needs 79" in few.sentence()
    assert "Corrected for their number: f10" in many.sentence()


def test_features_that_the_ablation_does_not_change_are_not_counted_as_tested():
    found = effects_of([0, 9, 20, 20], fired=[3, 3, 0, 0]).against_chance()

    assert found.tested == 2
    assert "of 2 features tested" in effects_of([0, 9, 20, 20], fired=[3, 3, 0, 0]).summary()
    with pytest.raises(ResultError, match="none of 2 features was tested"):
        effects_of([0, 0], fired=[0, 0]).against_chance()
    bare = dataclasses.replace(effects_of([0]), controls=np.full((1, 0), np.nan))
    with pytest.raises(ResultError, match="needs controls="):
        bare.against_chance()
