"""The fastest engine of sweeps: rows carry only tokens that may differ from their prompt's, all in one list.

A row with one edited activation is its prompt's run up to a layer and up to a position. So it joins after
that layer, with its tokens from that position on, and the linear layers see all rows' tokens as one sequence
`[1, n_tokens, d_model]`; only attention and rotary positions are computed group by group, a group being the
rows that start at the same position, with their prompt's keys and values before them. An edit of attention's
output or heads enters by the rest of the same block on the changed tokens alone; behind the last block's
attention only the last token is left.

What lives here: such a pass. What doesn't: rows edited at several places (`one_pass.py`), batching and the
fallback (`sweep.py`). The model's own blocks run, with three of their parts seen: the attention function, the
rotary embedding, and attention's output projection. What a family does besides is not known, so each pass
checks itself on a row without edits and on a block entered behind its attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.one_pass import Base, CannotJoin
from mlxterp.causal.rows import Ids, Logits, Row
from mlxterp.core import attention, blas
from mlxterp.core.architectures import Architecture
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention
from mlxterp.core.model import InterpretableModel
from mlxterp.core.taps import Around, renamed, tapped

Values: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.int64]
_Changed: TypeAlias = dict[int, tuple[Indices, int]]
"""Per row of a pass: the positions it changes, and where the table of tokens has the first of them."""

POINTS = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
MLP_TOKENS = 256
"""Tokens that an MLP computes at a time: its inner activations then stay in the processor's cache."""
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
class _Entry:
    """A row of the pass: where it goes, and what it changes; the row of the check changes nothing."""

    place: int  # −1: the check
    base: int
    edits: tuple[Intervention, ...]


@dataclass(eq=False)
class _Group:
    """The rows that start at one position; `h` [rows, length − start, d_model] are those that have joined."""

    start: int
    joining: dict[int, list[_Entry]] = field(default_factory=dict)  # by the block after which they join
    live: list[_Entry] = field(default_factory=list)
    h: mx.array | None = None


@dataclass(frozen=True)
class _Segment:
    """Where a group's tokens are in the list of all tokens."""

    start: int
    begin: int
    n_rows: int
    n_tokens: int
    bases: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.begin + self.n_rows * self.n_tokens


class _Left(Exception):
    """The last block was left behind its attention."""


class _Mask:
    """What the pass answers when a model asks for a mask: attention makes its own; only the window counts."""

    def __init__(self, window: int | None) -> None:
        self.window = window


class _Cache:
    """A cache that keeps nothing: keys and values of the prompt come in where attention is computed."""

    offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def make_mask(self, n: int, *, return_array: bool = False, window_size: int | None = None) -> Any:
        del n, return_array
        return _Mask(window_size)


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
        self._groups = self._grouped(rows)
        self._layer = -1
        self._segments: list[_Segment] = []
        self._seen: dict[HookPoint, Values] = {}
        self._away: list[mx.array] = []
        self._checked: set[str] = set()
        self._prologue = architecture.prologue(
            mx.array(base.tokens[:1]), cache=[_Cache() for _ in architecture.layers]
        )

    def _grouped(self, rows: Sequence[Row]) -> list[_Group]:
        groups: dict[int, _Group] = {}
        joins = [joins_after(row) for row in rows]
        for place, row in enumerate(rows):
            start = row.first_position(self._length)
            group = groups.setdefault(start, _Group(start))
            group.joining.setdefault(joins[place], []).append(_Entry(place, row.base, row.edits))
        # The check runs from where the first row joins, in a group with tokens before it and after it.
        starts = sorted(groups)
        first, group = min(joins), groups[starts[len(starts) // 2]]
        group.joining.setdefault(first, []).insert(0, _Entry(-1, rows[0].base, ()))
        return [groups[start] for start in starts]

    def run(self, vocabulary: Ids | None) -> Logits:
        first = min(block for group in self._groups for block in group.joining)
        with self._looking():
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

    # one block on all live rows

    def _advance(self, block: int) -> None:
        live = [group for group in self._groups if group.h is not None]
        self._layer, self._segments = block, []
        parts, begin = [], 0
        for group in live:
            assert group.h is not None
            n_rows, n_tokens = group.h.shape[:2]
            bases = tuple(entry.base for entry in group.live)
            self._segments.append(_Segment(group.start, begin, n_rows, n_tokens, bases))
            parts.append(group.h.reshape(1, n_rows * n_tokens, -1))
            begin = self._segments[-1].end
        h = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)
        if block == self._n_layers - 1:
            y, ends = self._last_block(h), np.cumsum([0, *(s.n_rows for s in self._segments)])
        else:
            y = self._architecture.block(block, h, self._prologue)
            ends = np.array([0, *(s.end for s in self._segments)])
        if y.shape[1] != ends[-1]:
            raise CannotJoin(f"a block made {y.shape[1]} tokens of {ends[-1]}")
        for group, segment, begin, end in zip(live, self._segments, ends, ends[1:], strict=False):
            group.h = y[0, int(begin) : int(end)].reshape(segment.n_rows, -1, y.shape[-1])

    def _last_block(self, h: mx.array) -> mx.array:
        """What the last block makes of each row's last token; of the others it needs keys and values only."""
        layer = self._architecture.layers[-1]
        last = np.concatenate(
            [np.arange(s.begin + s.n_tokens - 1, s.end, s.n_tokens) for s in self._segments]
        )
        chosen, written = mx.array(last), list[mx.array]()

        def project(call: Callable[..., Any], z: mx.array, *args: Any, **kwargs: Any) -> Any:
            return call(mx.take(z, chosen, axis=1), *args, **kwargs)

        def attend(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            written.append(call(*args, **kwargs))
            raise _Left

        assert layer.attn is not None
        assert layer.out_proj is not None
        try:
            with tapped([(layer.out_proj, project), (layer.attn, attend)]):
                self._architecture.block(self._n_layers - 1, h, self._prologue)
        except _Left:
            pass
        ends = mx.take(h, chosen, axis=1)
        return self._behind_attention(self._n_layers - 1, ends, attn=written[0])

    def _behind_attention(
        self, block: int, h: mx.array, *, attn: mx.array | None = None, adds: mx.array | None = None
    ) -> mx.array:
        """A block's output on tokens [1, n, d_model], with what its attention returns, or adds, given."""
        layer = self._architecture.layers[block]
        if adds is not None:
            adds = adds if self._architecture.attn_scale == 1.0 else adds / self._architecture.attn_scale
            attn = adds
        assert layer.attn is not None
        taps: list[tuple[nn.Module, Around]] = [(layer.attn, _returning(attn))]
        if adds is not None and layer.attn_adds is not None and layer.attn_adds is not layer.attn:
            taps.append((layer.attn_adds, _returning(adds)))
        with tapped(taps):
            return self._architecture.block(block, h, self._prologue)

    # rows that join

    def _join(self, block: int) -> None:
        """Rows join with their prompt's residual stream after this block, its changed tokens replaced."""
        joining = [(g, g.joining[block]) for g in self._groups if block in g.joining]
        if not joining:
            return
        table = [self._after(block).reshape(self._base.tokens.size, -1)]
        changed: _Changed = {}
        filled = self._base.tokens.size
        by_point: dict[HookPoint, list[_Entry]] = {}
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
        self, point: HookPoint, entries: Sequence[_Entry], changed: _Changed, filled: int
    ) -> tuple[Indices, Values]:
        """The tokens whose activation these rows change, and what it then is; `changed` notes whose it is."""
        act = self._activation(point)
        last_block = point.layer == self._n_layers - 1 and point.name != "resid_pre"
        tokens: list[Indices] = []
        values: list[Values] = []
        for entry in entries:
            positions, value = _applied(entry.edits, act[entry.base])
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
            y = self._behind_attention(block, h, attn=projection(given.reshape(1, len(tokens), -1)))[0]
        else:
            if point.name == "resid_mid":
                attn_out = self._at(self._base.points[HookPoint("attn_out", block)], tokens)
                given = attn_out + (given - self._at(self._base.points[point], tokens))
            y = self._behind_attention(block, h, adds=given[None])[0]
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

    # what is seen of the blocks while the pass runs

    @contextmanager
    def _looking(self) -> Iterator[None]:
        layers = self._architecture.layers
        rotary = {id(part): part for layer in layers for part in _rotary(layer.attn)}
        taps: list[tuple[nn.Module, Around]] = [(part, self._rotate) for part in rotary.values()]
        taps += [(layer.mlp, _in_pieces) for layer in layers if layer.mlp is not None]
        namespaces = list({id(layer.namespace): layer.namespace for layer in layers}.values())
        stand_ins = [(names, self._attention(names[attention.NAME])) for names in namespaces]
        with tapped(taps), renamed(attention.NAME, stand_ins):
            yield

    def _rotate(self, call: Callable[..., Any], x: mx.array, *_: Any, **__: Any) -> Any:
        """[1, n_heads, n_tokens, d_head], each group at its own positions."""
        if x.shape[2] != self._segments[-1].end:
            raise CannotJoin(f"its rotary embedding is given shape {x.shape}")
        parts = []
        for s in self._segments:
            part = x[0, :, s.begin : s.end].reshape(-1, s.n_rows, s.n_tokens, x.shape[-1])
            parts.append(call(part, offset=s.start).reshape(1, -1, s.end - s.begin, x.shape[-1]))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)

    def _attention(self, original: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def attend(
            queries: mx.array,
            keys: mx.array,
            values: mx.array,
            cache: Any = None,  # noqa: ARG001 - the name and order of mlx-lm's arguments
            scale: float = 1.0,
            mask: Any = None,
            **rest: Any,
        ) -> mx.array:
            if not (mask is None or isinstance(mask, _Mask)) or keys.shape[2] != self._segments[-1].end:
                raise CannotJoin("its attention makes its own mask or keys")
            window = None if mask is None else mask.window
            parts = [
                self._attended(original, s, queries, keys, values, scale, window, rest)
                for s in self._segments
            ]
            return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)

        return attend

    def _attended(
        self,
        original: Callable[..., mx.array],
        s: _Segment,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        window: int | None,
        rest: dict[str, Any],
    ) -> mx.array:
        """One group's attention, [1, n_heads, rows · tokens, d_head]."""
        assert self._base.caches is not None
        k_base, v_base = (part[:, :, : s.start] for part in self._base.caches[self._layer])
        q, k, v = (
            x[0, :, s.begin : s.end].reshape(-1, s.n_rows, s.n_tokens, x.shape[-1])
            for x in (queries, keys, values)
        )
        if not rest and len(set(s.bases)) == 1:
            out = _shared_prefix(q * scale, k, v, k_base[s.bases[0]], v_base[s.bases[0]], window)
            return out.reshape(1, -1, s.end - s.begin, out.shape[-1])
        bases = mx.array(list(s.bases))
        q, k, v = (x.swapaxes(0, 1) for x in (q, k, v))
        k, v = (
            mx.concatenate([mx.take(old, bases, axis=0), new], axis=2)
            for old, new in ((k_base, k), (v_base, v))
        )
        mask = _visible(s.n_tokens, s.start, window)
        out = original(q, k, v, None, scale=scale, mask=mask, **rest)
        return out.swapaxes(0, 1).reshape(1, -1, s.end - s.begin, out.shape[-1])

    # what comes out

    def _read(self, entries: Sequence[_Entry], ends: mx.array, vocabulary: Ids | None) -> Logits:
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


def _returning(value: mx.array | None) -> Around:
    return lambda *_, **__: value


def _in_pieces(call: Callable[..., Any], x: mx.array, *args: Any, **kwargs: Any) -> Any:
    if x.shape[1] <= MLP_TOKENS:
        return call(x, *args, **kwargs)
    pieces: list[mx.array] = []
    for i in range(0, x.shape[1], MLP_TOKENS):
        piece = x[:, i : i + MLP_TOKENS]
        # One after the other: MLX would begin with all of them, and none would stay in the cache.
        ready = mx.depends([piece], pieces[-1:])[0] if pieces else piece
        pieces.append(call(ready, *args, **kwargs))
    return mx.concatenate(pieces, axis=1)


def _rotary(attn: nn.Module | None) -> list[nn.Module]:
    """The rotary embeddings among an attention module's parts."""
    parts = () if attn is None else attn.values()
    return [part for part in parts if isinstance(part, nn.Module) and "rope" in type(part).__name__.lower()]


def _applied(edits: tuple[Intervention, ...], act: Values) -> tuple[Indices, Values]:
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


def _visible(n: int, start: int, window: int | None) -> mx.array:
    """Booleans [n, start + n]: what the tokens from `start` on may look at."""
    dest, src = mx.arange(start, start + n)[:, None], mx.arange(start + n)[None]
    mask = dest >= src
    return mask if window is None else mask & (dest < src + window)


def _shared_prefix(
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
        mask = mx.tile(_visible(n, start, window), (group, 1))
        scores = mx.where(mask, scores, mx.array(-mx.inf, dtype=scores.dtype))
    a = mx.softmax(scores, axis=-1).astype(q.dtype)
    out = a[..., start:] @ v
    if start:
        before = a[..., :start].reshape(n_kv, n_rows * group * n, start) @ v_base
        out = out + before.reshape(out.shape)
    out = out.reshape(n_kv, n_rows, group, n, v.shape[-1]).swapaxes(1, 2)
    return out.reshape(n_heads, n_rows, n, v.shape[-1])


def _away(got: mx.array, expected: mx.array) -> mx.array:
    got, expected = got.astype(mx.float32), expected.astype(mx.float32)
    return mx.max(mx.abs(got - expected)) / mx.maximum(mx.max(mx.abs(expected)), 1.0)
