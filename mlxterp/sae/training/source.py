"""Where a training's activations come from: blocks of tokens in a shuffled order that can be repeated.

A source of arrays, and batches made of blocks; `activations.py` computes activations with a model.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlxterp.errors import SAEError

Floats = NDArray[np.float32]
Block = dict[str, Floats]  # hook point → [tokens, d], the same tokens at each
T = TypeVar("T")

_CHUNK = 256
_END = object()


class ActivationSource(ABC):
    """Activations of many tokens at one or several hook points, in blocks.

    `model_name` is the model they come from, `digest` a hash of their content.
    """

    model_name: str
    digest: str

    @property
    @abstractmethod
    def points(self) -> tuple[str, ...]:
        """Its hook points."""

    @property
    @abstractmethod
    def n_tokens(self) -> int:
        """How many tokens one epoch has; for a stream, how many at most."""

    @abstractmethod
    def blocks(self, *, seed: int, epoch: int, first: int = 0) -> Iterator[Block]:
        """The tokens of one epoch in pieces, from block `first` on; the order depends on seed and epoch."""

    def sample(self, n: int, *, seed: int) -> Block:
        """About `n` tokens, shuffled, to measure means and learning rates on."""
        taken: list[Block] = []
        have = 0
        for block in self.blocks(seed=seed, epoch=0):
            taken.append(block)
            have += len(next(iter(block.values())))
            if have >= n:
                break
        none = [np.zeros((0, 1), np.float32)]
        return {point: np.concatenate([block[point] for block in taken] or none)[:n] for point in self.points}

    def facts(self) -> dict[str, Any]:
        """Plain values for the metadata of an SAE trained on it."""
        return {"tokens": self.n_tokens, "digest": self.digest}


@dataclass(frozen=True, eq=False)
class ArrayActivations(ActivationSource):
    """Activations that are in memory or in a mapped file.

    Args:
        arrays: hook point → [tokens, d]: float32, or bfloat16 as its 16 bits in uint16.
        model_name: the model they come from.
        extra: further plain values for the metadata.
        digest: a hash of their content; by default of the arrays.
        block_tokens: tokens that are shuffled together, drawn from all over the file.
    """

    arrays: Mapping[str, NDArray[Any]]
    model_name: str = "arrays"
    digest: str = ""
    block_tokens: int = 65_536
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {point: array.shape for point, array in self.arrays.items()}
        lengths = {shape[0] for shape in shapes.values() if len(shape) == 2}
        if len(lengths) != 1 or any(len(shape) != 2 for shape in shapes.values()):
            raise SAEError(
                f"Activations of shapes {shapes}. Give one array [tokens, d] for each hook point, all of the "
                "same tokens."
            )
        if not self.digest:
            object.__setattr__(self, "digest", _digest(self.arrays))

    @property
    def points(self) -> tuple[str, ...]:
        return tuple(self.arrays)

    @property
    def n_tokens(self) -> int:
        return int(next(iter(self.arrays.values())).shape[0])

    def blocks(self, *, seed: int, epoch: int, first: int = 0) -> Iterator[Block]:
        """Runs of 256 tokens are drawn from all over the file, read one after the other, and their tokens
        shuffled."""
        chunks = -(-self.n_tokens // _CHUNK)
        order = np.random.default_rng((seed, epoch)).permutation(chunks)
        per_block = max(1, self.block_tokens // _CHUNK)
        for index in range(first, -(-chunks // per_block)):
            drawn = np.sort(order[index * per_block : (index + 1) * per_block])
            rows = np.concatenate(
                [np.arange(c * _CHUNK, min((c + 1) * _CHUNK, self.n_tokens)) for c in drawn]
            )
            rows = rows[np.random.default_rng((seed, epoch, index)).permutation(len(rows))]
            yield {point: widened(array[rows]) for point, array in self.arrays.items()}

    def facts(self) -> dict[str, Any]:
        return super().facts() | dict(self.extra)


@dataclass(eq=False)
class Cursor:
    """How far a source has been read: the next block, the offset in it, and the rows the last one left
    over."""

    epoch: int = 0
    block: int = 0
    offset: int = 0
    rest: Block = field(default_factory=dict)


def batches(
    source: ActivationSource, size: int, *, seed: int, epochs: int, cursor: Cursor
) -> Iterator[tuple[Block, Cursor]]:
    """Batches of `size` tokens with where the next one begins; the last one of all may be smaller.

    The next block is computed in a thread while a batch is being trained on.
    """
    rest, skip = cursor.rest, cursor.offset
    for epoch in range(cursor.epoch, epochs):
        first = cursor.block if epoch == cursor.epoch else 0
        for index, block in enumerate(ahead(source.blocks(seed=seed, epoch=epoch, first=first)), start=first):
            before = rest
            rows = {p: np.concatenate([rest[p], x]) if rest else x for p, x in block.items()}
            n = len(next(iter(rows.values())))
            whole = n // size
            rest = {p: x[whole * size :] for p, x in rows.items()} if n % size else {}
            for i in range(skip, whole):
                done = i + 1 == whole
                here = Cursor(epoch, index + 1, 0, rest) if done else Cursor(epoch, index, i + 1, before)
                yield {p: x[i * size : (i + 1) * size] for p, x in rows.items()}, here
            skip = 0
    if rest:
        yield rest, Cursor(epochs, 0, 0, {})


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each computed in a thread while the one before is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="activations") as pool:
        waiting = pool.submit(next, items, _END)
        while (item := waiting.result()) is not _END:
            waiting = pool.submit(next, items, _END)
            yield item  # type: ignore[misc]


def widened(array: NDArray[Any]) -> Floats:
    """float32 of float32, or of bfloat16 given as its 16 bits."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(array, dtype=np.float32)


def to_bfloat16_bits(array: Floats) -> NDArray[np.uint16]:
    """bfloat16 as 16 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    seen = hashlib.sha256()
    for point, array in sorted(arrays.items()):
        seen.update(f"{point} {array.shape} {array.dtype}".encode())
        spread = array[np.linspace(0, max(0, len(array) - 1), num=min(len(array), 256)).astype(int)]
        seen.update(np.ascontiguousarray(spread).tobytes())
    return seen.hexdigest()
