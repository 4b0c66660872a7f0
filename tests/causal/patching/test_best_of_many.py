"""The best of many sites: with no effect anywhere, hardly any sweep has one beyond its interval."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxterp import InterpretableModel
from mlxterp.causal import PromptPair, activation_patching
from mlxterp.results import AnalysisResult
from tests.tiny_models import ByteTokenizer, tiny_module


@pytest.fixture(scope="module")
def without_attention() -> InterpretableModel:
    """36 heads that write nothing: what the last token is decides the logits."""
    module = tiny_module("llama", num_hidden_layers=9)
    for block in module.model.layers:
        block.self_attn.o_proj.weight = mx.zeros_like(block.self_attn.o_proj.weight)
    return InterpretableModel(module, ByteTokenizer())


def _sweep(model, n, seed):
    """Every head patched over n pairs, by a metric of 1 on clean and 0 on corrupted, and noise."""
    clean, corrupted = (np.array(model.logits(text))[0, -1].astype(np.float64) for text in ("ax", "ay"))
    direction = (clean - corrupted) / ((clean - corrupted) @ (clean - corrupted))
    rng = np.random.default_rng([seed, n])

    def noisy(logits):
        share = (np.asarray(logits, dtype=np.float64) - corrupted) @ direction
        return share + 0.3 * rng.normal(size=len(logits))

    pairs = [PromptPair(f"{chr(97 + i)}x", f"{chr(97 + i)}y") for i in range(n)]
    return activation_patching(model, pairs, component="z", metric=noisy)


def _passes(components):
    """Whether any is at least 0.1 with its interval beyond 0."""
    return any(abs(c.effect) >= 0.1 and c.ci is not None and (c.ci[0] > 0 or c.ci[1] < 0) for c in components)


@pytest.mark.parametrize("n", [4, 8])
def test_hardly_any_sweep_over_heads_that_do_nothing_has_one_beyond_its_interval(without_attention, n):
    """Of intervals of each head by itself, 70 to 93 % of such sweeps have one (percentile bootstrap)."""
    passed = [_passes(_sweep(without_attention, n, seed).top_components(36)) for seed in range(10)]

    assert sum(passed) <= 3


def test_a_sweep_without_any_effect_says_that_none_of_its_sites_is_established(without_attention):
    found = _sweep(without_attention, 8, 1)

    assert found.established() == []
    at_once = "with intervals that hold for all 36 sites searched at once"
    assert f"No site is established: none is beyond 0.05 {at_once}." in found.summary()
    assert "The strongest on 4 pairs, measured on 4 other pairs: " in found.summary()
    assert "over 8 pairs; intervals hold for all sites at once" in found.to_markdown()
    assert len(found.measured_again) == 5
    assert AnalysisResult.from_json(found.to_json()) == found


def test_three_pairs_have_no_interval_and_nothing_is_established_and_four_have(without_attention):
    three, four = (_sweep(without_attention, n, 2) for n in (3, 4))

    assert {c.ci for c in three.top_components(36)} == {None}
    assert three.established() == []
    assert "No interval: 3 independent clusters, and it takes 4" in three.summary()
    assert None not in {c.ci for c in four.top_components(36)}
    assert "Bonferroni" in four.summary()


def test_what_is_there_is_established_and_named_with_the_number_of_sites():
    from mlxterp.statistics.effects import effects

    rng = np.random.default_rng(3)
    one = np.ones(12)
    values = 0.02 * rng.normal(size=(12, 36)) + np.where(np.arange(36) == 7, 0.4, 0.0)

    found = effects(values, one=one, zero=0 * one, search=True).search

    assert np.flatnonzero(found.low > 0.05).tolist() == [7]
    assert found.winners[0].site == 7


def _share_that_pass(n: int, sweeps: int, kind: str) -> float:
    from mlxterp.statistics.effects import effects
    from tests.statistics.simulate import NOISE

    passed = 0
    for seed in range(sweeps):
        rng = np.random.default_rng([seed, n, 9])
        gap = 3.0 + 0.75 * rng.normal(size=n)
        values = 0.75 * NOISE[kind](rng, (n, 36))
        found = effects(values, one=gap, zero=np.zeros(n), search=True)
        assert found.search is not None
        beyond = (found.search.low > 0) | (found.search.high < 0)
        passed += bool((beyond & (np.abs(found.effects) >= 0.1)).any())
    return passed / sweeps


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "t3"])
@pytest.mark.parametrize("n", [4, 8, 16])
def test_of_1500_sweeps_of_36_heads_without_an_effect_at_most_5_percent_have_one_that_passes(n, kind):
    assert _share_that_pass(n, 1500, kind) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)
