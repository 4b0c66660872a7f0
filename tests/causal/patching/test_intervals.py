"""What the causal methods say of their intervals: the unit is a couple of prompts, and it takes four."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp import PromptPair
from mlxterp.causal import (
    ablate,
    activation_patching,
    attribution_patching,
    edge_attribution,
    faithfulness,
    path_patching,
)

TEXTS = (
    "the cat sat",
    "the dog ran",
    "a fox was d",
    "one red hat",
    "my old map ",
    "his new car",
    "we sing on ",
    "you eat it ",
)
COUPLES = tuple(PromptPair(a, b, answer="x", foil="y") for a, b in zip(TEXTS[::2], TEXTS[1::2], strict=True))
BOTH_WAYS = tuple(
    each for pair in COUPLES for each in (pair, PromptPair(pair.corrupted, pair.clean, answer="y", foil="x"))
)


def test_four_couples_have_an_interval_that_is_the_ratio_of_means_over_couples(tiny_llama):
    from mlxterp.statistics.ratio import ratio_of_means

    result = activation_patching(tiny_llama, BOTH_WAYS, component="mlp_out")

    gaps = np.array(
        [
            one.clean_metric - one.corrupted_metric
            for one in (activation_patching(tiny_llama, pair, component="mlp_out") for pair in BOTH_WAYS)
        ]
    )
    expected = ratio_of_means(result.per_example * gaps[:, None], gaps, clusters=np.repeat(np.arange(4), 2))
    assert result.ci_low == pytest.approx(expected.low, rel=1e-3, abs=1e-4)
    assert result.ci_high == pytest.approx(expected.high, rel=1e-3, abs=1e-4)
    assert result.cautions[0].startswith("4 clusters: the interval assumes")


def test_a_sweep_has_intervals_that_hold_for_all_its_sites_at_once(tiny_llama):
    result = activation_patching(tiny_llama, BOTH_WAYS, component="mlp_out")

    assert (result.simultaneous_low <= result.ci_low).all()
    assert (result.simultaneous_high >= result.ci_high).all()
    assert (result.simultaneous_high > result.ci_high).any()


def test_three_couples_in_both_directions_have_no_interval_although_they_are_six_pairs(tiny_llama):
    result = activation_patching(tiny_llama, BOTH_WAYS[:6], component="mlp_out")

    assert (result.ci_low, result.ci_high) == (None, None)
    assert "3 independent clusters" in result.cautions[0]
    assert result.per_example.shape[0] == 6


@pytest.mark.parametrize(
    "measure",
    [
        lambda model, pairs: edge_attribution(model, pairs),
        lambda model, pairs: path_patching(model, pairs, receivers="logits", senders=["L0.H1"]),
    ],
    ids=["edges", "paths"],
)
def test_every_method_over_pairs_says_how_many_clusters_it_measured_and_why_there_is_no_interval(
    tiny_llama, measure
):
    three, four = measure(tiny_llama, BOTH_WAYS[:6]), measure(tiny_llama, BOTH_WAYS)

    assert three.ci_low is None
    assert three.measured_on["clusters"] == 3
    assert "it takes 4" in three.measured_on["intervals"]
    assert four.measured_on["clusters"] == 4
    assert np.all(four.ci_low < four.ci_high)


def test_ablation_counts_couples_too(tiny_llama):
    three = ablate(tiny_llama, BOTH_WAYS[:6], ["L0.H1"], kind="resample")
    four = ablate(tiny_llama, BOTH_WAYS, ["L0.H1"], kind="resample")

    assert three.rows[0].ci is None
    assert four.rows[0].ci[0] < four.rows[0].share < four.rows[0].ci[1]
    assert (three.measured_on["clusters"], four.measured_on["clusters"]) == (3, 4)


def test_estimates_and_circuits_have_the_same_intervals(tiny_llama):
    assert attribution_patching(tiny_llama, BOTH_WAYS[:6], component="z").ci_low is None
    assert attribution_patching(tiny_llama, BOTH_WAYS, component="z").ci_low is not None
    assert faithfulness(tiny_llama, BOTH_WAYS[:6], ["input->logits"]).low is None
    assert faithfulness(tiny_llama, BOTH_WAYS, ["input->logits"]).low is not None
