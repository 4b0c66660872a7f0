"""Pairs that can be compared are prepared; those that cannot are refused, and the message says what to do."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.causal import (
    ablate,
    acdc,
    activation_patching,
    attribution_patching,
    edge_attribution,
    faithfulness,
    path_patching,
)
from mlxterp.causal.batching import sweep
from mlxterp.causal.prompts.pair import PromptPair, as_pairs, prepare
from mlxterp.errors import LengthMismatch, MetricError, NoGap, PositionsAligned, PromptPairError, TokenError
from tests.causal.conftest import CLEAN, CORRUPTED, FIRST_DIFFERENCE, PAIR, PAIRS, logit_difference
from tests.rounding import backward_error

LONGER = PromptPair("the wolf sat", CORRUPTED, "x", "y")


def test_the_baselines_are_the_metric_of_each_prompt_by_itself(tiny_llama):
    prepared = prepare(tiny_llama, PAIRS)

    expected = [logit_difference(tiny_llama, pair.clean, pair=pair) for pair in PAIRS]
    rounding = backward_error(tiny_llama, lambda: prepare(tiny_llama, PAIRS).clean_metric)
    assert prepared.clean_metric == pytest.approx(expected, abs=rounding)
    assert prepared.metric.name == "logit_diff"


def test_equal_lengths_map_position_to_position_and_record_the_first_difference(tiny_llama):
    alignment = prepare(tiny_llama, PAIR).alignment

    assert alignment.positions == tuple((p, p) for p in range(len(CLEAN)))
    assert alignment.to_dict() == {"kind": "strict", "first_difference": FIRST_DIFFERENCE}


def test_a_dataset_differs_from_the_earliest_difference_of_its_pairs_on(tiny_llama):
    early = PromptPair("The cat sat", "the cat sat", "x", "y")

    assert prepare(tiny_llama, [PAIR, early]).alignment.same_until == 0


def test_unequal_lengths_are_refused_with_both_tokenisations_side_by_side(tiny_llama):
    with pytest.raises(LengthMismatch) as refusal:
        prepare(tiny_llama, LONGER)

    message = str(refusal.value)
    assert "clean has 12 tokens, corrupted has 11" in message
    assert "  clean      t|h|e| |w|o|l|f| |s|a|t\n  corrupted  t|h|e| |d|o|g| |s|a|t\n" in message
    assert 'align="auto"' in message


def test_auto_maps_the_common_prefix_and_suffix_and_warns(tiny_llama):
    with pytest.warns(PositionsAligned, match=r"never patched: clean \[4, 5, 6, 7\], corrupted \[4, 5, 6\]"):
        alignment = prepare(tiny_llama, LONGER, align="auto").alignment

    prefix, suffix = [(p, p) for p in range(4)], [(8 + i, 7 + i) for i in range(4)]
    assert alignment.positions == tuple(prefix + suffix)
    assert alignment.to_dict()["clean_to_corrupted"][-1] == [11, 10]


def test_auto_keeps_the_ends_together_where_one_prompt_begins_the_other(tiny_llama):
    with pytest.warns(PositionsAligned):
        alignment = prepare(tiny_llama, PromptPair("abcb", "abcbab", "x", "y"), align="auto").alignment

    assert alignment.positions == ((0, 0), (1, 1), (2, 2), (3, 5))


def test_auto_without_a_common_end_is_refused(tiny_llama):
    with pytest.raises(LengthMismatch, match="end differently"):
        prepare(tiny_llama, PromptPair("the cat sat!", "the dog sat", "x", "y"), align="auto")


def test_an_explicit_map_may_count_from_the_end_and_must_exist(tiny_llama):
    with pytest.warns(PositionsAligned):
        alignment = prepare(tiny_llama, LONGER, align=[(-1, -1), (4, 4)]).alignment
    assert alignment.positions == ((4, 4), (11, 10))

    with pytest.raises(TokenError, match="corrupted prompt has no position 11"):
        prepare(tiny_llama, LONGER, align=[(11, 11)])
    with pytest.raises(PromptPairError, match="clean position twice"):
        prepare(tiny_llama, LONGER, align=[(4, 4), (4, 5)])


def test_an_unknown_alignment_names_the_known_ones(tiny_llama):
    with pytest.raises(PromptPairError, match=r"'end' is not known.*'strict', 'auto'"):
        prepare(tiny_llama, LONGER, align="end")


def test_clean_equal_to_corrupted_is_refused(tiny_llama):
    with pytest.raises(PromptPairError, match="the same 11 tokens"):
        prepare(tiny_llama, PromptPair(CLEAN, CLEAN, "x", "y"))


def test_a_pair_without_a_gap_is_refused_with_both_values(tiny_llama):
    with pytest.raises(NoGap, match=r"flat is 1 on clean and 1 on corrupted.*nothing to recover"):
        prepare(tiny_llama, PAIR, metric=_flat)


def _flat(logits):
    return np.ones(len(logits))


_flat.__name__ = "flat"


def test_a_dataset_of_several_lengths_is_refused_showing_two_of_them(tiny_llama):
    shorter = PromptPair("a cat", "a dog", "x", "y")

    with pytest.raises(LengthMismatch, match=r"have 5, 11 tokens.*\n.*clean 1  a\| \|c"):
        prepare(tiny_llama, [PAIR, shorter])


def test_an_answer_must_be_one_token_that_exists(tiny_llama):
    with pytest.raises(TokenError, match="2 tokens"):
        prepare(tiny_llama, PromptPair(CLEAN, CORRUPTED, "xy", "y"))
    with pytest.raises(TokenError, match="token id 128"):
        prepare(tiny_llama, PromptPair(CLEAN, CORRUPTED, 128, "y"))


def test_pairs_of_which_only_some_have_a_foil_are_refused(tiny_llama):
    with pytest.raises(PromptPairError, match="pair 1 has no foil"):
        prepare(tiny_llama, [PAIR, PromptPair(CLEAN, CORRUPTED, "x")])


def test_a_metric_that_needs_a_foil_says_so(tiny_llama):
    with pytest.raises(MetricError, match="needs foil"):
        prepare(tiny_llama, PromptPair(CLEAN, CORRUPTED, "x"), "logit_diff")


def test_what_a_call_may_give_as_prompts_becomes_pairs():
    assert as_pairs("a", "b", answer=1) == (PromptPair("a", "b", 1),)
    assert as_pairs(PAIR, foil="z")[0].foil == "z"
    assert as_pairs([PAIR, PAIR]) == (PAIR, PAIR)
    assert as_pairs([1, 2], [1, 3]) == (PromptPair((1, 2), (1, 3)),)
    with pytest.raises(PromptPairError, match="without a corrupted prompt"):
        as_pairs("a")
    with pytest.raises(PromptPairError, match="comes beside 1 PromptPair"):
        as_pairs(PAIR, "b")


METHODS = {
    "activation patching": lambda model, pairs, **k: activation_patching(model, pairs, **k).effects,
    "attribution patching": lambda model, pairs, **k: attribution_patching(model, pairs, **k).effects,
    "edge attribution": lambda model, pairs, **k: edge_attribution(model, pairs, **k).scores,
    "path patching": lambda model, pairs, **k: path_patching(model, pairs, receivers="logits", **k).effects,
    "ablation": lambda model, pairs, **k: [row.share for row in ablate(model, pairs, ["L1.H0"], **k).rows],
    "faithfulness": lambda model, pairs, **k: faithfulness(model, pairs, ["L0.H0→logits"], **k).effects,
    "acdc": lambda model, pairs, **k: [e.effect for e in acdc(model, pairs, threshold=0.3, **k).edges],
}


@pytest.mark.parametrize("method", METHODS)
def test_prepared_pairs_give_what_the_pairs_give_without_running_both_prompts_again(
    tiny_llama, method, monkeypatch
):
    measure = METHODS[method]
    alone = measure(tiny_llama, PAIRS, metric="logit_diff")
    prepared = prepare(tiny_llama, PAIRS)
    monkeypatch.setattr(sweep, "run_prompts", lambda *_: pytest.fail("both prompts ran again"))

    assert measure(tiny_llama, prepared) == pytest.approx(np.asarray(alone), abs=1e-5)
    if method != "acdc":  # by a distance its circuit is another one
        assert measure(tiny_llama, prepared.with_metric("log_prob")) == pytest.approx(
            np.asarray(measure(tiny_llama, prepared, metric="log_prob")), abs=1e-6
        )


def test_prepared_pairs_measured_by_another_metric_are_as_if_prepared_with_it(tiny_llama):
    prepared = prepare(tiny_llama, PAIRS).with_metric("kl")

    fresh = prepare(tiny_llama, PAIRS, "kl")
    assert prepared.metric.name == "kl"
    assert prepared.corrupted_metric == pytest.approx(fresh.corrupted_metric, abs=1e-5)
    assert prepared.vocabulary is None
    with pytest.raises(MetricError, match="needs foil"):
        prepare(tiny_llama, PromptPair(CLEAN, CORRUPTED, "x"), "prob").with_metric("logit_diff")


def test_prepared_pairs_hold_their_answers(tiny_llama):
    with pytest.raises(PromptPairError, match="hold their corrupted prompts, answers and foils"):
        activation_patching(tiny_llama, prepare(tiny_llama, PAIR), answer="z")
