"""Tiny random models of many families, built from mlx-lm's own classes, and a tokenizer of bytes.

Weights are random with a fixed seed and an ordinary size, so that every part matters to the logits.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

VOCAB = 128
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

# family -> (mlx-lm module, what differs from the sizes above)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("llama", {"model_type": "mistral", "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 8.0}),
    "gemma3": ("gemma3_text", {"sliding_window": 4, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8}),
    "gpt2": (
        "gpt2",
        {"n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64, "layer_norm_epsilon": 1e-5},
    ),
    "gpt_neox": ("gpt_neox", {"rotary_emb_base": 10000, "rotary_pct": 0.25, "num_key_value_heads": 4}),
    "phi": ("phi", {"partial_rotary_factor": 0.5}),
    "olmo2": ("olmo2", {}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "granite": (
        "granite",
        {
            "logits_scaling": 4.0,
            "attention_multiplier": 0.3,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "attention_bias": True,
            "mlp_bias": False,
        },
    ),
    "minicpm": ("minicpm", {"dim_model_base": 16, "scale_depth": 1.4, "scale_emb": 3.0}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}
PARALLEL = ("gpt_neox", "phi", "cohere")
POST_NORM = ("gemma2", "gemma3", "olmo2")


class ByteTokenizer:
    """One token per ASCII byte."""

    eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        return list(text.encode("ascii"))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(int(i) for i in ids).decode("ascii")


def tiny_module(family: str, *, seed: int = 0, **sizes: Any) -> nn.Module:
    """A random model of a family, float32."""
    name, differs = FAMILIES[family]
    module = importlib.import_module(f"mlx_lm.models.{name}")
    args = {"model_type": family, **SIZES, **differs, **sizes}
    model: nn.Module = module.Model(module.ModelArgs.from_dict(args))
    randomise(model, seed)
    return model


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Fills every parameter from `seed`: matrices by their width, norm weights about 1, biases about 0."""
    key = mx.random.key(seed)

    def draw(path: str, old: mx.array) -> mx.array:
        nonlocal key
        key, own = mx.random.split(key)
        noise = mx.random.normal(old.shape, key=own)
        if old.ndim > 1:
            return noise * (1.0 if "embed" in path or "wte" in path else 1.5 / old.shape[-1] ** 0.5)
        return 0.2 * noise + (1.0 if path.endswith("weight") else 0.0)

    model.update(tree_map_with_path(draw, model.parameters()))
    mx.eval(model.parameters())
