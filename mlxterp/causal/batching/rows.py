"""Rows of a sweep, one patched run each: where a row first differs from its prompt, and edits of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention
from mlxterp.core.linux_blas import swiglu as fast_math
from mlxterp.core.model import InterpretableModel
from mlxterp.core.selection import Window
from mlxterp.core.taps import tapped

Ids: TypeAlias = NDArray[np.int64]
Logits: TypeAlias = NDArray[np.float32]

_BEHIND_THE_BLOCKS = ("final_norm", "logits")


@dataclass(frozen=True)
class Row:
    """One patched run: the index of its prompt among the base tokens, and its interventions."""

    base: int
    edits: tuple[Intervention, ...]

    @cached_property
    def edits_by_point(self) -> dict[HookPoint, list[Intervention]]:
        """The edits at each hook point, in order; the embedding is what the first block reads."""
        found: dict[HookPoint, list[Intervention]] = {}
        for edit in sorted(self.edits, key=lambda edit: edit.point.name != "embed"):  # the sort is stable
            point = HookPoint("resid_pre", 0) if edit.point.name == "embed" else edit.point
            found.setdefault(point, []).append(edit)
        return found

    def joins_after(self, n_layers: int) -> int:
        """The last block in which this row is still its prompt; −1: it differs from the embedding on."""
        return min((_unchanged_through(edit.point, n_layers) for edit in self.edits), default=n_layers - 1)

    def first_position(self, length: int) -> int:
        """The first position that an edit touches: everything before it is as in the prompt."""
        return min((_first_position(edit, length) for edit in self.edits), default=length - 1)


def _unchanged_through(point: HookPoint, n_layers: int) -> int:
    if point.name in _BEHIND_THE_BLOCKS:
        return n_layers - 1
    if point.layer is None:  # the embedding, or any module of the tree
        return -1
    return point.layer if point.name == "resid_post" else point.layer - 1


def _first_position(edit: Intervention, length: int) -> int:
    positions = edit.where.positions
    if positions is None or edit.point.is_module_path:
        return 0
    if isinstance(positions, slice):
        return min(range(*positions.indices(length)), default=0)
    first = min(p + length if p < 0 else p for p in positions)
    return first if 0 <= first < length else 0  # one that does not exist is refused where it is applied


@contextmanager
def measuring(model: InterpretableModel) -> Iterator[None]:
    """The arithmetic of measurements: a float32 residual stream, and a fast SwiGLU where there is one.

    In 16 bits, clean, corrupted and patched runs of the same activations differ by how they were batched, by
    some units in the logits' last place; effects are shares of a gap that may be not much larger.
    """
    with model.architecture.float32_stream(), fast_math.used(model.architecture):
        yield


@contextmanager
def last_position_only(model: InterpretableModel, rows: Sequence[Row]) -> Iterator[None]:
    """While the block runs, norm and unembedding see the last position only: [batch, 1, d_vocab].

    In float32 whatever the weights are, and so is the residual stream (`Architecture.float32_stream`): clean,
    corrupted and patched runs are computed and read at one precision.

    Not where an edit is made behind the last block, which may name any position.
    """
    norm = model.architecture.norm_module
    points = {edit.point for row in rows for edit in row.edits}
    behind = any(point.name in _BEHIND_THE_BLOCKS or point.is_module_path for point in points)
    with (
        model.architecture.float32_stream(),
        tapped([] if norm is None or behind else [(norm, _sees_last)]),
    ):
        yield


def _sees_last(call: Callable[..., Any], h: mx.array, *args: Any, **kwargs: Any) -> Any:
    return call(h[:, -1:].astype(mx.float32), *args, **kwargs)


def last(logits: mx.array) -> Logits:
    """Float32 logits `[n, d_vocab]` at the last position."""
    return np.array(logits[:, -1].astype(mx.float32))


def edited_rows(x: mx.array, edits: Mapping[int, Sequence[Intervention]], window: Window) -> mx.array:
    """`x [rows, …]` with each listed row put through its interventions; the rest untouched.

    Args:
        window: which positions `x` holds; its one length is that of every row.
    """
    pieces: list[mx.array] = []
    upto = 0
    for begin, end, chain in _runs(edits):
        if begin > upto:
            pieces.append(x[upto:begin])
        part = x[begin:end]
        for edit in chain:
            changed = edit.apply(part, Window(window.start, window.lengths * (end - begin), window.grows))
            part = part if changed is None else changed
        pieces.append(part)
        upto = end
    if upto < x.shape[0]:
        pieces.append(x[upto:])
    return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)


def _runs(edits: Mapping[int, Sequence[Intervention]]) -> Iterator[tuple[int, int, Sequence[Intervention]]]:
    """Neighbouring rows with the very same interventions, as one range."""
    places = sorted(edits)
    begin = 0
    for i in range(1, len(places) + 1):
        ends = i == len(places) or places[i] != places[i - 1] + 1 or edits[places[i]] != edits[places[begin]]
        if ends:
            yield places[begin], places[i - 1] + 1, edits[places[begin]]
            begin = i
