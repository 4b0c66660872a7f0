"""One token for the beginning of a sequence, never two; and words as SentencePiece tokenizers have them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, normalizers, processors

from mlxterp.core.model import InterpretableModel
from mlxterp.errors import TokenError
from tests.tiny_models import ByteTokenizer, tiny_module

PIECES = ["<unk>", "<s>", "</s>", "▁", "▁The", "▁city", "▁Paris", "▁is", "Paris", "<|endoftext|>"]


class Llama2Tokenizer:
    """What transformers makes of a SentencePiece model in its older form: every text gets a ▁ in front."""

    bos_token_id = 1
    eos_token_id = 2

    def __init__(self, *, add_bos: bool = True) -> None:
        letters = [*"TheciyParsabdfgjklmnopqtuvwx|<>/_"]
        pieces = [*PIECES, *(letter for letter in dict.fromkeys(letters) if letter not in PIECES)]
        merges = [(word[:i], word[i]) for word in PIECES[4:9] for i in range(1, len(word))]
        vocabulary = dict.fromkeys([*pieces, *(a + b for a, b in merges)])
        self._tokenizer = Tokenizer(
            models.BPE({piece: i for i, piece in enumerate(vocabulary)}, merges, unk_token="<unk>")
        )
        self._tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        self._tokenizer.add_special_tokens(["<s>", "</s>", "<|endoftext|>"])
        if add_bos:
            self._tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 1)]
            )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids) -> str:
        text = "".join(self._tokenizer.id_to_token(int(i)) or "" for i in ids).replace("▁", " ")
        return text.removeprefix(" ")


def model_with(*, add_bos: bool = True, **options) -> InterpretableModel:
    given = {name: value for name, value in options.items() if value is not None}
    return InterpretableModel(tiny_module("llama"), Llama2Tokenizer(add_bos=add_bos), **given)


def first_tokens(model: InterpretableModel, text: str, n: int = 2) -> list[int]:
    return model.to_tokens(text)[0, :n].tolist()


@pytest.mark.parametrize("text", ["The city", "<s>The city", "<s> The city"])
@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("prepend_bos", [None, True])
def test_a_prompt_begins_with_one_bos_token_and_never_with_two(text, add_bos, prepend_bos):
    model = model_with(add_bos=add_bos, prepend_bos=prepend_bos)

    first, second = first_tokens(model, text)

    assert second != 1
    assert (first == 1) == (add_bos or prepend_bos is True or text.startswith("<s>"))


def test_the_default_is_the_tokenizers_own_convention_and_is_recorded():
    for add_bos in (True, False):
        model = model_with(add_bos=add_bos)

        assert model.prepend_bos is add_bos
        assert model.facts["prepend_bos"] is add_bos


def test_a_bos_token_can_be_left_out_or_put_in_front():
    assert first_tokens(model_with(prepend_bos=False), "The", 1) == [PIECES.index("▁The")]
    assert first_tokens(model_with(prepend_bos=False), "<s>The", 1) == [1]
    assert first_tokens(model_with(add_bos=False, prepend_bos=True), "The") == [1, PIECES.index("▁The")]


def test_another_token_can_stand_at_the_beginning():
    model = model_with(prepend_bos="<|endoftext|>")

    expected = [PIECES.index("<|endoftext|>"), PIECES.index("▁The")]
    assert first_tokens(model, "The") == expected
    assert first_tokens(model_with(add_bos=False, prepend_bos="<|endoftext|>"), "The") == expected


def test_generation_from_a_templates_text_begins_with_one_bos_token():
    model = model_with()

    assert model.generate("<s>The city", max_new_tokens=1).prompt_tokens[:2] == tuple(
        first_tokens(model, "The city")
    )


def test_token_ids_stay_as_they_are():
    assert model_with(prepend_bos=True).to_tokens([7, 8]).tolist() == [[7, 8]]


def test_a_tokenizer_without_a_bos_token_cannot_put_one_in_front():
    with pytest.raises(TokenError, match="names no token for the beginning"):
        InterpretableModel(tiny_module("llama"), ByteTokenizer(), prepend_bos=True)


def test_prompts_that_differ_at_position_0_get_a_caution_where_a_bos_token_is_not_used():
    from mlxterp.core.model import bos_caution

    without = model_with(add_bos=False)

    said = bos_caution(without, [4, 7], [6, 7])

    assert said is not None
    assert "prepend_bos=True" in said
    assert "prepend_bos='<|endoftext|>'" in said
    assert bos_caution(without, [4, 7], [4, 8]) is None
    assert bos_caution(without, [1, 4], [1, 6]) is None
    no_bos = InterpretableModel(tiny_module("llama"), ByteTokenizer())
    assert bos_caution(no_bos, [4, 7], [6, 7]) is None


def test_smollm2_with_a_token_in_front_prefers_he_after_john():
    model = InterpretableModel("smollm2-135m", prepend_bos="<|endoftext|>", verify=False)

    logits = model.logits("John is tired because")[0, -1]

    he, she = (model.to_single_token(word) for word in (" he", " she"))
    assert float(logits[he] - logits[she]) == pytest.approx(3.52, abs=0.05)


@pytest.mark.parametrize("text", ["Paris", " Paris"])
def test_a_word_with_its_space_is_one_token_where_the_tokenizer_adds_the_space(text):
    assert model_with().to_single_token(text) == PIECES.index("▁Paris")


def test_the_advice_is_that_for_the_tokenizer_at_hand():
    with pytest.raises(TokenError, match="a leading space changes nothing"):
        model_with().to_single_token(" cat")
    with pytest.raises(TokenError, match="a leading space usually matters"):
        InterpretableModel(tiny_module("llama"), ByteTokenizer()).to_single_token("cat")


class Words:
    """Byte-level words: 'Paris' is two tokens, ' Paris' is one, ' the' and 'the' are one each."""

    tokens = ("Par", "is", " Paris", "the", " the", "a", " ")

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            index = max(
                (i for i, t in enumerate(self.tokens) if text.startswith(t)),
                key=lambda i: len(self.tokens[i]),
            )
            ids.append(index)
            text = text[len(self.tokens[index]) :]
        return ids

    def decode(self, ids) -> str:
        return "".join(self.tokens[int(i)] for i in ids)


def test_the_other_form_of_a_word_is_named_where_it_is_another_token():
    model = InterpretableModel(tiny_module("llama"), Words())

    assert model.other_form("Paris") == " Paris"
    assert model.other_form("the") == " the"
    assert model.other_form(" the") == "the"
    assert model.other_form(" Paris") is None
    assert model_with().other_form("Paris") is None
    with pytest.raises(TokenError, match=r"' Paris' is one\."):
        model.to_single_token("Paris")
