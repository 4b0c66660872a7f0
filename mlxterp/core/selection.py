"""Which entries of an activation an intervention touches: positions, heads, batch rows.

Positions are absolute: position 7 is the eighth token of the row, also when a generation step sees only that
token. Negative positions count from the end of each row's own tokens, so padding is never meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp.core.hook_points import Axes, HookPoint, axes
from mlxterp.errors import HookError

Positions = int | slice | Sequence[int] | None


@dataclass(frozen=True)
class Selection:
    """Positions, heads and rows to touch; None is all of them. `slice(5, None)` is position 5 and later."""

    positions: tuple[int, ...] | slice | None = None
    heads: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls, positions: Positions, heads: int | Sequence[int] | None, rows: int | Sequence[int] | None
    ) -> Selection:
        """From what a caller may write: one number, several, a slice."""
        chosen = positions if isinstance(positions, slice) else _numbers("positions", positions)
        return cls(chosen, _numbers("heads", heads), _numbers("rows", rows))

    def from_end_of(self, length: int) -> Selection:
        """The same selection with negative positions counted from the end of `length` tokens."""
        if self.positions is None:
            return self
        if isinstance(self.positions, slice):
            start, stop = (
                None if b is None else _absolute(b, length)
                for b in (self.positions.start, self.positions.stop)
            )
            return Selection(slice(start, stop, self.positions.step), self.heads, self.rows)
        return Selection(tuple(_absolute(p, length) for p in self.positions), self.heads, self.rows)

    def __str__(self) -> str:
        named = (("positions", self.positions), ("heads", self.heads), ("rows", self.rows))
        return "".join(f" {name} {value}" for name, value in named if value is not None)


def _numbers(what: str, given: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    numbers = (int(given),) if isinstance(given, int | np.integer) else tuple(int(n) for n in given)
    if not numbers:
        raise HookError(f"{what} is empty, so nothing would change. Leave {what} out to mean all of them.")
    if len(set(numbers)) < len(numbers):
        raise HookError(f"{what} {numbers} names one twice. Name each once.")
    return numbers


def _absolute(position: int, length: int) -> int:
    return position + length if position < 0 else position


@dataclass(frozen=True)
class Window:
    """What an activation holds: positions from `start` on, of rows with `lengths` tokens of their own."""

    start: int
    lengths: tuple[int, ...]
    grows: bool = False  # a generation: later steps bring later positions

    @classmethod
    def over(cls, x: mx.array, point: HookPoint) -> Window:
        """The whole of `x`, unpadded, from position 0."""
        return cls(0, (x.shape[axes(point).pos],) * x.shape[0])


@dataclass(frozen=True)
class Chosen:
    """A selection resolved for one activation: index arrays along batch, pos and head."""

    axes: Axes
    start: int  # of the window
    rows: np.ndarray[Any, Any]  # [r]
    pos: np.ndarray[Any, Any]  # [1 or r, p], counted in the window
    declared: np.ndarray[Any, Any] | None  # [p]: which of the positions the caller wrote
    n_declared: int
    heads: np.ndarray[Any, Any] | None  # [h]

    def index(self, x: mx.array) -> tuple[Any, ...]:
        """What to put in `x[...]`, giving [r, p, ...] in the order of x's axes."""
        along = {0: self.rows, self.axes.pos: self.pos[0]}
        if self.heads is not None and self.axes.head is not None:
            along[self.axes.head] = self.heads
        if len(self.pos) == 1 and all(_is_run(entries) for entries in along.values()):
            return tuple(
                slice(int(along[a][0]), int(along[a][-1]) + 1) if a in along else slice(None)
                for a in range(max(along) + 1)
            )
        last = max(along)
        arrays = []
        for axis in range(last + 1):
            shape = [1] * (last + 1)
            if axis == self.axes.pos and len(self.pos) > 1:
                shape[0], shape[axis] = self.pos.shape
                arrays.append(mx.array(self.pos.reshape(shape)))
            else:
                entries = along.get(axis, np.arange(x.shape[axis]))
                shape[axis] = len(entries)
                arrays.append(mx.array(entries.reshape(shape)))
        return tuple(arrays)

    def read(self, x: mx.array) -> mx.array:
        return x[self.index(x)]

    def fit(self, value: mx.array, x: mx.array, what: str) -> mx.array:
        """`value` cut to the selection; each axis is whole, as long as the selection, or 1."""
        shape = (1,) * (x.ndim - value.ndim) + value.shape
        if value.ndim > x.ndim:
            raise self._misfit(value, x, what)
        value = value.reshape(shape)
        value = self._cut(value, 0, self.rows, x, what)
        if self.heads is not None and self.axes.head is not None:
            value = self._cut(value, self.axes.head, self.heads, x, what)
        value = self._cut_positions(value, x, what)
        part = self._part_shape(x)
        if any(have not in (1, want) for have, want in zip(value.shape, part, strict=True)):
            raise self._misfit(value, x, what)
        return value

    def _cut(
        self, value: mx.array, axis: int, entries: np.ndarray[Any, Any], x: mx.array, what: str
    ) -> mx.array:
        n, whole = len(entries), x.shape[axis]
        if value.shape[axis] == whole and n != whole:
            return mx.take(value, mx.array(entries), axis=axis)
        if value.shape[axis] not in (1, n, whole):
            raise self._misfit(value, x, what)
        return value

    def _cut_positions(self, value: mx.array, x: mx.array, what: str) -> mx.array:
        axis = self.axes.pos
        size = value.shape[axis]
        if size == 1:
            return value
        if size == self.start + x.shape[axis]:
            wanted = self.pos + self.start
        elif self.declared is not None and size == self.n_declared:
            wanted = self.declared[None]
        else:
            raise self._misfit(value, x, what)
        if len(wanted) == 1:
            return mx.take(value, mx.array(wanted[0]), axis=axis)
        rows = [
            mx.take(value[min(r, len(value) - 1)], mx.array(w), axis=axis - 1) for r, w in enumerate(wanted)
        ]
        return mx.stack(rows)

    def _part_shape(self, x: mx.array) -> tuple[int, ...]:
        shape = list(x.shape)
        shape[0], shape[self.axes.pos] = len(self.rows), self.pos.shape[1]
        if self.heads is not None and self.axes.head is not None:
            shape[self.axes.head] = len(self.heads)
        return tuple(shape)

    def _misfit(self, value: mx.array, x: mx.array, what: str) -> HookError:
        return HookError(
            f"{what}: a value of shape {value.shape} does not fit. The activation has shape {x.shape} and "
            f"the selection {self._part_shape(x)}. Give each axis the length of one of these, or 1."
        )


def _is_run(entries: np.ndarray[Any, Any]) -> bool:
    return bool(np.all(np.diff(entries) == 1))


def indices(where: Selection, point: HookPoint, shape: tuple[int, ...], window: Window) -> Chosen | None:
    """Resolves a selection for an activation of this shape; None when no selected position is in the window.

    Raises:
        HookError: a row, head or position that does not exist, with the ranges that do.
    """
    layout = axes(point)
    if len(shape) != layout.ndim:
        raise HookError(f"{point} has shape {shape} here, so positions and heads cannot be told apart.")
    rows = _within(where.rows, shape[0], "row", point)
    heads = None
    if where.heads is not None:
        if layout.head is None:
            raise HookError(
                f"{point} has no heads: its axes are batch, pos and d_model. Leave `heads` out, or use z."
            )
        heads = _within(where.heads, shape[layout.head], "head", point)
    pos, declared = _positions(where.positions, rows, shape[layout.pos], window, point)
    if pos.shape[1] == 0:
        return None
    count = len(where.positions) if isinstance(where.positions, tuple) else 0
    return Chosen(layout, window.start, rows, pos, declared, count, heads)


def check_positions(where: Selection, point: HookPoint, length: int) -> None:
    """HookError if a position of the selection does not exist in a row of this many tokens."""
    _positions(where.positions, np.arange(1), length, Window(0, (length,)), point)


def _within(numbers: tuple[int, ...] | None, size: int, what: str, point: HookPoint) -> np.ndarray[Any, Any]:
    if numbers is None:
        return np.arange(size)
    for number in numbers:
        if not 0 <= number < size:
            raise HookError(f"{point} has no {what} {number}: there are {size}, from 0 to {size - 1}.")
    return np.array(numbers)


def _positions(
    wanted: tuple[int, ...] | slice | None,
    rows: np.ndarray[Any, Any],
    size: int,
    window: Window,
    point: HookPoint,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    end = window.start + size
    if wanted is None:
        return np.arange(size)[None], None
    if isinstance(wanted, slice):
        ragged = len({window.lengths[row] for row in rows}) > 1
        if ragged and any(bound is not None and bound < 0 for bound in (wanted.start, wanted.stop)):
            raise HookError(
                f"{point}: {wanted} counts from the end, but the rows differ in length. Name positions."
            )
        chosen = np.array(
            [p - window.start for p in range(*wanted.indices(end)) if p >= window.start], dtype=int
        )
        if not len(chosen) and not window.grows:
            raise HookError(f"{point}: {wanted} selects none of the {end} positions.")
        return chosen[None], None
    table = np.array([[_checked(p, window.lengths[row], window, point) for p in wanted] for row in rows])
    if len(np.unique(table, axis=0)) == 1:
        table = table[:1]
    if any(len(set(row)) < len(row) for row in table.tolist()):
        raise HookError(f"{point}: positions {wanted} name one position twice. Name each once.")
    if window.start == 0 and not window.grows:
        return table, np.arange(len(wanted))
    inside = np.flatnonzero((table[0] >= window.start) & (table[0] < end))
    return table[:1, inside] - window.start, inside


def _checked(position: int, length: int, window: Window, point: HookPoint) -> int:
    absolute = _absolute(position, length)
    if absolute < 0 or (absolute >= length and not window.grows):
        raise HookError(
            f"{point} has no position {position}: there are {length} tokens, positions 0 to {length - 1} "
            f"or -{length} to -1."
        )
    return absolute


def place(x: mx.array, chosen: Chosen, part: mx.array) -> mx.array:
    """`x` with the selection set to `part`; `x` itself stays as it is."""
    want = chosen.read(x).shape
    if part.shape != want:
        raise HookError(
            f"An edit returned shape {part.shape} where {want} was given. Return the shape it was given."
        )
    if (
        part.shape == x.shape
        and len(chosen.pos) == 1
        and all(_is_run(e) for e in (chosen.rows, chosen.pos[0]))
    ):
        heads_in_order = chosen.heads is None or _is_run(chosen.heads)
        if heads_in_order:
            return part
    whole = x[...]  # a new handle on the same values: assigning to it leaves `x` alone
    whole[chosen.index(x)] = part
    return whole
