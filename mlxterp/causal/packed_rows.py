"""Rows of a packed pass: which can be packed, which go together, and what their edits change.

What lives here: the choice of rows, their groups by first position, the row of the self-check among them, and
edits applied to a prompt's activation. What doesn't: running them (`packed.py`), rows of any engine
(`rows.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.rows import Row
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention

Values: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.int64]

POINTS = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")


def fits(row: Row) -> bool:
    """Whether all edits of a row are at one hook point, of those a pass can enter by."""
    return len({edit.point for edit in row.edits}) == 1 and row.edits[0].point.name in POINTS


def joins_after(row: Row) -> int:
    """The block after which a row joins: that of its hook point, or the one before for resid_pre."""
    point = row.edits[0].point
    assert point.layer is not None
    return point.layer - 1 if point.name == "resid_pre" else point.layer


def needed(rows: Sequence[Row]) -> list[HookPoint]:
    """The hook points that the prompts' run must keep for these rows, besides the residual stream."""
    points = {row.edits[0].point for row in rows if fits(row)}
    points |= {HookPoint("attn_out", point.layer) for point in points if point.name == "resid_mid"}
    return sorted((p for p in points if p.name not in ("resid_pre", "resid_post")), key=str)


def chunks(rows: Sequence[Row], chosen: Sequence[int], length: int, token_budget: int) -> Iterator[list[int]]:
    """Of the chosen rows, those that make a pass together: neighbours in the order of joining, within the
    budget."""
    some: list[int] = []
    tokens = 0
    for i in sorted(chosen, key=lambda r: joins_after(rows[r])):
        size = length - rows[i].first_position(length)
        if some and tokens + size > token_budget:
            yield some
            some, tokens = [], 0
        some.append(i)
        tokens += size
    if some:
        yield some


@dataclass(frozen=True, eq=False)
class Entry:
    """A row of the pass: where it goes, and what it changes; the row of the check changes nothing."""

    place: int  # −1: the check
    base: int
    edits: tuple[Intervention, ...]


@dataclass(eq=False)
class Group:
    """The rows that start at one position; `h` [rows, length − start, d_model] are those that have joined."""

    start: int
    joining: dict[int, list[Entry]] = field(default_factory=dict)  # by the block after which they join
    live: list[Entry] = field(default_factory=list)
    h: mx.array | None = None


def grouped(rows: Sequence[Row], length: int) -> list[Group]:
    """The rows of a pass and its check, by the position at which they start, ascending."""
    groups: dict[int, Group] = {}
    joins = [joins_after(row) for row in rows]
    for place, row in enumerate(rows):
        start = row.first_position(length)
        group = groups.setdefault(start, Group(start))
        group.joining.setdefault(joins[place], []).append(Entry(place, row.base, row.edits))
    # The check runs from where the first row joins, in a group with tokens before it and after it.
    starts = sorted(groups)
    first, group = min(joins), groups[starts[len(starts) // 2]]
    group.joining.setdefault(first, []).insert(0, Entry(-1, rows[0].base, ()))
    return [groups[start] for start in starts]


def applied(edits: tuple[Intervention, ...], act: Values) -> tuple[Indices, Values]:
    """The positions whose activation (one prompt's, `[pos, …]`) the edits may change, and what it then is."""
    where, value = edits[0].where, edits[0].value
    positions = where.positions
    if (
        len(edits) == 1
        and edits[0].op == "replace"
        and isinstance(positions, tuple)
        and all(0 <= p < len(act) for p in positions)
        and (where.heads is None or (act.ndim == 3 and all(0 <= h < act.shape[1] for h in where.heads)))
        and isinstance(value, np.ndarray)
        and value.ndim == act.ndim + 1
        and value.shape[:2] == (1, len(positions))
    ):
        chosen = np.array(positions)
        after = act[chosen]
        if where.heads is None:
            after[:] = value[0]
        else:
            after[:, list(where.heads)] = value[0]
        return chosen, after
    x = mx.array(act)[None]
    for edit in edits:
        edited = edit.apply(x)
        x = x if edited is None else edited
    after = np.array(x[0])
    chosen = np.arange(Row(0, edits).first_position(len(act)), len(act))
    return chosen, after[chosen]
