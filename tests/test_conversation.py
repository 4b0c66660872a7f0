"""Conversations: the tokenizer's own template, turns in their places, patching by turn, generations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlxterp import (
    InterpretableModel,
    chat,
    generation_result,
    turn_patching,
    turns,
)
from mlxterp.causal import activation_patching
from mlxterp.errors import PromptPairError, ResultError, TokenError
from mlxterp.models import bundled
from mlxterp.results import AnalysisResult, GenerationResult
from tests import tiny_gguf
from tests.tiny_models import ByteTokenizer, tiny_module

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MESSAGES = [
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "the cat and the user, naïve 🙂"},
    {"role": "user", "content": "the"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> InterpretableModel:
    """Two random layers with a byte-level tokenizer and a chat template, read from a GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_gguf.write(path, tiny_gguf.tiny_llama())
    return InterpretableModel(str(path))


@pytest.fixture(scope="module")
def smollm() -> InterpretableModel:
    """SmolLM2's tokenizer and its template; where turns are has nothing to do with the weights."""
    return InterpretableModel(tiny_module("llama"), bundled.load("smollm2-135m").tokenizer)


def text_of(model, turn, ids) -> str:
    return model.tokenizer.decode(ids[turn.start : turn.stop])


@pytest.mark.parametrize("template", [None, LLAMA], ids=["own", "llama-3-like"])
def test_the_tokens_of_a_turn_are_its_content(model, template):
    ids = chat(model, MESSAGES, template=template)
    found = turns(model, MESSAGES, template=template)

    assert [turn.role for turn in found] == ["user", "assistant", "user"]
    assert [text_of(model, turn, ids) for turn in found] == [m["content"] for m in MESSAGES]
    assert [turn.text for turn in found] == [m["content"] for m in MESSAGES]
    assert all(a.stop <= b.start for a, b in itertools.pairwise(found))


def test_smollms_turns_are_found_behind_the_system_prompt_that_its_template_adds(smollm):
    ids = chat(smollm, MESSAGES)
    found = turns(smollm, MESSAGES)
    text = smollm.tokenizer.decode(ids)

    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>assistant\n")
    assert text == smollm.tokenizer.apply_chat_template(MESSAGES)
    assert [text_of(smollm, turn, ids).strip("\n") for turn in found] == [m["content"] for m in MESSAGES]
    assert found[0].start > 15
    marks = smollm.tokenizer.encode("<|im_start|>")
    assert len(marks) == 1
    assert ids.count(marks[0]) == 5


def test_without_a_generation_prompt_the_last_turn_ends_the_conversation(model):
    whole, ended = (
        chat(model, MESSAGES, template=LLAMA),
        chat(model, MESSAGES, template=LLAMA, add_generation_prompt=False),
    )

    assert whole[: len(ended)] == ended
    assert len(whole) > len(ended)
    assert turns(model, MESSAGES, template=LLAMA, add_generation_prompt=False) == turns(
        model, MESSAGES, template=LLAMA
    )


def test_a_template_that_trims_is_followed(model):
    messages = [{"role": "user", "content": "  the cat \n"}, {"role": "assistant", "content": "cat"}]

    found = turns(model, messages, template=LLAMA)

    ids = chat(model, messages, template=LLAMA)
    assert [turn.text for turn in found] == ["the cat", "cat"]
    assert [text_of(model, turn, ids) for turn in found] == ["the cat", "cat"]


def test_an_empty_turn_has_no_tokens(model):
    (empty, after) = turns(model, [{"role": "system", "content": ""}, {"role": "user", "content": "the"}])

    assert empty.positions == ()
    assert after.text == "the"


def test_a_template_that_rewrites_contents_is_refused(model):
    with pytest.raises(TokenError, match="beyond trimming"):
        turns(model, MESSAGES, template="{% for m in messages %}{{ m['content'] | upper }}{% endfor %}")


def test_a_tokenizer_of_another_make_renders_its_own_template():
    class Another(ByteTokenizer):
        chat_template = "anything"

        def apply_chat_template(self, messages, *, add_generation_prompt, tokenize):
            assert not tokenize
            said = "".join(f"{m['role']}: {m['content']}\n" for m in messages)
            return said + ("assistant: " if add_generation_prompt else "")

    model = InterpretableModel(tiny_module("llama"), Another())
    messages = [{"role": "user", "content": "assistant: no"}]

    assert bytes(chat(model, messages)) == b"user: assistant: no\nassistant: "
    (turn,) = turns(model, messages)
    assert (turn.start, turn.stop) == (6, 19)


def test_a_tokenizer_without_a_template_says_what_to_do(tiny_llama):
    with pytest.raises(TokenError, match=r"no chat template.*template="):
        chat(tiny_llama, MESSAGES)


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": "user", "content": 3}]])
def test_what_is_no_conversation_is_refused(model, messages):
    with pytest.raises(TokenError, match="'role'"):
        chat(model, messages)


def test_a_template_that_cannot_be_read_is_refused(model):
    with pytest.raises(TokenError, match="cannot be rendered"):
        chat(model, MESSAGES, template="{% for %}")


# patching by turn

CLEAN = [{"role": "user", "content": "the pig"}, {"role": "user", "content": "one"}]
CORRUPTED = [{"role": "user", "content": "the dog"}, {"role": "user", "content": "two"}]


def test_patching_a_turn_is_patching_all_its_tokens_together(model):
    result = turn_patching(model, CLEAN, CORRUPTED, metric="kl")

    pair = chat(model, CLEAN), chat(model, CORRUPTED)
    for i, turn in enumerate(turns(model, CORRUPTED)):
        alone = activation_patching(
            model, *pair, component="resid_pre", by="layer", metric="kl", positions=list(turn.positions)
        )
        np.testing.assert_allclose(result.effects[:, i], alone.effects, atol=1e-6)
    assert result.effects.shape == (2, 2)
    assert np.abs(result.effects).max() > 0.01


def test_before_the_first_layer_a_turn_alone_does_what_its_words_do(model):
    """With only the first turn changed, the clean embedding of that turn restores everything."""
    changed = [CORRUPTED[0], CLEAN[1]]

    result = turn_patching(model, CLEAN, changed, metric="kl", layers=[0])

    assert result.effects[0] == pytest.approx([1, 0], abs=1e-4)
    assert "turn 0 user 'the dog'" in result.top_components(1)[0].label
    assert AnalysisResult.from_json(result.to_json()) == result
    assert result.plot().texts[0].get_text() == "Patching resid_pre by layer and turn"


def test_conversations_of_other_roles_are_refused(model):
    with pytest.raises(PromptPairError, match="don't correspond"):
        turn_patching(model, CLEAN, [CORRUPTED[0]])


# generations


def test_a_generation_as_a_result_holds_what_was_generated(model):
    given = model.generate(chat(model, MESSAGES), max_new_tokens=5)

    result = generation_result(model, given, max_new_tokens=5)

    assert isinstance(result, GenerationResult)
    assert (result.text, result.tokens, result.stopped) == (given.text, given.tokens, given.stopped)
    assert len(result.token_texts) == len(given.tokens)
    assert result.measured_on["settings"] == {"max_new_tokens": 5}
    assert AnalysisResult.from_json(result.to_json()) == result


def test_its_log_probabilities_are_the_models_own(model):
    given = model.generate("the cat", max_new_tokens=4, stop_at_end=False)
    result = generation_result(model, given)

    logits = np.array(model.logits(given.prompt_tokens + given.tokens))[0].astype(np.float64)
    n = len(given.prompt_tokens)
    rows = logits[n - 1 : n - 1 + len(given.tokens)]
    own = rows[np.arange(len(rows)), given.tokens] - np.log(np.exp(rows).sum(axis=1))
    np.testing.assert_allclose(result.logprobs, own, atol=1e-4)
    assert result.perplexity == pytest.approx(np.exp(-own.mean()), rel=1e-4)
    assert f"{result.token_texts[int(own.argmin())]!r}" in result.summary()


def test_a_generation_of_nothing_is_shown_too(model):
    result = generation_result(model, model.generate("the", max_new_tokens=0))

    assert "0 tokens" in result.title
    assert np.isnan(result.perplexity)
    assert result.to_markdown()


def test_a_generation_with_a_token_too_many_is_refused():
    with pytest.raises(ResultError, match="one of each per token"):
        GenerationResult(
            prompt="a",
            text="b",
            prompt_tokens=(1,),
            tokens=(2, 3),
            token_texts=("b",),
            logprobs=np.array([-1.0]),
            stopped="length",
        )
