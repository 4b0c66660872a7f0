"""The fastest engine of sweeps: rows carry only tokens that may differ from their prompt's, all in one list.

A row with one edited activation is its prompt's run up to a layer and up to a position. So it joins after
that layer, with its tokens from that position on; a row with several joins before the first of them, and is
edited on its way. The linear layers see all rows' tokens as one sequence `[1, n_tokens, d_model]`; only
attention and rotary positions are computed group by group, a group being the rows that start at the same
position, with their prompt's keys and values before them. A single edit of attention's output or heads enters
by the rest of the same block on the changed tokens alone; behind the last block's attention only the last
token is left.

What lives here: such a pass, from the rows that join to their logits, and its check. What doesn't: which rows
fit and go together (`packed_rows.py`), one block on the list of tokens (`packed_blocks.py`), rows edited
where a pass does not look (`one_pass.py`), batching and the fallback (`sweep.py`). The model's own blocks
run, with three of their parts seen: the attention function, the rotary embedding, and attention's output
projection. What a family does besides is not known, so each pass checks itself on a row without edits and on
a block entered behind its attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import mlx.core as mx
import numpy as np

from mlxterp.causal.batching.one_pass import Base, CannotJoin
from mlxterp.causal.batching.packed_blocks import Blocks
from mlxterp.causal.batching.packed_rows import (
    Entry,
    Indices,
    Values,
    applied,
    grouped,
)
from mlxterp.causal.batching.rows import Ids, Logits, Row
from mlxterp.core.architecture import attention
from mlxterp.core.architecture.parts import Architecture
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.linux_blas import blas
from mlxterp.core.model import InterpretableModel

_Changed: TypeAlias = dict[int, tuple[Indices, int]]
"""Per row of a pass: the positions it changes, and where the table of tokens has the first of them."""

LOGITS_AT_ONCE = 1 << 26
"""Logits computed at a time: 64 Mi numbers, 0.25 GiB in float32."""


def supports(architecture: Architecture) -> bool:
    """Whether this model has the parts a pass needs; whether it works is found out by the pass itself."""
    capable = all(architecture.capabilities[name].available for name in ("decomposed", "unembedding"))
    return (
        capable
        and architecture.takes_cache
        and all(layer.out_proj is not None for layer in architecture.layers)
        and all(attention.NAME in layer.namespace for layer in architecture.layers)
    )


def run(model: InterpretableModel, base: Base, rows: Sequence[Row], vocabulary: Ids | None) -> Logits:
    """Float32 logits of each row at the last position, `[n, d_vocab]`, or of the tokens of `vocabulary` only.

    Raises:
        CannotJoin: this architecture does something between its parts that a pass does not see.
    """
    if base.caches is None:
        raise CannotJoin("its attention keeps no keys and values.")
    try:
        return _Pass(model.architecture, base, rows).run(vocabulary)
    except (ValueError, TypeError, AttributeError, IndexError) as problem:  # shapes, a mask of another kind
        raise CannotJoin(str(problem)) from problem


class _Pass:
    def __init__(self, architecture: Architecture, base: Base, rows: Sequence[Row]) -> None:
        self._architecture, self._base = architecture, base
        self._n_rows, self._n_layers = len(rows), len(architecture.layers)
        self._length = base.tokens.shape[1]
        self._groups = grouped(rows, self._length)
        self._seen: dict[HookPoint, Values] = {}
        self._away: list[mx.array] = []
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
        for group, h in zip(live, self._blocks.through(block, live), strict=True):
            group.h = h

    # rows that join

    def _join(self, block: int) -> None:
        """Rows join with their prompt's residual stream after this block, its changed tokens replaced."""
        joining = [(g, g.joining[block]) for g in self._groups if block in g.joining]
        if not joining:
            return
        table = [self._after(block).reshape(self._base.tokens.size, -1)]
        changed: _Changed = {}
        filled = self._base.tokens.size
        by_point: dict[HookPoint, list[Entry]] = {}
        for _, entries in joining:
            for entry in entries:
                if entry.edits:
                    by_point.setdefault(entry.edits[0].point, []).append(entry)
        for point, entries in by_point.items():
            tokens, values = self._edited(point, entries, changed, filled)
            if len(tokens):
                table.append(self._written(block, point, tokens, values))
                filled += len(tokens)
        rows_of = mx.concatenate(table)
        only_last = block == self._n_layers - 1
        for group, entries in joining:
            start = self._length - 1 if only_last else group.start
            index = np.arange(start, self._length)[None] + self._length * np.array(
                [[entry.base] for entry in entries]
            )
            for i, entry in enumerate(entries):
                if entry.edits:
                    positions, begin = changed[entry.place]
                    index[i, positions - start] = begin + np.arange(len(positions))
            new = rows_of[mx.array(index)]
            group.h = new if group.h is None else mx.concatenate([group.h, new])
            group.live.extend(entries)

    def _edited(
        self, point: HookPoint, entries: Sequence[Entry], changed: _Changed, filled: int
    ) -> tuple[Indices, Values]:
        """The tokens whose activation these rows change, and what it then is; `changed` notes whose it is."""
        act = self._activation(point)
        last_block = point.layer == self._n_layers - 1 and point.name != "resid_pre"
        tokens: list[Indices] = []
        values: list[Values] = []
        for entry in entries:
            positions, value = applied(entry.edits, act[entry.base])
            if last_block:  # nothing looks at the others any more
                kept = positions == self._length - 1
                positions, value = positions[kept], value[kept]
            changed[entry.place] = (positions, filled)
            filled += len(positions)
            tokens.append(positions + entry.base * self._length)
            values.append(value)
        return np.concatenate(tokens), np.concatenate(values)

    def _written(self, block: int, point: HookPoint, tokens: Indices, values: Values) -> mx.array:
        """The residual stream [n, d_model] after the block, at these tokens with these activations."""
        dtype = self._after(block).dtype
        given = mx.array(values).astype(dtype)
        if point.name in ("resid_post", "resid_pre"):
            return given
        if point.name == "mlp_out":
            return self._at(self._after(block), tokens) + (given - self._at(self._base.points[point], tokens))
        n = len(tokens)
        if point.name not in self._checked:  # the block as it was, entered the same way, on one prompt
            self._checked.add(point.name)
            tokens = np.concatenate([tokens, np.arange(self._length)])
            given = mx.concatenate([given, self._base.points[point][0]])
        h = self._at(self._after(block - 1), tokens)[None]
        if point.name == "z":
            projection = self._architecture.layers[block].out_proj
            assert projection is not None
            y = self._blocks.behind_attention(block, h, attn=projection(given.reshape(1, len(tokens), -1)))[0]
        else:
            if point.name == "resid_mid":
                attn_out = self._at(self._base.points[HookPoint("attn_out", block)], tokens)
                given = attn_out + (given - self._at(self._base.points[point], tokens))
            y = self._blocks.behind_attention(block, h, adds=given[None])[0]
        if len(tokens) > n:
            self._away.append(_away(y[n:], self._after(block)[0]))
        return y[:n]

    def _after(self, block: int) -> mx.array:
        return self._base.embed if block < 0 else self._base.after[block]

    def _at(self, x: mx.array, tokens: Indices) -> mx.array:
        return x.reshape(-1, x.shape[-1])[mx.array(tokens)]

    def _activation(self, point: HookPoint) -> Values:
        if point not in self._seen:
            at = self._base.points
            layer = point.layer or 0
            if point.name == "resid_pre":
                x = self._after(layer - 1)
            else:
                x = self._after(layer) if point.name == "resid_post" else at[point]
            self._seen[point] = np.array(x.astype(mx.float32))
        return self._seen[point]

    # what comes out

    def _read(self, entries: Sequence[Entry], ends: mx.array, vocabulary: Ids | None) -> Logits:
        size = max(1, LOGITS_AT_ONCE // self._architecture.d_vocab) if vocabulary is None else len(entries)
        parts = [self._logits(ends[i : i + size], vocabulary) for i in range(0, len(entries), size)]
        found = np.concatenate([np.array(part.astype(mx.float32)) for part in parts])
        check = next(i for i, entry in enumerate(entries) if entry.place < 0)
        expected = self._base.logits[entries[check].base]
        expected = expected if vocabulary is None else expected[vocabulary]
        away = [float(np.abs(found[check] - expected).max()) / max(1.0, float(np.abs(expected).max()))]
        worst = max([float(np.array(x)) for x in self._away] + away)
        if not worst <= self._base.agreement:
            raise CannotJoin(f"an unpatched row came out {worst:.2g} from its prompt")
        logits = np.empty((self._n_rows, found.shape[1]), dtype=np.float32)
        kept = [i for i, entry in enumerate(entries) if entry.place >= 0]
        logits[[entries[i].place for i in kept]] = found[kept]
        return logits

    def _logits(self, ends: mx.array, vocabulary: Ids | None) -> mx.array:
        architecture = self._architecture
        if vocabulary is None:
            return architecture.final(ends)
        x = ends if architecture.norm_module is None else architecture.norm_module(ends)
        ids = mx.array(vocabulary)
        logits = x.astype(mx.float32) @ architecture.unembed_rows(ids).T
        bias = architecture.unembed_bias(ids)
        logits = logits if bias is None else logits + bias
        return architecture.softcapped(logits * architecture.logit_scale)


def _away(got: mx.array, expected: mx.array) -> mx.array:
    got, expected = got.astype(mx.float32), expected.astype(mx.float32)
    return mx.max(mx.abs(got - expected)) / mx.maximum(mx.max(mx.abs(expected)), 1.0)
