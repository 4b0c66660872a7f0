"""How a model answers its prompts, in numbers that one forward each confirms."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.causal import PromptPair, behaviour
from mlxterp.errors import PromptPairError
from mlxterp.results import AnalysisResult
from tests.causal.conftest import CORRUPTED, PAIR, PAIRS, logit_difference


def test_each_prompt_has_the_numbers_of_its_own_forward(tiny_llama):
    result = behaviour(tiny_llama, PAIRS)

    row = result.rows[1]
    logits = np.array(tiny_llama.logits(CORRUPTED))[0, -1].astype(np.float64)
    weights = np.exp(logits - logits.max())
    assert (row.run, row.prompt, row.answer, row.foil) == ("corrupted", CORRUPTED, "x", "y")
    assert row.logit_diff == pytest.approx(logit_difference(tiny_llama, CORRUPTED), abs=1e-4)
    assert row.prob == pytest.approx(weights[ord("x")] / weights.sum(), abs=1e-6)
    assert row.rank == 1 + np.sum(logits > logits[ord("x")])
    assert row.top_token == chr(int(logits.argmax()))
    assert len(result.rows) == 6


def test_the_total_counts_pairs_whose_two_runs_disagree_in_the_right_way(toy_model):
    pair = PromptPair([1, 2, 9, 1], [1, 3, 9, 1], answer=2, foil=3)
    turned = PromptPair([1, 3, 9, 1], [1, 2, 9, 1], answer=2, foil=3)

    undecided = PromptPair([1, 2, 9, 1], [1, 2, 8, 1], answer=2, foil=3)

    result = behaviour(toy_model, [pair, turned, undecided, undecided])

    assert result.totals == {"clean prefers the answer, corrupted the foil": 0.25}


def test_prompts_of_different_lengths_are_fine_and_the_result_survives_json(tiny_llama):
    result = behaviour(tiny_llama, [PAIR, PromptPair("a cat", "the old dog", answer="x")])

    assert result.rows[2].logit_diff is None
    assert AnalysisResult.from_json(result.to_json()) == result


def test_a_pair_without_an_answer_is_refused(tiny_llama):
    with pytest.raises(PromptPairError, match="pair 0 has no answer"):
        behaviour(tiny_llama, PromptPair("a", "b"))
