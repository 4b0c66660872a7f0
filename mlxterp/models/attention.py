"""The attention function that modules of our own call, in mlx-lm's form."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


def scaled_dot_product_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any = None,  # noqa: ARG001 - the name and order of mlx-lm's arguments
    scale: float = 1.0,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
) -> mx.array:
    """[batch, n_heads, pos, d_head] from queries, and keys and values [batch, n_kv_heads, src, d_head]."""
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
