"""Rows of a packed pass: which can be packed, which go together, and what their edits change.

What lives here: the choice of rows, their groups by first position, the row of the self-check among them, and
edits applied to a prompt's activation. What doesn't: running them (`packed.py`), rows of any engine
(`rows.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.batching.rows import Row
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention
from mlxterp.core.selection import check_positions

Values: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.int64]

POINTS = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
IN_FLIGHT = ("resid_pre", "z", "attn_out", "mlp_out", "resid_post")
"""Where a row that is edited at several hook points can be edited while it runs."""
_TOKEN_BY_TOKEN = ("zero", "replace", "mean", "add", "scale", "clamp", "project_out")
"""What can be done to some of a row's tokens without seeing the others."""


def fits(row: Row) -> bool:
    """Whether a pass can run a row: edited at one hook point, by which it enters, or at several on its way.

    On its way it is edited token by token; of a row that starts late, the earlier ones are not there.
    """
    if len({edit.point for edit in row.edits}) == 1:
        return row.edits[0].point.name in POINTS
    return bool(row.edits) and all(e.point.name in IN_FLIGHT and e.op in _TOKEN_BY_TOKEN for e in row.edits)


def _enters_edited(row: Row) -> bool:
    return len({edit.point for edit in row.edits}) == 1


def joins_after(row: Row) -> int:
    """The block after which a row joins: that of its one hook point (of resid_pre, the one before), or the
    one before its first."""
    layers = [point.layer for edit in row.edits if (point := edit.point).layer is not None]
    if not _enters_edited(row):
        return min(layers) - 1
    return layers[0] - 1 if row.edits[0].point.name == "resid_pre" else layers[0]


def needed(rows: Sequence[Row]) -> list[HookPoint]:
    """The hook points that the prompts' run must keep for these rows, besides the residual stream."""
    points = {row.edits[0].point for row in rows if fits(row) and _enters_edited(row)}
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
    edits: tuple[Intervention, ...]  # with which it enters, all at one hook point
    later: Mapping[HookPoint, Sequence[Intervention]] = field(default_factory=dict)  # made on its way


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
    later: dict[tuple[Intervention, ...], Mapping[HookPoint, Sequence[Intervention]]] = {}
    joins = [joins_after(row) for row in rows]
    for place, row in enumerate(rows):
        start = row.first_position(length)
        group = groups.setdefault(start, Group(start))
        group.joining.setdefault(joins[place], []).append(_entry(place, row, length, later))
    # The check runs from where the first row joins, in a group with tokens before it and after it.
    starts = sorted(groups)
    first, group = min(joins), groups[starts[len(starts) // 2]]
    group.joining.setdefault(first, []).insert(0, Entry(-1, rows[0].base, ()))
    return [groups[start] for start in starts]


def _entry(
    place: int,
    row: Row,
    length: int,
    known: dict[tuple[Intervention, ...], Mapping[HookPoint, Sequence[Intervention]]],
) -> Entry:
    if _enters_edited(row):
        return Entry(place, row.base, row.edits)
    if row.edits not in known:
        by_point: dict[HookPoint, list[Intervention]] = {}
        for edit in row.edits:
            check_positions(edit.where, edit.point, length)
            by_point.setdefault(edit.point, []).append(edit)
        known[row.edits] = by_point
    return Entry(place, row.base, (), known[row.edits])


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
