"""The bundled models: what they are, that they are read right, and that they are there quickly."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlxterp.core.linux_blas import blas
from mlxterp.errors import CapabilityUnavailable, ModelNotFound
from mlxterp.models import (
    bundled,
    fetch,
    float32_copy,
    gguf,
)
from mlxterp.models.bundled import Bundled
from tests import tiny_gguf

GEMMA = "gemma3-270m"
SMOLLM = "smollm2-135m"
ENGLISH = (
    "The water cycle describes how water moves on, above and below the surface of the Earth. Heat from "
    "the sun causes water in rivers, lakes and oceans to evaporate and rise into the air as vapor. As the "
    "vapor cools, it condenses into tiny drops that form clouds. When the drops become heavy enough, they "
    "fall back to the ground as rain or snow. Some of this water flows into streams and rivers, and some "
    "of it soaks into the soil, where plants take it up through their roots."
)


def perplexity(model: nn.Module, tokens: mx.array) -> float:
    blas.use_idle_cores()
    logits = model(tokens)
    losses = nn.losses.cross_entropy(logits[:, :-1], tokens[:, 1:], reduction="mean")
    return math.exp(losses.item())


@pytest.fixture(scope="module")
def smollm() -> Bundled:
    return bundled.load(SMOLLM)


@pytest.fixture(scope="module")
def english(smollm: Bundled) -> mx.array:
    return mx.array([smollm.tokenizer.encode(ENGLISH)])


def interleaved(rows: mx.array, n_heads: int) -> mx.array:
    """Rows of q or k as llama.cpp orders them."""
    return rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def test_smollm_has_the_published_shape(smollm: Bundled):
    args = smollm.module.args

    assert (args.num_hidden_layers, args.hidden_size, args.vocab_size) == (30, 576, 49152)
    assert (args.num_attention_heads, args.num_key_value_heads) == (9, 3)
    assert args.tie_word_embeddings
    assert {value.dtype for _, value in tree_flatten(smollm.module.parameters())} == {mx.float32}


def test_smollm_reads_ordinary_english(smollm: Bundled, english: mx.array):
    assert perplexity(smollm.module, english) < 15


@pytest.mark.slow
def test_smollm_with_its_rotary_rows_left_as_they_were_does_not(smollm: Bundled, english: mx.array):
    wrong = bundled.load(SMOLLM).module
    for layer in wrong.layers:
        attention = layer.self_attn
        attention.q_proj.weight = interleaved(attention.q_proj.weight, attention.n_heads)
        attention.k_proj.weight = interleaved(attention.k_proj.weight, attention.n_kv_heads)

    assert perplexity(wrong, english) > 25


@pytest.mark.slow
def test_quantised_smollm_keeps_its_bits_and_gives_the_same_logits(smollm: Bundled, english: mx.array):
    quantized = bundled.load(SMOLLM, quantized=True)
    first = english[:, :10]

    assert quantized.module.model.embed_tokens.bits == 8
    assert quantized.module.layers[0].mlp.down_proj.bits == 4
    assert quantized.facts["weights"] == "quantized"
    assert mx.allclose(quantized.module(first), smollm.module(first), atol=2e-3)


@pytest.mark.slow
def test_quantised_smollm_reads_ordinary_english(english: mx.array):
    assert perplexity(bundled.load(SMOLLM, quantized=True).module, english) < 15


def test_smollm_knows_where_france_has_its_capital(smollm: Bundled):
    tokens = mx.array([smollm.tokenizer.encode("The capital of France is")])

    assert smollm.tokenizer.decode([mx.argmax(smollm.module(tokens)[0, -1]).item()]) == " Paris"


def test_smollm_splits_digits_and_adds_no_beginning(smollm: Bundled):
    tokenizer = smollm.tokenizer
    ids = tokenizer.encode("In 1984")

    assert [tokenizer.decode([i]) for i in ids] == ["In", " ", "1", "9", "8", "4"]
    assert tokenizer.vocab_size == 49152
    assert len(tokenizer.encode(" Paris")) == len(tokenizer.encode(" Rome")) == 1


def test_smollm_has_a_chat_template_whose_marks_are_single_tokens(smollm: Bundled):
    text = smollm.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])

    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert smollm.tokenizer.encode("<|im_end|>") == [smollm.tokenizer.eos_token_id]


def test_the_float32_copy_is_what_the_gguf_file_gives(smollm: Bundled, english: mx.array):
    direct = gguf.read(fetch.fetch(SMOLLM))

    for (name, ours), (_, theirs) in zip(
        tree_flatten(smollm.module.parameters()), tree_flatten(direct.module.parameters()), strict=True
    ):
        assert mx.array_equal(ours, theirs), name
    assert direct.tokenizer.encode(ENGLISH) == english[0].tolist()


def test_a_new_process_has_smollm_without_loading_transformers(smollm: Bundled):
    code = f"""
import sys
from mlxterp.models import bundled
bundled.load("{SMOLLM}")
print("transformers" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.split() == ["False"]


def test_the_toy_needs_no_cache(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(fetch.CACHE_ENV, "/nonexistent")

    toy = bundled.load("toy-induction")

    assert toy.tokenizer.vocab_size == 40
    assert toy.facts["name"] == "toy-induction"


def test_the_toy_has_no_quantised_weights():
    with pytest.raises(CapabilityUnavailable, match="without quantized=True"):
        bundled.load("toy-induction", quantized=True)


def test_another_name_is_refused_with_those_that_are_known():
    assert bundled.NAMES == (SMOLLM, GEMMA, "toy-induction")
    with pytest.raises(
        ModelNotFound,
        match=r"'gpt2' is no bundled model\. There are: smollm2-135m, gemma3-270m, toy-induction",
    ):
        bundled.load("gpt2")


# The copy, with a tiny model in place of SmolLM2


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a bundled model whose file is in the cache, not yet copied."""
    source = tiny_gguf.write(tmp_path / "tiny.gguf")
    monkeypatch.setitem(fetch.MODEL_FILES, "tiny", tiny_gguf.model_file(tmp_path, source))
    monkeypatch.setenv(fetch.CACHE_ENV, str(tmp_path / "cache"))
    fetch.cached_path("tiny").parent.mkdir(parents=True)
    shutil.copy(source, fetch.cached_path("tiny"))
    return "tiny"


TOKENS = mx.array([[5, 17, 200, 3]])


def copy_of(name: str) -> Path:
    return fetch.cached_path(name).parent / float32_copy.NAME


@pytest.mark.usefixtures("pinned_threads")
def test_the_second_load_reads_the_copy(tiny: str, monkeypatch: pytest.MonkeyPatch):
    first = bundled.load(tiny)
    monkeypatch.delattr(gguf, "read")

    second = bundled.load(tiny)

    assert mx.array_equal(second.module(TOKENS), first.module(TOKENS))
    assert second.tokenizer.encode("the cat 42") == first.tokenizer.encode("the cat 42")
    assert second.facts == first.facts


@pytest.mark.usefixtures("pinned_threads")
def test_other_tools_can_read_the_copy(tiny: str):
    ours = bundled.load(tiny)
    from mlx_lm import load

    theirs, tokenizer = load(str(copy_of(tiny)))

    assert mx.allclose(theirs(TOKENS), ours.module(TOKENS), atol=1e-6)
    assert tokenizer.encode("the cat 42") == ours.tokenizer.encode("the cat 42")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "missing"])
@pytest.mark.usefixtures("pinned_threads")
def test_a_damaged_copy_is_written_anew(tiny: str, damage: str):
    expected = bundled.load(tiny).module(TOKENS)
    file = copy_of(tiny) / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-1], "empty": b"", "text": b"?" * 100, "missing": whole}[damage])
    if damage == "missing":
        (copy_of(tiny) / "tokenizer.json").unlink()

    again = bundled.load(tiny).module(TOKENS)

    assert mx.array_equal(again, expected)
    assert file.stat().st_size == len(whole)
    assert (copy_of(tiny) / "tokenizer.json").exists()


def test_a_copy_of_another_file_is_not_used(tiny: str):
    bundled.load(tiny)

    assert float32_copy.read(copy_of(tiny).parent, "0" * 64) is None


def test_on_a_full_disk_the_model_loads_without_a_copy(tiny: str, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 100, 0))

    loaded = bundled.load(tiny)

    assert loaded.module(TOKENS).shape == (1, 4, loaded.tokenizer.vocab_size)
    assert not copy_of(tiny).exists()


def test_a_write_that_fails_leaves_no_copy_and_no_litter(tiny: str, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[save_safetensors] Failed to write")

    monkeypatch.setattr(mx, "save_safetensors", full)

    loaded = bundled.load(tiny)

    assert loaded.module(TOKENS).shape == (1, 4, loaded.tokenizer.vocab_size)
    assert [path.name for path in fetch.cache_dir().rglob("*") if path.is_file()] == ["tiny.gguf"]
