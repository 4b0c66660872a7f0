"""How model families differ from the common block: names of parts, where outputs are added, scales of logits.

The common block adds what `self_attn` and `mlp` return to the residual stream. What an entry here says is
checked at load (`self_check.py`), so a wrong entry switches hook points off instead of reading the wrong
thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

# The last three stand in attention's place in hybrid models.
ATTENTION = ("self_attn", "attn", "attention", "self_attention", "mixer", "linear_attn", "conv", "mamba")
OUT_PROJECTION = (
    "o_proj",
    "out_proj",
    "c_proj",
    "dense",
    "wo",
    "proj",
    "attn_out",
    "linear_out",
    "attn_resid",
)
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "ff")
FINAL_NORM = (
    "norm",
    "ln_f",
    "final_layernorm",
    "final_layer_norm",
    "norm_f",
    "final_norm",
    "ln_out",
    "embedding_norm",  # lfm2's final norm
)
EMBEDDING = (
    "embed_tokens",
    "wte",
    "embed_in",
    "tok_embeddings",
    "word_embeddings",
    "token_embeddings",
    "embedding",
    "embed",
)
POSITIONS = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "embed_pos", "pos_embed")
UNEMBEDDING = ("lm_head", "embed_out", "output", "unembed", "head")
N_HEADS = ("n_heads", "num_heads", "num_attention_heads", "n_head")
N_KV_HEADS = ("n_kv_heads", "num_key_value_heads", "num_kv_heads", "n_kv_head")


def _one(_: Any) -> float:
    return 1.0


def _no_cap(_: Any) -> float | None:
    return None


@dataclass(frozen=True)
class Family:
    """What one mlx-lm module does differently. Functions take the model's `args`.

    Attributes:
        attn, mlp: dotted names inside a block, when they are not among the usual ones.
        attn_adds, mlp_adds: the module of a block whose output is added to the residual stream; by default
            the attention and the MLP themselves. Post-norm families add what a norm returns.
        attn_scale, mlp_scale: the factor it is added with.
        logit_scale: the factor between the unembedding's product and the logits.
        softcap: c in c · tanh(logits / c).
        own_softmax: whether attention is computed in place, with `mx.softmax`, and no function is called.
        stream_argument: which of a block's positional arguments is the residual stream.
    """

    attn: str = ""
    mlp: str = ""
    attn_adds: str = ""
    mlp_adds: str = ""
    attn_scale: Callable[[Any], float] = _one
    mlp_scale: Callable[[Any], float] = _one
    logit_scale: Callable[[Any], float] = _one
    softcap: Callable[[Any], float | None] = _no_cap
    own_softmax: bool = False
    stream_argument: int = 0


def _granite(args: Any) -> float:
    return float(args.residual_multiplier)


def _minicpm(args: Any) -> float:
    return float(args.scale_depth / args.num_hidden_layers**0.5)


def _cap(args: Any) -> float | None:
    return args.final_logit_softcapping or None


_GRANITE = Family(
    attn_scale=_granite, mlp_scale=_granite, logit_scale=lambda args: 1.0 / float(args.logits_scaling)
)
_POST_NORMS = Family(attn_adds="post_attention_layernorm", mlp_adds="post_feedforward_layernorm")

# By the name of the mlx-lm module that defines the model; `mistral` is mlx-lm's `llama`.
FAMILIES = {
    "cohere": Family(logit_scale=lambda args: float(args.logit_scale)),
    "cohere2": Family(logit_scale=lambda args: float(args.logit_scale)),
    "exaone": Family(attn="attn.attention"),
    "exaone4": _POST_NORMS,
    "gemma2": replace(_POST_NORMS, softcap=_cap, own_softmax=True),
    "gemma3_text": _POST_NORMS,
    "gemma4_text": replace(_POST_NORMS, softcap=_cap),
    "glm4": Family(attn_adds="post_self_attn_layernorm", mlp_adds="post_mlp_layernorm"),
    "granite": _GRANITE,
    "granitemoe": _GRANITE,
    "minicpm": Family(
        attn_scale=_minicpm,
        mlp_scale=_minicpm,
        logit_scale=lambda args: 1.0 if args.tie_word_embeddings else args.dim_model_base / args.hidden_size,
    ),
    "olmo2": _POST_NORMS,
    "olmo3": _POST_NORMS,
    # block(normalised embedding, residual stream, …): the first is added, with a gain, in every block.
    "talkie": Family(attn_adds="attn_gain", mlp_adds="mlp_gain", stream_argument=1),
}

COMMON = Family()
