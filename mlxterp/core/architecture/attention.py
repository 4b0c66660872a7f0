"""Attention probabilities written out, and how a run reads and edits them inside a model's own attention.

Models of mlx-lm call a function named `scaled_dot_product_attention`, found in their own module. `forward.py`
puts its own there while it runs; q, k, v and pattern are read and edited where the model really uses them,
whatever norms, masks, windows or sinks came before. A module of your own is read the same way if it calls
`mlxterp.models.attention.scaled_dot_product_attention` by this name. gemma2 calls no function but
`mx.softmax`, which is seen the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

NAME = "scaled_dot_product_attention"


def pattern(
    queries: mx.array,
    keys: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """Attention probabilities [batch, n_heads, dest, src], in the queries' dtype; softmax in float32.

    Key/value heads are shared by groups of query heads. A sink takes its share of the probability away, so
    that rows then add up to less than 1.
    """
    batch, n_heads, n_dest, d_head = queries.shape
    n_kv, n_src = keys.shape[1:3]
    grouped = (queries * scale).reshape(batch, n_kv, n_heads // n_kv, n_dest, d_head)
    scores = (grouped @ keys[:, :, None].swapaxes(-1, -2)).reshape(batch, n_heads, n_dest, n_src)
    scores = _masked(scores.astype(mx.float32), mask)
    if sinks is None:
        return mx.softmax(scores, axis=-1).astype(queries.dtype)
    sink = mx.broadcast_to(sinks.astype(mx.float32)[None, :, None, None], (batch, n_heads, n_dest, 1))
    return mx.softmax(mx.concatenate([sink, scores], axis=-1), axis=-1)[..., 1:].astype(queries.dtype)


def _masked(scores: mx.array, mask: mx.array | str | None) -> mx.array:
    if mask is None:
        return scores
    if isinstance(mask, str):
        n_dest, n_src = scores.shape[-2:]
        mask = mx.arange(n_src - n_dest, n_src)[:, None] >= mx.arange(n_src)[None]
    if mask.dtype == mx.bool_:
        return mx.where(mask, scores, mx.array(-mx.inf, dtype=scores.dtype))
    return scores + mask


def attend(probabilities: mx.array, values: mx.array) -> mx.array:
    """pattern · v, [batch, n_heads, dest, d_head]."""
    batch, n_heads, n_dest, n_src = probabilities.shape
    n_kv = values.shape[1]
    grouped = probabilities.reshape(batch, n_kv, n_heads // n_kv, n_dest, n_src)
    return (grouped @ values[:, :, None]).reshape(batch, n_heads, n_dest, values.shape[-1])


class MxWithHookedSoftmax:
    """Replaces the name `mx` in a model's module: all of mlx.core, with a softmax whose result is passed to
    `see`."""

    def __init__(self, see: Callable[[mx.array], mx.array]) -> None:
        self._see = see

    def __getattr__(self, name: str) -> Any:
        return getattr(mx, name)

    def softmax(self, *args: Any, **kwargs: Any) -> mx.array:
        return self._see(mx.softmax(*args, **kwargs))
