"""The key/value cache of a generation: every key and value kept, each at its absolute position.

Has the methods that mlx-lm's models call on their caches. What doesn't live here: caches of layers that are
no attention, which come from the model's own `make_cache`.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlxterp.core.architecture.parts import Architecture

_STEP = 256


class KeyValueCache:
    """Keys and values [batch, n_kv_heads, pos, d_head] of one layer; `offset` of them are filled."""

    def __init__(self) -> None:
        self.offset = 0
        self._keys: mx.array | None = None
        self._values: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Adds the next positions and returns all of them."""
        start, self.offset = self.offset, self.offset + keys.shape[2]
        self._keys = _written(self._keys, keys, start)
        self._values = _written(self._values, values, start)
        return self._keys[..., : self.offset, :], self._values[..., : self.offset, :]

    def make_mask(
        self, n: int, *, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """What the next `n` positions may look at, as mlx-lm's models want it: an array, "causal", or all."""
        if window_size is None and n == 1:
            return None
        if window_size is None and not return_array:
            return "causal"
        dest, src = mx.arange(self.offset, self.offset + n)[:, None], mx.arange(self.offset + n)[None]
        causal = dest >= src
        return causal if window_size is None else causal & (dest < src + window_size)


def _written(buffer: mx.array | None, new: mx.array, start: int) -> mx.array:
    """`buffer` with `new` from `start` on; it grows by whole steps, so that most writes are in place."""
    end = start + new.shape[2]
    room = 0 if buffer is None else buffer.shape[2]
    if end > room:
        fresh = mx.zeros((*new.shape[:2], -(-(end - room) // _STEP) * _STEP, new.shape[3]), dtype=new.dtype)
        buffer = fresh if buffer is None else mx.concatenate([buffer, fresh], axis=2)
    assert buffer is not None
    buffer[..., start:end, :] = new
    return buffer


def make_cache(architecture: Architecture) -> list[Any]:
    """One cache per layer for a model's forward.

    A rotating cache would move positions, and edits name positions, so a plain one stands in its place: the
    models mask their windows themselves, and the result is the same at the price of memory.
    """
    own = getattr(architecture.model, "make_cache", None)
    if own is None:
        return [KeyValueCache() for _ in architecture.layers]
    return [KeyValueCache() if type(c).__name__ == _ROTATING else c for c in own()]


_ROTATING = "RotatingKVCache"
