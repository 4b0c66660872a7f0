"""Caches of keys and values in the shape that mlx-lm's layers ask for: one that records the prompts' own
run, and two that put what was recorded in front of later tokens.

What lives here: keys, values, and the mask that goes with them. What doesn't: which rows see which prompt
(`one_pass.py`, `node_outputs.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx


class Recorder:
    """A cache that starts empty and remembers what a layer gave it."""

    offset = 0

    def __init__(self) -> None:
        self.seen: tuple[mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.seen = (keys, values)
        return keys, values

    def make_mask(self, n: int, *, return_array: bool = False, window_size: int | None = None) -> Any:
        return _mask(n, 0, return_array=return_array, window_size=window_size)


class Prefix:
    """A cache that holds the prompts' keys and values before a position, for each row of the live batch."""

    def __init__(self, start: int, recorded: tuple[mx.array, mx.array], bases: Sequence[int]) -> None:
        self.offset = start
        self._recorded = recorded
        self._bases = bases

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        index = mx.array(list(self._bases))
        before = (mx.take(part[:, :, : self.offset], index, axis=0) for part in self._recorded)
        new = (keys, values)
        k, v = (mx.concatenate([old, given], axis=2) for old, given in zip(before, new, strict=True))
        return k, v

    def make_mask(self, n: int, *, return_array: bool = False, window_size: int | None = None) -> Any:
        return _mask(n, self.offset, return_array=return_array, window_size=window_size)


class CommonPrefix:
    """A cache that holds n prompts' keys and values before a position, for batches that repeat them."""

    def __init__(self, start: int, recorded: tuple[mx.array, mx.array]) -> None:
        self.offset = start
        self._before = tuple(part[:, :, :start] for part in recorded)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        index = mx.arange(len(keys)) % len(self._before[0])
        k, v = (
            mx.concatenate([mx.take(old, index, axis=0), new], axis=2)
            for old, new in zip(self._before, (keys, values), strict=True)
        )
        return k, v

    def make_mask(self, n: int, *, return_array: bool = False, window_size: int | None = None) -> Any:
        return _mask(n, self.offset, return_array=return_array, window_size=window_size)


def _mask(n: int, offset: int, *, return_array: bool, window_size: int | None) -> Any:
    """What mlx-lm's own cache answers: no mask for one token, a name where that will do, else booleans."""
    if window_size is None and not return_array:
        return None if n == 1 else "causal"
    dest, src = mx.arange(offset, offset + n)[:, None], mx.arange(offset + n)[None]
    mask = dest >= src
    return mask if window_size is None else mask & (dest < src + window_size)
