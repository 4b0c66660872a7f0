"""A GGUF file is read into the model it was made from, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxterp.errors import ModelNotFound, TokenError, UnsupportedArchitecture
from mlxterp.models import bundled, gguf
from mlxterp.models.tokenizer import GgufTokenizer
from tests import tiny_gguf

TOKENS = mx.array([[5, 17, 200, 3, 99, 17]])


def test_the_model_read_is_the_model_written(tmp_path: Path):
    original = tiny_gguf.tiny_llama()

    module = gguf.read(tiny_gguf.write(tmp_path / "tiny.gguf", original)).module

    assert mx.allclose(module(TOKENS), original(TOKENS), atol=1e-6)


def test_a_model_with_its_own_unembedding_keeps_it(tmp_path: Path):
    original = tiny_gguf.tiny_llama(tied=False)

    read = gguf.read(tiny_gguf.write(tmp_path / "tiny.gguf", original))

    assert read.config["tie_word_embeddings"] is False
    assert mx.allclose(read.module(TOKENS), original(TOKENS), atol=1e-6)


def test_rotary_rows_left_in_the_files_order_give_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    original = tiny_gguf.tiny_llama()
    monkeypatch.setattr(gguf, "deinterleave", lambda rows, n_heads: rows)

    module = gguf.read(tiny_gguf.write(tmp_path / "tiny.gguf", original)).module

    assert not mx.allclose(module(TOKENS), original(TOKENS), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"general__architecture": "mamba"}, "the architecture 'mamba'; read here are 'llama', 'smollm3'"),
        ({"llama__rope__scaling__type": "yarn"}, "scales its rotary positions"),
        ({"llama__rope__dimension_count": mx.array(8, mx.uint32)}, "turns only part of a head"),
        ({"tokenizer__ggml__model": "bert"}, "tokenizer is 'bert'"),
        (
            {"tokenizer__ggml__pre": "dbrx"},
            "pre-tokenizer 'dbrx'; read here are 'llama', and 'gpt2' with 'gpt-2', 'llama-bpe'",
        ),
    ],
)
def test_another_kind_of_model_is_refused_and_named(tmp_path: Path, changes: dict[str, Any], says: str):
    path = tiny_gguf.write(tmp_path / "tiny.gguf", **changes)

    with pytest.raises(UnsupportedArchitecture, match=says):
        gguf.read(path)


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.ffn_gate_exps.weight"])
def test_a_tensor_that_would_be_left_out_is_refused(tmp_path: Path, name: str):
    tensors = tiny_gguf.tensors(tiny_gguf.tiny_llama()) | {name: mx.arange(1.0, 9.0)}
    mx.save_gguf(str(tmp_path / "tiny.gguf"), tensors, tiny_gguf.metadata())

    with pytest.raises(UnsupportedArchitecture, match=f"holds the tensor '{name}'"):
        gguf.read(tmp_path / "tiny.gguf")


def test_a_missing_tensor_is_refused(tmp_path: Path):
    tensors = tiny_gguf.tensors(tiny_gguf.tiny_llama())
    del tensors["blk.1.ffn_up.weight"]
    mx.save_gguf(str(tmp_path / "tiny.gguf"), tensors, tiny_gguf.metadata())

    with pytest.raises(UnsupportedArchitecture, match="not those of a llama"):
        gguf.read(tmp_path / "tiny.gguf")


def test_a_file_that_is_no_gguf_file_is_refused(tmp_path: Path):
    (tmp_path / "x.gguf").write_text("GGUF? no")

    with pytest.raises(ModelNotFound, match=r"x\.gguf cannot be read as a GGUF file"):
        bundled.load_gguf(tmp_path / "x.gguf")


def test_a_path_without_a_file_is_refused_and_says_what_there_is(tmp_path: Path):
    with pytest.raises(
        ModelNotFound, match=r"no file .*none\.gguf.*smollm2-135m, gemma3-270m, toy-induction"
    ):
        bundled.load_gguf(tmp_path / "none.gguf")


def test_a_file_of_ones_own_is_loaded_with_its_digest(tmp_path: Path):
    path = tiny_gguf.write(tmp_path / "mine.gguf")
    steps: list[bundled.Step] = []

    loaded = bundled.load_gguf(str(path), progress=steps.append)

    assert loaded.facts["name"] == "mine"
    assert loaded.facts["digest"] == tiny_gguf.model_file(tmp_path, path).sha256
    assert steps[-1].done == steps[-1].total == path.stat().st_size


@pytest.fixture
def tokenizer(tmp_path: Path) -> GgufTokenizer:
    return gguf.read(tiny_gguf.write(tmp_path / "tiny.gguf")).tokenizer


def test_text_comes_back_from_its_tokens(tokenizer: GgufTokenizer):
    text = "the cat, 1984: café 🙂\n  <|im_end|>"

    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merges_and_leading_spaces_are_those_of_the_file(tokenizer: GgufTokenizer):
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("the cat the")] == ["the", "Ġ", "cat", "Ġthe"]


def test_control_tokens_are_one_token(tokenizer: GgufTokenizer):
    assert tokenizer.encode("<|im_end|>") == [2] == [tokenizer.eos_token_id]


@pytest.mark.parametrize(("wanted", "first"), [(0, []), (1, [1])])
def test_a_beginning_of_sequence_is_added_where_the_file_says_so(
    tmp_path: Path, wanted: int, first: list[int]
):
    path = tiny_gguf.write(tmp_path / "tiny.gguf", tokenizer__ggml__add_bos_token=mx.array(wanted, mx.uint32))
    tokenizer = gguf.read(path).tokenizer

    assert tokenizer.encode("cat") == [*first, *tokenizer.encode("cat", add_special_tokens=False)]


def test_a_conversation_is_written_by_the_files_template(tokenizer: GgufTokenizer):
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=False)

    assert text == "<|im_start|>user\nHi<|im_end|>\n"


def test_a_model_without_a_template_says_so(tmp_path: Path):
    tokenizer = gguf.read(tiny_gguf.write(tmp_path / "tiny.gguf", tokenizer__chat_template=None)).tokenizer

    with pytest.raises(TokenError, match="no chat template"):
        tokenizer.apply_chat_template([])


def test_a_token_that_does_not_exist_is_refused(tokenizer: GgufTokenizer):
    with pytest.raises(TokenError, match=f"no token 999: ids run from 0 to {tokenizer.vocab_size - 1}"):
        tokenizer.id_to_token(999)


def test_a_saved_tokenizer_reads_back_the_same(tokenizer: GgufTokenizer, tmp_path: Path):
    tokenizer.save(tmp_path)

    again = GgufTokenizer.read(tmp_path)

    assert again.encode("the cat <|im_end|> 42") == tokenizer.encode("the cat <|im_end|> 42")
    for name in ("eos_token_id", "bos_token_id", "add_bos", "chat_template", "vocab_size"):
        assert getattr(again, name) == getattr(tokenizer, name)
