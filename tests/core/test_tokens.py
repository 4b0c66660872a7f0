import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mlxterp.core.tokens import TextTokens, as_rows, pad
from mlxterp.errors import TokenError
from tests.tiny_models import ByteTokenizer


def sentencepiece_like() -> Tokenizer:
    """Words with their leading space, which a decoder drops at the start of a text."""
    words = {"<unk>": 0, "▁the": 1, "▁cat": 2, "s": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


class WithBos:
    """Adds a token of its own unless asked not to."""

    bos_token_id = 7

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [7, *map(ord, text)] if add_special_tokens else [ord(c) for c in text]

    def decode(self, ids) -> str:
        return "".join("" if i == 7 else chr(i) for i in ids)


def test_tokens_split_a_text_into_pieces_that_join_to_it():
    text = TextTokens(ByteTokenizer())

    assert text.split(text.encode("a cat")) == ["a", " ", "c", "a", "t"]


def test_a_decoder_that_drops_a_leading_space_does_not_lose_it_inside_a_text():
    assert TextTokens(sentencepiece_like()).split([1, 2, 3, 2]) == ["the", " cat", "s", " cat"]


def test_a_library_tokenizer_gives_plain_ids():
    assert TextTokens(sentencepiece_like()).encode("the cat") == [1, 2]


def test_a_prompt_gets_the_tokenizers_own_special_tokens_and_a_single_token_does_not():
    text = TextTokens(WithBos())

    assert text.encode("a") == [7, 97]
    assert text.single("a") == 97


def test_a_special_token_without_text_is_shown_by_its_number():
    assert TextTokens(WithBos()).split([7, 97]) == ["<7>", "a"]


@pytest.mark.parametrize("text", ["cat", ""])
def test_a_text_that_is_not_one_token_is_an_error_that_shows_the_split(text):
    with pytest.raises(TokenError, match="'c\\|a\\|t'" if text else "is 0 tokens"):
        TextTokens(ByteTokenizer()).single(text)


def test_the_end_of_sequence_ids_are_the_tokenizers():
    assert TextTokens(ByteTokenizer()).eos_ids == {0}
    assert TextTokens(WithBos()).eos_ids == frozenset()


def test_padding_goes_to_the_right_and_the_mask_marks_each_rows_own_tokens():
    batch = pad([[1, 2, 3], [4], np.array([5, 6])], pad_id=9)

    assert batch.tokens.tolist() == [[1, 2, 3], [4, 9, 9], [5, 6, 9]]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert batch.last.tolist() == [2, 0, 1]


@pytest.mark.parametrize("ids", [[], [[]], [0.5], [[[1]]], "abc"])
def test_what_is_no_row_of_token_ids_is_an_error(ids):
    with pytest.raises(TokenError):
        as_rows(ids)


def test_an_empty_list_of_prompts_is_an_error():
    with pytest.raises(TokenError, match="at least one"):
        pad([])
