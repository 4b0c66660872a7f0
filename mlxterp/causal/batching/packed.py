"""The packed engine of sweeps: rows carry only tokens that may differ from their prompt's, all in one list.

A row with one edited activation is its prompt's run up to a layer and up to a position. So it joins after
that layer, with its tokens from that position on. A row that is edited at several hook points, or inside of
attention (q, k, v, pattern), joins before the first of them and is edited in flight. The linear layers see
all rows' tokens as one sequence `[1, n_tokens, d_model]`; only attention and rotary positions are computed
group by group, a group being the rows that start at the same position, with their prompt's keys and values
before them. A single edit of attention's output or of z enters by the rest of the same block on the changed
tokens alone; behind the last block's attention only the last token is left.

Which rows can be packed and which go together is decided here, the blocks are run by `packed_blocks.py`. The
model's own blocks run, with three of their parts replaced: the attention function, the rotary embedding, and
attention's output projection. What a family does besides is not known, so each pass checks itself on a row
without edits, and on a block entered behind its attention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.batching.base_run import BaseRun, CannotJoin, Edits
from mlxterp.causal.batching.packed_blocks import Blocks, LiveRows, calls_attention_function
from mlxterp.causal.batching.rows import Ids, Logits, Row
from mlxterp.core.architecture.parts import Architecture
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention
from mlxterp.core.linux_blas import blas
from mlxterp.core.model import InterpretableModel
from mlxterp.core.selection import check_positions
from mlxterp.measurements import recorder

Values: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.int64]
EditsByPoint: TypeAlias = Mapping[HookPoint, Sequence[Intervention]]

POINTS = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Where a row can enter with its activation already edited."""
IN_ATTENTION = ("q", "k", "v", "pattern")
TOKEN_BY_TOKEN = ("zero", "replace", "mean", "add", "scale", "clamp", "project_out")
"""What can be done to some of a row's tokens without the others."""

LOGITS_AT_ONCE = 1 << 26
"""Logits computed at a time: 64 Mi numbers, 0.25 GiB in float32."""


def supports(architecture: Architecture) -> bool:
    """Whether this model has the parts that a pass needs; whether it works, the pass itself checks."""
    capable = all(architecture.capabilities[name].available for name in ("decomposed", "unembedding"))
    return (
        capable
        and architecture.takes_cache
        and all(layer.out_proj is not None for layer in architecture.layers)
    )


# which rows can be packed, and which go together


def enters_edited(row: Row) -> HookPoint | None:
    """The hook point at which a row enters with its activation edited; None if it is edited in flight."""
    points = list(row.edits_by_point)
    return points[0] if len(points) == 1 and points[0].name in POINTS else None


def fits(architecture: Architecture, row: Row) -> bool:
    """Whether a pass can run a row.

    Edits apply token by token during the pass; a row that starts late does not hold its earlier tokens.
    """
    if enters_edited(row) is not None:
        return True
    names = (*POINTS, *IN_ATTENTION) if calls_attention_function(architecture) else POINTS
    known = all(point.name in names for point in row.edits_by_point)
    return bool(row.edits) and known and all(edit.op in TOKEN_BY_TOKEN for edit in row.edits)


def joins_after(row: Row) -> int:
    """The block after which a row joins: that of the hook point at which it enters (of resid_pre, the one
    before), or the one before its first edit."""
    layers = [point.layer for point in row.edits_by_point if point.layer is not None]
    point = enters_edited(row)
    return min(layers) - (point is None or point.name == "resid_pre")


def needed(rows: Sequence[Row]) -> list[HookPoint]:
    """The hook points that the prompts' run must keep for these rows, besides the residual stream."""
    points = {point for row in rows if (point := enters_edited(row)) is not None}
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
    """A row of the pass: its index (−1: the row of the check), prompt and edits."""

    index: int
    base: int
    point: HookPoint | None = None  # at which it enters edited
    edits: Edits = ()
    in_flight: EditsByPoint = field(default_factory=dict)


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
    known: dict[Edits, EditsByPoint] = {}  # rows with equal edits share them, so that each is made once
    joins = [joins_after(row) for row in rows]
    for index, row in enumerate(rows):
        start = row.first_position(length)
        group = groups.setdefault(start, Group(start))
        point = enters_edited(row)
        if point is None and row.edits not in known:
            known[row.edits] = row.edits_by_point
            for edit in row.edits:
                check_positions(edit.where, edit.point, length)
        edits = {"edits": row.edits} if point is not None else {"in_flight": known[row.edits]}
        group.joining.setdefault(joins[index], []).append(Entry(index, row.base, point, **edits))
    # The check runs from where the first row joins, in a group with tokens before it and after it.
    starts = sorted(groups)
    groups[starts[len(starts) // 2]].joining.setdefault(min(joins), []).insert(0, Entry(-1, rows[0].base))
    return [groups[start] for start in starts]


def edited_positions(edits: Edits, act: Values) -> tuple[Indices, Values]:
    """The positions whose activation (one prompt's, `[pos, …]`) the edits may change, and what it then is."""
    where, value = edits[0].where, edits[0].value
    positions = where.positions
    if (  # the usual case, without a call to MLX per row
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


# the pass


def run(model: InterpretableModel, base: BaseRun, rows: Sequence[Row], vocabulary: Ids | None) -> Logits:
    """Float32 logits of each row at the last position, `[n, d_vocab]`, or of the tokens of `vocabulary` only.

    Raises:
        CannotJoin: this architecture does something between its parts that a pass does not see.
    """
    if base.caches is None:
        raise CannotJoin("its attention keeps no keys and values.")
    for point in {point for row in rows for point in row.edits_by_point}:
        model.architecture.require_point(point)
    try:
        with model.architecture.lock.run():
            logits = _Pass(model.architecture, base, rows).run(vocabulary)
    except (ValueError, TypeError, AttributeError, IndexError) as problem:  # shapes, a mask of another kind
        raise CannotJoin(str(problem)) from problem
    own = [row.tobytes() for row in base.tokens.astype(np.int32)]
    recorder.add_forward(model, own, prompts=len(rows))
    edits = Counter(edit.point for row in rows for edit in row.edits)
    recorder.add_interventions({str(point): n for point, n in edits.items()})
    return logits


class _Pass:
    def __init__(self, architecture: Architecture, base: BaseRun, rows: Sequence[Row]) -> None:
        self._architecture, self._base = architecture, base
        self._n_rows, self._n_layers = len(rows), len(architecture.layers)
        self._length = base.tokens.shape[1]
        self._groups = grouped(rows, self._length)
        self._read_before: dict[HookPoint, Values] = {}
        self._differences: list[mx.array] = []
        self._checked: set[str] = set()
        self._blocks = Blocks(architecture, base)

    def run(self, vocabulary: Ids | None) -> Logits:
        first = min(block for group in self._groups for block in group.joining)
        with self._blocks.patched_modules():
            for block in range(first, self._n_layers):
                if block > first:
                    # Computed block by block, so that the number of threads can follow what else is running:
                    # a pass takes seconds, and two threads on one free core are ten times slower than one.
                    blas.use_idle_cores()
                    self._advance(block)
                self._join(block)
                mx.eval([group.h for group in self._groups if group.h is not None])
        entries = [entry for group in self._groups for entry in group.live]
        ends = mx.concatenate([group.h[:, -1] for group in self._groups if group.h is not None])
        return self._read(entries, ends, vocabulary)

    def _advance(self, block: int) -> None:
        """One block on all live rows."""
        live = [group for group in self._groups if group.h is not None]
        rows = [
            LiveRows(g.start, g.h, tuple(e.base for e in g.live), [e.in_flight for e in g.live])
            for g in live
            if g.h is not None
        ]
        for group, h in zip(live, self._blocks.through(block, rows), strict=True):
            group.h = h

    # rows that join

    def _join(self, block: int) -> None:
        """Rows join with their prompt's residual stream after this block, its changed tokens replaced."""
        joining = [(g, g.joining[block]) for g in self._groups if block in g.joining]
        if not joining:
            return
        table = [self._base.stream(block).reshape(self._base.tokens.size, -1)]
        filled = self._base.tokens.size
        changed: dict[int, tuple[Indices, int]] = {}  # row → the positions it changes, and where in the table
        entering: dict[HookPoint, list[Entry]] = {}
        for _, entries in joining:
            for entry in entries:
                if entry.point is not None:
                    entering.setdefault(entry.point, []).append(entry)
        for point, entries in entering.items():
            edited = self._edited(point, entries)
            tokens = np.concatenate(
                [p + e.base * self._length for e, (p, _) in zip(entries, edited, strict=True)]
            )
            for entry, (positions, _) in zip(entries, edited, strict=True):
                changed[entry.index] = positions, filled
                filled += len(positions)
            if len(tokens):
                table.append(self._written(block, point, tokens, np.concatenate([v for _, v in edited])))
        rows_of = mx.concatenate(table)
        only_last = block == self._n_layers - 1
        for group, entries in joining:
            start = self._length - 1 if only_last else group.start
            index = np.arange(start, self._length)[None] + self._length * np.array(
                [[e.base] for e in entries]
            )
            for i, entry in enumerate(entries):
                if entry.index in changed:
                    positions, begin = changed[entry.index]
                    index[i, positions - start] = begin + np.arange(len(positions))
            new = rows_of[mx.array(index)]
            group.h = new if group.h is None else mx.concatenate([group.h, new])
            group.live.extend(entries)

    def _edited(self, point: HookPoint, entries: Sequence[Entry]) -> list[tuple[Indices, Values]]:
        """Per row, the positions whose activation it changes, and what it then is."""
        act = self._activation(point)
        found = [edited_positions(entry.edits, act[entry.base]) for entry in entries]
        _compare(point, act, entries, found)
        # In the last block nothing reads the other positions any more.
        if point.layer == self._n_layers - 1 and point.name != "resid_pre":
            last = self._length - 1
            found = [(positions[positions == last], value[positions == last]) for positions, value in found]
        return found

    def _written(self, block: int, point: HookPoint, tokens: Indices, values: Values) -> mx.array:
        """The residual stream [n, d_model] after the block, at these tokens with these activations."""
        after = self._base.stream(block)
        given = mx.array(values).astype(after.dtype)
        if point.name in ("resid_post", "resid_pre"):
            return given
        if point.name == "mlp_out":
            return _at(after, tokens) + (given - _at(self._base.points[point], tokens))
        n = len(tokens)
        if point.name not in self._checked:  # the block as it was, entered the same way, on one prompt
            self._checked.add(point.name)
            tokens = np.concatenate([tokens, np.arange(self._length)])
            given = mx.concatenate([given, self._base.points[point][0]])
        h = _at(self._base.stream(block - 1), tokens)[None]
        if point.name == "z":
            projection = self._architecture.layers[block].out_proj
            assert projection is not None
            attn = projection(given.reshape(1, len(tokens), -1))
            y = self._blocks.behind_attention(block, h, attn=attn)[0]
        else:
            if point.name == "resid_mid":
                attn_out = _at(self._base.points[HookPoint("attn_out", block)], tokens)
                given = attn_out + (given - _at(self._base.points[point], tokens))
            y = self._blocks.behind_attention(block, h, adds=given[None])[0]
        if len(tokens) > n:
            self._differences.append(_relative_difference(y[n:], after[0]))
        return y[:n]

    def _activation(self, point: HookPoint) -> Values:
        if point not in self._read_before:
            x = self._base.activation(point)
            assert x is not None, "the prompts' run keeps what `needed` names"
            self._read_before[point] = np.array(x.astype(mx.float32))
        return self._read_before[point]

    # what comes out

    def _read(self, entries: Sequence[Entry], ends: mx.array, vocabulary: Ids | None) -> Logits:
        size = max(1, LOGITS_AT_ONCE // self._architecture.d_vocab) if vocabulary is None else len(entries)
        parts = [self._logits(ends[i : i + size], vocabulary) for i in range(0, len(entries), size)]
        found = np.concatenate([np.array(part.astype(mx.float32)) for part in parts])
        for difference in map(float, self._differences):
            if not difference <= self._base.agreement:
                raise CannotJoin(f"an unpatched row came out {difference:.2g} from its prompt")
        logits = np.empty((self._n_rows, found.shape[1]), dtype=np.float32)
        for row, entry in zip(found, entries, strict=True):
            if entry.index < 0:
                self._base.check(row, entry.base, vocabulary)
            else:
                logits[entry.index] = row
        return logits

    def _logits(self, ends: mx.array, vocabulary: Ids | None) -> mx.array:
        architecture = self._architecture
        ends = ends.astype(mx.float32)  # as `last_position_only` reads every other run
        if vocabulary is None:
            return architecture.final(ends)
        x = ends if architecture.norm_module is None else architecture.norm_module(ends)
        ids = mx.array(vocabulary)
        logits = x.astype(mx.float32) @ architecture.unembed_rows(ids).T
        bias = architecture.unembed_bias(ids)
        logits = logits if bias is None else logits + bias
        return architecture.softcapped(logits * architecture.logit_scale)


def _compare(
    point: HookPoint, act: Values, entries: Sequence[Entry], edited: Sequence[tuple[Indices, Values]]
) -> None:
    """Reports whether the rows' edits change the activation, until the first that does."""
    name = str(point)
    for entry, (positions, value) in zip(entries, edited, strict=True):
        if not recorder.needs_comparison(name):
            return
        recorder.add_comparison(name, changed=not np.array_equal(value, act[entry.base][positions]))


def _at(x: mx.array, tokens: Indices) -> mx.array:
    """`x` [n, length, d_model] at these places of all prompts' tokens in one list."""
    return x.reshape(-1, x.shape[-1])[mx.array(tokens)]


def _relative_difference(got: mx.array, expected: mx.array) -> mx.array:
    got, expected = got.astype(mx.float32), expected.astype(mx.float32)
    return mx.max(mx.abs(got - expected)) / mx.maximum(mx.max(mx.abs(expected)), 1.0)
