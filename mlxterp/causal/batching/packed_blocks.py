"""A model's own blocks, run on the tokens of many rows in one list, with attention computed group by group.

The linear layers see one sequence `[1, n_tokens, d_model]`; rotary positions and attention are computed for
each group of rows by itself, with their prompts' keys and values before them. While a pass runs, the blocks'
rotary embedding, attention function and output projection are replaced, and MLPs take their tokens in pieces;
edits in flight are made at the same places. An attention module that calls no attention function (gemma2) is
called once for each group instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxterp.causal.batching.base_run import BaseRun, CannotJoin, PrefixCache, causal_mask
from mlxterp.causal.batching.rows import edited_rows
from mlxterp.core.architecture import attention
from mlxterp.core.architecture.parts import Architecture
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention
from mlxterp.core.selection import Window
from mlxterp.core.taps import Around, renamed, tapped

MLP_TOKENS = 256
"""Tokens that an MLP computes at a time: its inner activations then stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class LiveRows:
    """The rows of one group: all carry the tokens from position `start` on.

    Attributes:
        h: `[rows, n_tokens, d_model]`.
        bases: the prompt of each row.
        in_flight: the edits of each row that are made as it passes their hook point.
    """

    start: int
    h: mx.array
    bases: tuple[int, ...]
    in_flight: Sequence[Mapping[HookPoint, Sequence[Intervention]]]


@dataclass(frozen=True, eq=False)
class Segment:
    """Where the tokens of a group are in the list of all tokens: from `begin` to `end`."""

    rows: LiveRows
    begin: int

    @property
    def start(self) -> int:
        return self.rows.start

    @property
    def n_rows(self) -> int:
        return self.rows.h.shape[0]

    @property
    def n_tokens(self) -> int:
        return self.rows.h.shape[1]

    @property
    def end(self) -> int:
        return self.begin + self.n_rows * self.n_tokens

    def edits_at(self, point: HookPoint) -> dict[int, Sequence[Intervention]]:
        """The edits of each row that has some at this hook point."""
        return {i: edits[point] for i, edits in enumerate(self.rows.in_flight) if point in edits}


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of the model's attention function, with the tokens of all groups.

    Attributes:
        original: the model's own function, used where the rows of a group have several prompts, or where it
            takes more than queries, keys and values.
        queries, keys, values: `[1, heads, n_tokens, d_head]`.
        before: keys and values of all prompts, at all positions.
        rest: further arguments of the model's function.
    """

    original: Callable[..., mx.array]
    queries: mx.array
    keys: mx.array
    values: mx.array
    before: tuple[mx.array, mx.array]
    scale: float
    window: int | None
    rest: Mapping[str, Any]

    def of(self, s: Segment) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values of one group, [heads, rows, tokens, d_head]."""
        q, k, v = (
            x[0, :, s.begin : s.end].reshape(-1, s.n_rows, s.n_tokens, x.shape[-1])
            for x in (self.queries, self.keys, self.values)
        )
        return q, k, v


def calls_attention_function(architecture: Architecture) -> bool:
    """Whether every attention module calls the function in which q, k, v and pattern are edited in flight."""
    return all(attention.NAME in layer.namespace for layer in architecture.layers)


class WindowMask:
    """The answer to a model that asks for a mask: attention makes its own; only the window counts."""

    def __init__(self, window: int | None) -> None:
        self.window = window


class EmptyCache:
    """A cache that keeps nothing: keys and values of the prompt come in where attention is computed."""

    offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def make_mask(self, n: int, *, return_array: bool = False, window_size: int | None = None) -> Any:
        del n, return_array
        return WindowMask(window_size)


class _LeftBehindAttention(Exception):
    """Ends a call of the last block once its attention is computed."""


class Blocks:
    """The blocks of one pass, with its prompts' keys and values, and where each group's tokens are."""

    def __init__(self, architecture: Architecture, base: BaseRun) -> None:
        self._architecture, self._base = architecture, base
        self._n_layers = len(architecture.layers)
        self._layer = -1
        self._segments: list[Segment] = []
        self._current: Segment | None = None  # the only one whose tokens attention sees, if it is called so
        self._read = mx.zeros(0)  # what the block reads, of the tokens that reach its attention's output
        self._prologue = architecture.prologue(
            mx.array(base.tokens[:1]), cache=[EmptyCache() for _ in architecture.layers]
        )

    def through(self, block: int, groups: Sequence[LiveRows]) -> list[mx.array]:
        """A block's output for each group's rows, [rows, tokens, d_model]; of the last block, for their last
        token only."""
        self._layer, self._segments = block, []
        begin = 0
        for group in groups:
            self._segments.append(Segment(group, begin))
            begin = self._segments[-1].end
        h = _joined([group.h.reshape(1, -1, group.h.shape[-1]) for group in groups], axis=1)
        h = self._read = self._edited("resid_pre", h)
        if block == self._n_layers - 1:
            y, ends = self._last_block(h), np.cumsum([0, *(s.n_rows for s in self._segments)])
        else:
            with tapped(self._edit_taps(block)):
                y = self._architecture.block(block, h, self._prologue)
            ends = np.array([0, *(s.end for s in self._segments)])
        y = self._edited("resid_post", y)
        if y.shape[1] != ends[-1]:
            raise CannotJoin(f"a block made {y.shape[1]} tokens of {ends[-1]}")
        return [
            y[0, int(begin) : int(end)].reshape(segment.n_rows, -1, y.shape[-1])
            for segment, begin, end in zip(self._segments, ends, ends[1:], strict=False)
        ]

    def _last_block(self, h: mx.array) -> mx.array:
        """The last block's output for each row's last token; of the others it needs keys and values only."""
        layer = self._architecture.layers[-1]
        last = np.concatenate(
            [np.arange(s.begin + s.n_tokens - 1, s.end, s.n_tokens) for s in self._segments]
        )
        chosen, written = mx.array(last), list[mx.array]()

        def project(call: Callable[..., Any], z: mx.array, *args: Any, **kwargs: Any) -> Any:
            ends = mx.take(z, chosen, axis=1) if self._current is None else z[:, -1:]
            return call(self._edited("z", ends), *args, **kwargs)

        def attend(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            written.append(call(*args, **kwargs))
            raise _LeftBehindAttention

        assert layer.attn is not None
        assert layer.out_proj is not None
        try:
            with tapped([(layer.out_proj, project), (layer.attn, attend)]):
                self._architecture.block(self._n_layers - 1, h, self._prologue)
        except _LeftBehindAttention:
            pass
        self._read = ends = mx.take(h, chosen, axis=1)
        edits = self._edit_taps(self._n_layers - 1)
        return self.behind_attention(self._n_layers - 1, ends, attn=written[0], edits=edits)

    def behind_attention(
        self,
        block: int,
        h: mx.array,
        *,
        attn: mx.array | None = None,
        adds: mx.array | None = None,
        edits: Sequence[tuple[nn.Module, Around]] = (),
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
        with tapped([*taps, *edits]):
            return self._architecture.block(block, h, self._prologue)

    # edits in flight

    def _edit_taps(self, block: int) -> list[tuple[nn.Module, Around]]:
        layer, architecture = self._architecture.layers[block], self._architecture
        taps: list[tuple[nn.Module, Around]] = []
        if self._edits_any("z") and layer.out_proj is not None and block < self._n_layers - 1:
            taps.append((layer.out_proj, lambda call, z, *a, **k: call(self._edited("z", z), *a, **k)))
        if (self._edits_any("attn_out") or self._edits_any("resid_mid")) and layer.attn_adds is not None:
            taps.append((layer.attn_adds, _on_output(self._edited_attn_out, architecture.attn_scale)))
        if self._edits_any("mlp_out") and layer.mlp_adds is not None:
            edit_mlp: Callable[[mx.array], mx.array] = lambda y: self._edited("mlp_out", y)  # noqa: E731
            taps.append((layer.mlp_adds, _on_output(edit_mlp, architecture.mlp_scale)))
        return taps

    def _edited_attn_out(self, y: mx.array) -> mx.array:
        y = self._edited("attn_out", y)
        if not self._edits_any("resid_mid"):
            return y
        mid = self._read + y  # written as a change of what attention adds, as in `core/forward.py`
        return y + (self._edited("resid_mid", mid) - mid)

    def _edits_any(self, name: str) -> bool:
        point = HookPoint(name, self._layer)
        return any(point in edits for s in self._segments for edits in s.rows.in_flight)

    def _edited(self, name: str, x: mx.array) -> mx.array:
        """`x` [1, tokens, …] of all rows, or of their last tokens only, with the edits made here."""
        if not self._edits_any(name):
            return x
        point = HookPoint(name, self._layer)
        segments = self._segments if self._current is None else [self._current]
        only_last = x.shape[0] * x.shape[1] == sum(s.n_rows for s in segments)
        tokens = x.reshape(-1, x.shape[-1])
        parts, begin = [], 0
        for s in segments:
            n = 1 if only_last else s.n_tokens
            end = begin + s.n_rows * n
            part = tokens[begin:end].reshape(s.n_rows, n, -1)
            if name == "z":
                part = part.reshape(s.n_rows, n, self._architecture.layers[self._layer].n_heads or 1, -1)
            parts.append(self._edited_segment(s, point, part, n).reshape(s.n_rows * n, -1))
            begin = end
        return _joined(parts, axis=0).reshape(x.shape)

    def _edited_segment(self, s: Segment, point: HookPoint, x: mx.array, n: int) -> mx.array:
        """The activation of a group's rows [rows, …] at their last `n` positions, with their edits."""
        length = self._base.tokens.shape[1]
        # Some of the positions that an edit names may be before this window.
        return edited_rows(x, s.edits_at(point), Window(length - n, (length,), grows=True))

    # the parts that are replaced

    @contextmanager
    def patched_modules(self) -> Iterator[None]:
        """While the pass runs, the blocks' parts see each segment for itself."""
        layers = self._architecture.layers
        mlps: list[tuple[nn.Module, Around]] = [
            (layer.mlp, _in_pieces) for layer in layers if layer.mlp is not None
        ]
        if not calls_attention_function(self._architecture):
            modules = [(layer.attn, self._attend_by_segment) for layer in layers if layer.attn is not None]
            with tapped([*mlps, *modules]):
                yield
            return
        rotary = {id(part): part for layer in layers for part in _rotary(layer.attn)}
        taps: list[tuple[nn.Module, Around]] = [(part, self._rotate) for part in rotary.values()]
        namespaces = list({id(layer.namespace): layer.namespace for layer in layers}.values())
        stand_ins = [(names, self._attention(names[attention.NAME])) for names in namespaces]
        with tapped([*mlps, *taps]), renamed(attention.NAME, stand_ins):
            yield

    def _attend_by_segment(self, call: Callable[..., Any], x: mx.array, *args: Any, **kwargs: Any) -> Any:
        """What attention returns for all tokens, from a call for each segment [rows, tokens, d_model]."""
        assert self._base.caches is not None
        parts = []
        for s in self._segments:
            own = PrefixCache(s.start, self._base.caches[self._layer], s.rows.bases)

            def of_segment(given: Any, s: Segment = s, own: PrefixCache = own) -> Any:
                if isinstance(given, WindowMask):
                    return causal_mask(s.n_tokens, s.start, given.window)
                return own if isinstance(given, EmptyCache) else given

            self._current = s
            y = call(
                x[:, s.begin : s.end].reshape(s.n_rows, s.n_tokens, -1),
                *map(of_segment, args),
                **{name: of_segment(given) for name, given in kwargs.items()},
            )
            self._current = None
            parts.append(y.reshape(1, -1, y.shape[-1]))
        return _joined(parts, axis=1)

    def _rotate(self, call: Callable[..., Any], x: mx.array, *_: Any, **__: Any) -> Any:
        """[1, n_heads, n_tokens, d_head], each group at its own positions."""
        if x.shape[2] != self._segments[-1].end:
            raise CannotJoin(f"its rotary embedding is given shape {x.shape}")
        parts = []
        for s in self._segments:
            part = x[0, :, s.begin : s.end].reshape(-1, s.n_rows, s.n_tokens, x.shape[-1])
            parts.append(call(part, offset=s.start).reshape(1, -1, s.end - s.begin, x.shape[-1]))
        return _joined(parts, axis=2)

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
            if not (mask is None or isinstance(mask, WindowMask)) or keys.shape[2] != self._segments[-1].end:
                raise CannotJoin("its attention makes its own mask or keys")
            assert self._base.caches is not None
            before, window = self._base.caches[self._layer], None if mask is None else mask.window
            call = AttentionCall(original, queries, keys, values, before, scale, window, rest)
            return _joined([self._attended(call, s) for s in self._segments], axis=2)

        return attend

    def _attended(self, call: AttentionCall, s: Segment) -> mx.array:
        """One group's attention, [1, n_heads, rows · tokens, d_head]."""
        q, k, v = (
            self._edited_heads(s, name, x) for name, x in zip(("q", "k", "v"), call.of(s), strict=True)
        )
        k_base, v_base = (part[:, :, : s.start] for part in call.before)
        pattern = HookPoint("pattern", self._layer)
        edits_pattern = bool(s.edits_at(pattern))
        bases = s.rows.bases
        if not call.rest and not edits_pattern and len(set(bases)) == 1:
            out = shared_prefix(q * call.scale, k, v, k_base[bases[0]], v_base[bases[0]], call.window)
            return out.reshape(1, -1, s.end - s.begin, out.shape[-1])
        index = mx.array(list(bases))
        q, k, v = (x.swapaxes(0, 1) for x in (q, k, v))
        k, v = (
            mx.concatenate([mx.take(old, index, axis=0), new], axis=2)
            for old, new in ((k_base, k), (v_base, v))
        )
        mask = causal_mask(s.n_tokens, s.start, call.window)
        if edits_pattern:
            sinks = call.rest.get("sinks")
            weights = attention.pattern(q, k, scale=call.scale, mask=mask, sinks=sinks)
            out = attention.attend(self._edited_segment(s, pattern, weights, s.n_tokens), v)
        else:
            out = call.original(q, k, v, None, scale=call.scale, mask=mask, **call.rest)
        return out.swapaxes(0, 1).reshape(1, -1, s.end - s.begin, out.shape[-1])

    def _edited_heads(self, s: Segment, name: str, x: mx.array) -> mx.array:
        """[heads, rows, tokens, d_head]; interventions see [rows, tokens, heads, d_head]."""
        point = HookPoint(name, self._layer)
        if not s.edits_at(point):
            return x
        edited = self._edited_segment(s, point, x.transpose(1, 2, 0, 3), s.n_tokens)
        return edited.transpose(2, 0, 1, 3)


def shared_prefix(
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
        mask = mx.tile(causal_mask(n, start, window), (group, 1))
        scores = mx.where(mask, scores, mx.array(-mx.inf, dtype=scores.dtype))
    a = mx.softmax(scores, axis=-1).astype(q.dtype)
    out = a[..., start:] @ v
    if start:
        before = a[..., :start].reshape(n_kv, n_rows * group * n, start) @ v_base
        out = out + before.reshape(out.shape)
    out = out.reshape(n_kv, n_rows, group, n, v.shape[-1]).swapaxes(1, 2)
    return out.reshape(n_heads, n_rows, n, v.shape[-1])


def _joined(parts: Sequence[mx.array], axis: int) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(list(parts), axis=axis)


def _returning(value: mx.array | None) -> Around:
    return lambda *_, **__: value


def _on_output(edit: Callable[[mx.array], mx.array], factor: float) -> Around:
    """A tap that edits what a module adds to the residual stream: its output times `factor`."""

    def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        y = call(*args, **kwargs)
        return edit(y) if factor == 1.0 else edit(y * factor) / factor

    return around


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
