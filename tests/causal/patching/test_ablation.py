"""Ablating sets: what stands in, what a share is of, and fair random sets."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.causal import PromptPair, ablate, random_head_sets
from mlxterp.core.interventions import replace, zero
from mlxterp.errors import MetricError, NoGap, SweepError
from mlxterp.results import AnalysisResult
from tests.causal.conftest import CLEAN, CORRUPTED, PAIR, PAIRS, logit_difference
from tests.rounding import backward_error

SET = [(0, 1), (2, 3)]


def prefers(pair: PromptPair, model) -> PromptPair:
    """The pair with answer and foil in the order that the model prefers on the clean prompt."""
    if logit_difference(model, pair.clean, pair=pair) > 0:
        return pair
    return PromptPair(pair.clean, pair.corrupted, pair.foil, pair.answer)


@pytest.fixture
def pairs(tiny_llama):
    return [prefers(pair, tiny_llama) for pair in PAIRS]


def by_hand(model, pairs, edits):
    return np.mean(
        [logit_difference(model, pair.clean, *edits(i), pair=pair) for i, pair in enumerate(pairs)]
    )


def test_zero_ablation_is_the_run_with_these_heads_at_zero(tiny_llama, pairs):
    result = ablate(tiny_llama, pairs, SET, kind="zero")

    expected = by_hand(tiny_llama, pairs, lambda _: [zero("L0.z", heads=1), zero("L2.z", heads=3)])
    clean = by_hand(tiny_llama, pairs, lambda _: [])
    assert result.rows[0].value == pytest.approx(expected, abs=1e-4)
    assert result.rows[0].share == pytest.approx(expected / clean, abs=1e-4)
    assert result.rows[0].components == ("L0.H1", "L2.H3")


def test_mean_ablation_puts_in_the_mean_over_clean_and_corrupted_prompts_at_each_position(tiny_llama, pairs):
    prompts = [p for pair in pairs for p in (pair.clean, pair.corrupted)]
    traces = [tiny_llama.trace(prompt, capture=["z"]) for prompt in prompts]
    means = {la: np.mean([np.array(t[f"L{la}.z"]) for t in traces], axis=0) for la in (0, 2)}

    result = ablate(tiny_llama, pairs, SET, kind="mean")

    expected = by_hand(
        tiny_llama,
        pairs,
        lambda _: [replace("L0.z", means[0], heads=1), replace("L2.z", means[2], heads=3)],
    )
    assert result.rows[0].value == pytest.approx(expected, abs=1e-4)


def test_a_prompt_that_occurs_twice_counts_once_in_the_mean(tiny_llama, pairs, monkeypatch):
    again = prefers(PromptPair(pairs[0].clean, pairs[1].clean, "k", "q"), tiny_llama)
    several = [*pairs, again]
    prompts = [p for pair in pairs for p in (pair.clean, pair.corrupted)]
    z = np.mean([np.array(tiny_llama.trace(p, capture=["L0.z"])["L0.z"]) for p in prompts], axis=0)
    expected = by_hand(tiny_llama, several, lambda _: [replace("L0.z", z, heads=1)])

    kept = ablate(tiny_llama, several, [(0, 1)], kind="mean")
    monkeypatch.setattr("mlxterp.causal.batching.sweep.KEPT_TOKENS", 0)
    made_again = ablate(tiny_llama, several, [(0, 1)], kind="mean")

    assert kept.rows[0].value == pytest.approx(expected, abs=1e-4)
    assert made_again.rows[0].value == pytest.approx(expected, abs=1e-4)


def test_resampling_puts_in_the_corrupted_run_of_the_same_pair_and_its_share_is_of_the_gap(tiny_llama, pairs):
    traces = [tiny_llama.trace(pair.corrupted, capture=["z"]) for pair in pairs]

    result = ablate(tiny_llama, pairs, SET, kind="resample")

    expected = by_hand(
        tiny_llama,
        pairs,
        lambda i: [replace("L0.z", traces[i]["L0.z"], heads=1), replace("L2.z", traces[i]["L2.z"], heads=3)],
    )
    clean = by_hand(tiny_llama, pairs, lambda _: [])
    corrupted = np.mean([logit_difference(tiny_llama, p.corrupted, pair=p) for p in pairs])
    assert result.rows[0].value == pytest.approx(expected, abs=1e-4)
    assert result.rows[0].share == pytest.approx((expected - corrupted) / (clean - corrupted), abs=1e-4)
    assert result.corrupted_metric == pytest.approx(corrupted, abs=1e-4)


def test_keeping_a_set_ablates_all_other_heads_and_nothing_else(tiny_llama, pairs):
    kept = ablate(tiny_llama, pairs, SET, kind="zero", keep=True)

    others = {0: [0, 2, 3], 1: [0, 1, 2, 3], 2: [0, 1, 2]}
    expected = by_hand(tiny_llama, pairs, lambda _: [zero(f"L{la}.z", heads=h) for la, h in others.items()])
    assert kept.rows[0].value == pytest.approx(expected, abs=1e-4)
    assert kept.rows[0].keep


def test_resampling_everything_that_is_written_leaves_nothing(tiny_llama, pairs):
    everything = ["L0.resid_pre", *(f"L{la}.{name}" for la in range(3) for name in ("attn_out", "mlp_out"))]

    assert ablate(tiny_llama, pairs, everything, kind="resample").rows[0].share == pytest.approx(0, abs=1e-4)


def test_components_and_heads_are_read_as_people_write_them(tiny_llama, pairs):
    sets = {"a": ["L0.H1", "L2.H3"], "b": SET, "c": ["L1.mlp"]}

    result = ablate(tiny_llama, pairs, sets, kind="zero")

    assert [row.label for row in result.rows] == ["a", "b", "c"]
    assert result.rows[0].components == result.rows[1].components
    # Two rows of one batch: a product may add up in another order for each.
    rounding = backward_error(tiny_llama, lambda: ablate(tiny_llama, pairs, sets, kind="zero").rows[0].value)
    assert result.rows[0].value == pytest.approx(result.rows[1].value, abs=rounding)
    assert result.rows[2].components == ("L1.mlp_out",)


def test_random_sets_are_as_large_disjoint_from_the_set_and_the_same_for_the_same_seed(tiny_llama, pairs):
    result = ablate(tiny_llama, pairs, SET, kind="zero", random_sets=4, exclude=["L1.H0"], seed=3)
    again = ablate(tiny_llama, pairs, SET, kind="zero", random_sets=4, exclude=["L1.H0"], seed=3)

    random = [row for row in result.rows if row.group == "random"]
    assert len(random) == 4
    for row in random:
        assert len(row.components) == 2
        assert not {"L0.H1", "L2.H3", "L1.H0"} & set(row.components)
    assert result == again


def test_random_head_sets_refuse_more_heads_than_there_are(tiny_llama):
    assert all(len(set(heads)) == 12 for heads in random_head_sets(tiny_llama, 12, 2))
    with pytest.raises(SweepError, match=r"of the model's 12 heads, 11 are not excluded"):
        random_head_sets(tiny_llama, 12, 1, exclude=[(0, 0)])


def test_prompts_alone_can_be_ablated_with_an_answer_and_a_foil(tiny_llama, pairs):
    prompts, pair = [CLEAN, CORRUPTED], prefers(PAIR, tiny_llama)
    values = [logit_difference(tiny_llama, prompt, pair=pair) for prompt in prompts]
    answer, foil = (pair.answer, pair.foil) if np.mean(values) > 0 else (pair.foil, pair.answer)

    result = ablate(tiny_llama, prompts, SET, kind="zero", answer=answer, foil=foil)

    assert result.clean_metric == pytest.approx(abs(np.mean(values)), abs=1e-4)
    assert result.corrupted_metric is None


def test_a_result_of_ablation_survives_json(tiny_llama, pairs):
    result = ablate(tiny_llama, pairs, SET, random_sets=2)

    assert AnalysisResult.from_json(result.to_json()) == result
    assert result.measured_on["clusters"] == len(pairs)


def test_ablations_that_mean_nothing_are_refused(tiny_llama, pairs):
    with pytest.raises(SweepError, match=r"'median' is not known.*mean, zero, resample"):
        ablate(tiny_llama, pairs, SET, kind="median")
    with pytest.raises(SweepError, match=r"\(3, 0\) does not exist.*layers 0 to 2"):
        ablate(tiny_llama, pairs, [(3, 0)])
    with pytest.raises(SweepError, match="is not a set of heads"):
        ablate(tiny_llama, pairs, [])
    with pytest.raises(SweepError, match="names a member twice"):
        ablate(tiny_llama, pairs, [(0, 1), "L0.H1"])
    with pytest.raises(SweepError, match="not spelled like a component"):
        ablate(tiny_llama, pairs, ["head 3"])
    with pytest.raises(SweepError, match="there is nothing to ablate"):
        ablate(tiny_llama, pairs, [f"L{la}.mlp" for la in range(3)], keep=True)
    with pytest.raises(SweepError, match="set of whole components"):
        ablate(tiny_llama, pairs, ["L1.mlp"], random_sets=2)


def test_ablations_with_nothing_to_put_in_or_to_compare_with_are_refused(tiny_llama):
    with pytest.raises(SweepError, match="give PromptPairs"):
        ablate(tiny_llama, CLEAN, SET, kind="resample", answer="x", foil="y")
    with pytest.raises(MetricError, match="Give PromptPairs"):
        ablate(tiny_llama, CLEAN, SET, kind="zero", metric="l2")
    answer, foil = ("x", "y") if logit_difference(tiny_llama, CLEAN) > 0 else ("y", "x")
    with pytest.raises(SweepError, match="over a single prompt"):
        ablate(tiny_llama, CLEAN, SET, kind="mean", answer=answer, foil=foil)
    with pytest.raises(NoGap, match="answer that the model prefers"):
        ablate(tiny_llama, CLEAN, SET, kind="zero", answer=foil, foil=answer)


def test_random_sets_have_as_many_heads_of_each_layer_and_of_the_nearest_where_a_layer_has_no_other(
    tiny_llama, pairs
):
    """A set from the first layer is not compared with heads from anywhere."""

    def layers(heads, random_sets=6):
        found = ablate(tiny_llama, pairs, heads, kind="zero", random_sets=random_sets)
        return [
            sorted(label.partition(".")[0] for label in row.components)
            for row in found.rows
            if row.group == "random"
        ]

    assert layers(["L0.H0", "L0.H2", "L2.H1"]) == [["L0", "L0", "L2"]] * 3  # there are no more
    assert layers(["L0.H0", "L0.H1", "L0.H2"]) == [["L0", "L1", "L1"]] * 6
    assert layers([f"L0.H{h}" for h in range(4)]) == [["L1"] * 4]
    with pytest.raises(SweepError, match="5 are not excluded"):
        layers([(0, h) for h in range(4)] + [(1, h) for h in range(3)])


def test_a_set_is_ranked_among_different_random_sets_and_few_do_not_show_that_it_is_needed(tiny_llama, pairs):
    heads = ["L0.H0", "L1.H1"]
    found = ablate(tiny_llama, pairs, heads, kind="zero", random_sets=19)
    random = [row for row in found.rows if row.group == "random"]
    at_least = sum(row.share <= found.row("found set").share for row in random)

    assert len({row.components for row in random}) == len(random) == 9  # 3 other heads in each layer
    assert found.p_among_random("found set") == pytest.approx((1 + at_least) / 10)
    assert "The best beside 9 random sets has p = 0.1: that does not show" in found.summary()
    assert "It takes 19 different ones for p = 0.05" in found.summary()
