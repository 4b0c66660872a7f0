"""Attention patterns are the model's own; scores count what patterns written by hand hold."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.causal import attention_patterns, attention_scores
from mlxterp.causal.attention_patterns import _masks, _score
from mlxterp.errors import SweepError
from mlxterp.results import AnalysisResult, Heatmap, Note

TOKENS = [5, 6, 7, 5, 6, 7]


def test_patterns_are_the_models_own(tiny_llama):
    result = attention_patterns(tiny_llama, TOKENS)

    trace = tiny_llama.trace(TOKENS, capture=[f"L{i}.pattern" for i in range(3)])
    for (layer, head), pattern in zip(result.heads, result.patterns, strict=True):
        np.testing.assert_allclose(pattern, np.array(trace[f"L{layer}.pattern"])[0, head], atol=1e-6)
    assert len(result.heads) == tiny_llama.n_layers * tiny_llama.n_heads
    np.testing.assert_allclose(result.patterns.sum(axis=-1), 1.0, atol=1e-5)
    assert not np.triu(result.patterns, 1).any()


@pytest.mark.usefixtures("pinned_threads")
def test_layers_and_heads_or_pairs_choose_what_is_read(tiny_llama):
    everything = attention_patterns(tiny_llama, TOKENS)

    assert attention_patterns(tiny_llama, TOKENS, layers=[1], heads=[2, 0]).heads == ((1, 0), (1, 2))
    pairs = attention_patterns(tiny_llama, TOKENS, heads=[(1, 3), (0, 1)])
    assert pairs.heads == ((0, 1), (1, 3))
    assert np.array_equal(pairs.pattern(1, 3), everything.pattern(1, 3))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"heads": [99]}, r"no head L0\.H99, .*layers 0 to 2 and heads 0 to 3"),
        ({"layers": [-1]}, r"no head L-1\.H0"),
        ({"layers": []}, "was asked for"),
        ({"layers": [0], "heads": [(0, 1)]}, "pairs alone"),
        ({"heads": [(0, 1), 2]}, "pairs alone"),
    ],
)
def test_a_head_that_does_not_exist_is_refused_by_name(tiny_llama, given, says):
    with pytest.raises(SweepError, match=says):
        attention_patterns(tiny_llama, TOKENS, **given)


def test_the_planted_heads_attend_where_they_were_planted(toy_model):
    result = attention_patterns(toy_model, " cat bird book cat bird")

    assert result.pattern(0, 2)[4, 3] > 0.9  # the token before
    assert result.pattern(1, 1)[4, 2] > 0.9  # what followed the same token
    assert {"L0.H2", "L1.H1"} <= {c.label for c in result.top_components(3)}
    assert AnalysisResult.from_json(result.to_json()) == result


def test_many_heads_are_drawn_in_part_and_explored_in_full(tiny_llama):
    result = attention_patterns(tiny_llama, TOKENS)
    many = AnalysisResult.from_dict(
        result.to_dict()
        | {"heads": [(i, 0) for i in range(12)], "patterns": np.repeat(result.patterns[:1], 12, axis=0)}
    )

    drawn = [show for show in many.shows() if isinstance(show, Heatmap)]
    assert len(drawn) == 9
    assert "the 9 of 12 heads" in next(show.text for show in many.shows() if isinstance(show, Note))
    assert len(many.panels()) == 12
    assert {(panel.low, panel.high) for panel in many.panels()} == {(0.0, 1.0)}


def test_the_scores_count_previous_earlier_same_and_the_token_after_it():
    masks = _masks(np.array([[7, 8, 9, 7, 8]]))

    assert [tuple(i) for i in np.argwhere(masks["previous_token"][0])] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert [tuple(i) for i in np.argwhere(masks["duplicate_token"][0])] == [(3, 0), (4, 1)]
    assert [tuple(i) for i in np.argwhere(masks["induction"][0])] == [(3, 1), (4, 2)]


def test_a_token_repeated_at_once_does_not_count_itself_as_what_came_after():
    assert not _masks(np.array([[7, 7]]))["induction"].any()


def test_a_score_is_the_mean_attention_over_positions_that_have_such_a_token():
    pattern = np.zeros((1, 1, 1, 5, 5))
    pattern[0, 0, 0, 3, 1], pattern[0, 0, 0, 4, 2] = 0.5, 0.25

    assert _score(pattern, _masks(np.array([[7, 8, 9, 7, 8]]))["induction"])[0, 0] == pytest.approx(0.375)


def test_the_planted_heads_have_the_highest_scores(toy_model):
    result = attention_scores(toy_model)

    assert [head.label for head in result.top_heads("previous_token", 1)] == ["L0.H2"]
    assert [head.label for head in result.top_heads("induction", 1)] == ["L1.H1"]
    assert result.score("previous_token")[0, 2] > 0.9
    assert result.score("induction")[1, 1] > 0.9


def test_a_head_that_attends_evenly_would_have_what_the_result_expects(toy_model):
    result = attention_scores(toy_model, [[1, 2, 1, 2]])

    assert result.expected["previous_token"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert result.expected["duplicate_token"] == pytest.approx((1 / 3 + 1 / 4) / 2)


def test_scores_are_those_of_the_models_own_patterns(tiny_llama):
    tokens = [[5, 6, 7, 5, 6, 7]]

    result = attention_scores(tiny_llama, tokens)

    pattern = np.array(tiny_llama.trace(tokens[0], capture=["L1.pattern"])["L1.pattern"])[0, 3]
    assert result.score("previous_token")[1, 3] == pytest.approx(np.diag(pattern, -1).mean(), abs=1e-5)
    assert result.score("induction")[1, 3] == pytest.approx(np.diag(pattern, -2)[1:].mean(), abs=1e-5)


def test_the_same_seed_gives_the_same_tokens(tiny_llama):
    first, again, other = (attention_scores(tiny_llama, seed=seed) for seed in (0, 0, 1))

    assert first == again
    assert not np.array_equal(first.score("induction"), other.score("induction"))


def test_tokens_without_a_repetition_are_refused(tiny_llama):
    with pytest.raises(SweepError, match="duplicate_token, induction"):
        attention_scores(tiny_llama, [[1, 2, 3]])
    with pytest.raises(SweepError, match="period=1"):
        attention_scores(tiny_llama, period=1)
