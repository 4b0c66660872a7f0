"""`toy-induction` as a module: a two-layer attention-only transformer, its tokenizer, and how it is loaded.

Built like the models of mlx-lm, so that the same hooks fit. The weights are written by hand
(`toy_circuit.py`, which explains them); there are no norms and no MLPs, so there is no `mlp_out`. Not here:
hooks, and what the weights mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlxterp.errors import TokenError
from mlxterp.models.attention import scaled_dot_product_attention
from mlxterp.models.toy_circuit import (
    D_HEAD,
    D_MODEL,
    N_CTX,
    N_HEADS,
    N_LAYERS,
    WEIGHTS,
    WORDS,
)


@dataclass(frozen=True)
class ToyArgs:
    """The shape of the model, named as mlx-lm names it."""

    model_type: str = "toy_induction"
    vocab_size: int = len(WORDS)
    hidden_size: int = D_MODEL
    num_hidden_layers: int = N_LAYERS
    num_attention_heads: int = N_HEADS
    head_dim: int = D_HEAD
    max_position_embeddings: int = N_CTX


class Attention(nn.Module):  # type: ignore[misc]
    """Attention as mlx-lm writes it, without rotary positions and biases."""

    def __init__(self, args: ToyArgs) -> None:
        super().__init__()
        self.n_heads = self.n_kv_heads = args.num_attention_heads
        self.head_dim = args.head_dim
        self.scale = args.head_dim**-0.5
        width = args.num_attention_heads * args.head_dim
        self.q_proj = nn.Linear(args.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(args.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(args.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, args.hidden_size, bias=False)

    def __call__(self, x: mx.array, mask: mx.array | str | None = None, cache: Any = None) -> mx.array:
        batch, pos, _ = x.shape
        queries, keys, values = (
            project(x).reshape(batch, pos, self.n_heads, self.head_dim).transpose(0, 2, 1, 3)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        z = scaled_dot_product_attention(queries, keys, values, cache=cache, scale=self.scale, mask=mask)
        written: mx.array = self.o_proj(z.transpose(0, 2, 1, 3).reshape(batch, pos, -1))
        return written


class Block(nn.Module):  # type: ignore[misc]
    """A block that only attends."""

    def __init__(self, args: ToyArgs) -> None:
        super().__init__()
        self.self_attn = Attention(args)

    def __call__(self, x: mx.array, mask: mx.array | str | None = None, cache: Any = None) -> mx.array:
        return x + self.self_attn(x, mask, cache)


class ToyModel(nn.Module):  # type: ignore[misc]
    """Embeddings of words and positions, then the blocks."""

    def __init__(self, args: ToyArgs) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.embed_positions = nn.Embedding(args.max_position_embeddings, args.hidden_size)
        self.layers = [Block(args) for _ in range(args.num_hidden_layers)]

    def __call__(self, inputs: mx.array, cache: list[Any] | None = None) -> mx.array:
        caches = cache or [None] * len(self.layers)
        start = 0 if caches[0] is None else caches[0].offset
        stop = start + inputs.shape[1]
        positions = self.embed_positions.weight.shape[0]
        if stop > positions:
            raise TokenError(f"{stop} tokens are too many: this model has {positions} positions. Use fewer.")
        h: mx.array = self.embed_tokens(inputs) + self.embed_positions(mx.arange(start, stop))
        mask = "causal" if inputs.shape[1] > 1 else None
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            h = layer(h, mask, layer_cache)
        return h


class Model(nn.Module):  # type: ignore[misc]
    """The whole model: `model(inputs)` gives logits [batch, pos, vocab]."""

    def __init__(self, args: ToyArgs | None = None) -> None:
        super().__init__()
        self.args = args or ToyArgs()
        self.model_type = self.args.model_type
        self.model = ToyModel(self.args)
        self.lm_head = nn.Linear(self.args.hidden_size, self.args.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache: list[Any] | None = None) -> mx.array:
        logits: mx.array = self.lm_head(self.model(inputs, cache))
        return logits

    @property
    def layers(self) -> list[Block]:
        layers: list[Block] = self.model.layers
        return layers


class WordTokenizer:
    """One token per word, words apart by spaces; a space before a word changes nothing."""

    eos_token_id = None
    bos_token_id = None
    chat_template = None

    def __init__(self, words: Iterable[str] = WORDS) -> None:
        self.words = tuple(words)
        self._ids = {word: i for i, word in enumerate(self.words)}

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Token ids of the words of `text`.

        Raises:
            TokenError: a word that is not in the vocabulary; names some that are.
        """
        words = text.split()
        unknown = [word for word in words if word not in self._ids]
        if unknown:
            raise TokenError(
                f"{unknown[0]!r} is not one of the {len(self.words)} words of toy-induction. "
                f"Use words such as {', '.join(self.words[::4])}; `tokenizer.words` lists all of them."
            )
        return [self._ids[word] for word in words]

    def decode(self, ids: Iterable[int]) -> str:
        """The words, one space between them."""
        return " ".join(self.id_to_token(token_id) for token_id in ids)

    def id_to_token(self, token_id: int) -> str:
        if not 0 <= token_id < len(self.words):
            raise TokenError(f"There is no token {token_id}: ids run from 0 to {len(self.words) - 1}.")
        return self.words[token_id]


class Toy(NamedTuple):
    """The module with its weights, and the tokenizer."""

    module: Model
    tokenizer: WordTokenizer


def load() -> Toy:
    """The model with the weights that ship in the package; nothing is fetched."""
    stored: Any = mx.load(str(weights_file()))
    module = Model()
    module.load_weights([(name, value.astype(mx.float32)) for name, value in stored.items()])
    mx.eval(module.parameters())
    return Toy(module, WordTokenizer())


def weights_file() -> Path:
    """Where the weights lie in the package; the true circuit lies beside them."""
    return Path(str(files("mlxterp") / "weights" / WEIGHTS))
