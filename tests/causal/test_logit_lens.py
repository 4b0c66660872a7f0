"""The logit lens: the last layer is the model, earlier ones are what a hand-written forward reads there."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.causal import logit_lens
from mlxterp.core import self_check
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import CapabilityUnavailable, ResultError, TokenError
from mlxterp.results import AnalysisResult, Heatmap, LogitLensResult, Table
from tests.causal.conftest import CLEAN
from tests.tiny_models import ByteTokenizer, tiny_module


def softmax(rows):
    weights = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_the_last_layer_says_what_the_model_says(any_family):
    result = logit_lens(any_family, CLEAN, answer="x", k=3)

    own = np.array(any_family.logits(CLEAN)[0].astype(mx.float32)).astype(np.float64)
    assert result.answer_logits[-1] == pytest.approx(own[:, ord("x")], abs=1e-4)
    assert result.answer_probs[-1] == pytest.approx(softmax(own)[:, ord("x")], abs=1e-5)
    assert result.answer_ranks[-1].tolist() == (1 + (own > own[:, [ord("x")]]).sum(axis=-1)).tolist()
    first = own.argmax(axis=-1)
    assert [cell[0] for cell in result.top_tokens[-1]] == [chr(token) for token in first]
    assert result.top_probs[-1, :, 0] == pytest.approx(softmax(own).max(axis=-1), abs=1e-5)


def test_an_earlier_layer_is_read_through_the_final_norm_at_its_own_scale(tiny_llama):
    resid = np.array(tiny_llama.trace(CLEAN, capture=["L1.resid_post"])["L1.resid_post"][0], dtype=np.float64)
    norm = np.array(tiny_llama.model.model.norm.weight, dtype=np.float64)
    unembedding = np.array(tiny_llama.model.lm_head.weight, dtype=np.float64)
    expected = (resid / np.sqrt((resid**2).mean(axis=-1, keepdims=True) + 1e-5) * norm) @ unembedding.T

    result = logit_lens(tiny_llama, CLEAN, answer="x")

    assert result.answer_logits.shape == (3, len(CLEAN))
    assert result.answer_logits[1] == pytest.approx(expected[:, ord("x")], abs=1e-4)
    assert result.answer_probs[1] == pytest.approx(softmax(expected)[:, ord("x")], abs=1e-5)


def test_the_likeliest_tokens_come_likeliest_first(tiny_llama):
    result = logit_lens(tiny_llama, CLEAN, k=4)

    assert result.top_probs.shape == (3, len(CLEAN), 4)
    assert (np.diff(result.top_probs, axis=-1) <= 0).all()
    assert {len(cell) for layer in result.top_tokens for cell in layer} == {4}


def test_positions_are_read_where_they_are_asked_for(tiny_llama):
    every = logit_lens(tiny_llama, CLEAN, answer="x")

    some = logit_lens(tiny_llama, CLEAN, answer="x", positions=[3, -1])

    assert some.positions == (3, len(CLEAN) - 1)
    assert some.answer_logits == pytest.approx(every.answer_logits[:, [3, -1]], abs=1e-5)
    assert some.tokens == tuple(CLEAN)


def test_the_answer_is_the_models_first_choice_unless_it_is_given(tiny_llama):
    result = logit_lens(tiny_llama, CLEAN)

    assert result.answer_token == int(mx.argmax(tiny_llama.logits(CLEAN)[0, -1]))
    assert result.answer_ranks[-1, -1] == 1


def test_the_induction_model_knows_its_answer_from_its_second_layer_on(toy_model):
    result = logit_lens(toy_model, "dog salt lake tree dog", answer="salt", positions=[-1])

    assert result.first_layer() == 1
    assert "from the residual stream after layer 1 on" in result.summary()
    assert result.find("L1.resid_post").effect > 0.9 > result.find("L0.resid_post").effect


def test_the_first_layer_is_the_one_from_which_on_it_stays(toy_model):
    fields = logit_lens(toy_model, [1, 2, 3, 1], positions=[-1], k=1).to_dict()
    said = ["no", "yes", "no", "yes", "yes"]
    five = {
        "answer_token_str": "yes",
        "answer_ranks": [[1.0 if token == "yes" else 2.0] for token in said],
        "top_tokens": [[[token]] for token in said],
        "top_probs": [[[0.5]]] * 5,
        "answer_probs": [[0.5]] * 5,
        "answer_logits": [[0.5]] * 5,
    }

    result = LogitLensResult.from_dict(fields | five)

    assert isinstance(result, LogitLensResult)
    assert result.first_layer() == 3


def test_an_answer_that_is_not_the_first_choice_has_no_first_layer(toy_model):
    result = logit_lens(toy_model, "dog salt lake tree dog", answer="lake", positions=[-1])

    assert result.first_layer() is None
    assert "its first choice is 'salt'" in result.summary()


def test_the_heatmap_names_the_tokens_and_the_table_what_each_layer_says(toy_model):
    result = logit_lens(toy_model, "dog salt lake tree dog", answer="salt", k=2)

    heatmap, table = result.shows()

    assert isinstance(heatmap, Heatmap)
    assert heatmap.row_labels == ("0 'dog'", "1 ' salt'", "2 ' lake'", "3 ' tree'", "4 ' dog'")
    assert heatmap.values[4][1] == result.answer_probs[1, 4]
    assert isinstance(table, Table)
    assert table.rows[-1][1].startswith("'salt' ")
    assert len(result.components()) == len({each.label for each in result.components()}) == 10


def test_it_is_read_back_from_json_and_drawn(toy_model):
    result = logit_lens(toy_model, [1, 2, 3, 1], k=3)

    assert AnalysisResult.from_json(result.to_json()) == result
    assert len(result.plot().axes) >= 1
    assert "Logit lens" in result.to_markdown()


@pytest.mark.parametrize("change", [{"positions": (0,)}, {"answer_ranks": [[1.0]]}, {"top_probs": [[[1.0]]]}])
def test_fields_that_contradict_each_other_are_refused(toy_model, change):
    fields = logit_lens(toy_model, [1, 2, 3, 1]).to_dict()

    with pytest.raises(ResultError, match="of shape"):
        AnalysisResult.from_dict(fields | change)


def test_what_cannot_be_read_is_refused(tiny_llama):
    with pytest.raises(TokenError, match=r"position 11 does not exist.*0 to 10"):
        logit_lens(tiny_llama, CLEAN, positions=[11])
    with pytest.raises(TokenError, match="k=0: llama has 128 tokens"):
        logit_lens(tiny_llama, CLEAN, k=0)
    with pytest.raises(TokenError, match="no positions were given"):
        logit_lens(tiny_llama, CLEAN, positions=[])


def test_a_model_whose_unembedding_is_not_known_is_refused():
    model = InterpretableModel(tiny_module("llama"), ByteTokenizer())
    model.architecture.logit_scale = 2.0  # no longer the model's own
    self_check.switch_off_what_fails(model.architecture)

    with pytest.raises(CapabilityUnavailable, match="norm and unembedding do not give its own logits"):
        logit_lens(model, CLEAN)
