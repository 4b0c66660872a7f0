"""Attention of many rows in one list of tokens: each group of rows with its prompts' keys and values before.

What lives here: where a group's tokens are, its attention, its mask, the cache that a model is given instead
of its own. What doesn't: the rest of a block (`packed_blocks.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx


@dataclass(frozen=True)
class Segment:
    """Where a group's tokens are in the list of all tokens.

    Attributes:
        start: the position of each row's first token in its prompt.
        begin, end: its tokens' places in the list.
        bases: the prompt of each row.
    """

    start: int
    begin: int
    n_rows: int
    n_tokens: int
    bases: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.begin + self.n_rows * self.n_tokens


class WindowMask:
    """What the pass answers when a model asks for a mask: attention makes its own; only the window counts."""

    def __init__(self, window: int | None) -> None:
        self.window = window


class EmptyCache:
    """A cache that keeps nothing: keys and values of the prompt come in where attention is computed."""

    offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def make_mask(self, n: int, *, return_array: bool = False, window_size: int | None = None) -> Any:
        del n, return_array
        return WindowMask(window_size)


def attended(
    original: Callable[..., mx.array],
    s: Segment,
    before: tuple[mx.array, mx.array],
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    window: int | None,
    rest: dict[str, Any],
) -> mx.array:
    """One group's attention, [1, n_heads, rows · tokens, d_head].

    Args:
        original: the model's own attention function, used where the rows of a group have several prompts, or
            where it takes more than queries, keys and values.
        before: keys and values of all prompts at this layer, of all positions.
        queries, keys, values: of all groups' tokens.
        rest: what else the model's attention function is given.
    """
    k_base, v_base = (part[:, :, : s.start] for part in before)
    q, k, v = (
        x[0, :, s.begin : s.end].reshape(-1, s.n_rows, s.n_tokens, x.shape[-1])
        for x in (queries, keys, values)
    )
    if not rest and len(set(s.bases)) == 1:
        out = shared_prefix(q * scale, k, v, k_base[s.bases[0]], v_base[s.bases[0]], window)
        return out.reshape(1, -1, s.end - s.begin, out.shape[-1])
    bases = mx.array(list(s.bases))
    q, k, v = (x.swapaxes(0, 1) for x in (q, k, v))
    k, v = (
        mx.concatenate([mx.take(old, bases, axis=0), new], axis=2) for old, new in ((k_base, k), (v_base, v))
    )
    mask = visible(s.n_tokens, s.start, window)
    out = original(q, k, v, None, scale=scale, mask=mask, **rest)
    return out.swapaxes(0, 1).reshape(1, -1, s.end - s.begin, out.shape[-1])


def visible(n: int, start: int, window: int | None) -> mx.array:
    """Booleans [n, start + n]: what the tokens from `start` on may look at."""
    dest, src = mx.arange(start, start + n)[:, None], mx.arange(start + n)[None]
    mask = dest >= src
    return mask if window is None else mask & (dest < src + window)


def shared_prefix(
    q: mx.array, k: mx.array, v: mx.array, k_base: mx.array, v_base: mx.array, window: int | None
) -> mx.array:
    """Attention of rows with one prefix, [n_heads, rows, tokens, d_head].

    `q` (scaled), `k` and `v` are the rows' own, [heads, rows, tokens, d_head]; the prefix [n_kv_heads, start,
    d_head] is multiplied once per key/value head for all rows.
    """
    (n_heads, n_rows, n, d_head), n_kv, start = q.shape, k.shape[0], k_base.shape[1]
    group = n_heads // n_kv
    q = q.reshape(n_kv, group, n_rows, n, d_head).swapaxes(1, 2).reshape(n_kv, n_rows, group * n, d_head)
    scores = q @ k.swapaxes(-1, -2)
    if start:
        before = q.reshape(n_kv, n_rows * group * n, d_head) @ k_base.swapaxes(-1, -2)
        scores = mx.concatenate([before.reshape(n_kv, n_rows, group * n, start), scores], axis=-1)
    scores = scores.astype(mx.float32)
    if n > 1 or window is not None:
        mask = mx.tile(visible(n, start, window), (group, 1))
        scores = mx.where(mask, scores, mx.array(-mx.inf, dtype=scores.dtype))
    a = mx.softmax(scores, axis=-1).astype(q.dtype)
    out = a[..., start:] @ v
    if start:
        before = a[..., :start].reshape(n_kv, n_rows * group * n, start) @ v_base
        out = out + before.reshape(out.shape)
    out = out.reshape(n_kv, n_rows, group, n, v.shape[-1]).swapaxes(1, 2)
    return out.reshape(n_heads, n_rows, n, v.shape[-1])
