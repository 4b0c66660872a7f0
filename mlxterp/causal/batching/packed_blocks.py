"""A model's own blocks, run on the tokens of many rows in one list.

The linear layers see one sequence `[1, n_tokens, d_model]`; rotary positions and attention are computed
segment by segment, one for each group of rows, with their prompts' keys and values before them.

What lives here: one block on all tokens, or on tokens that enter it behind its attention, and what is put in
the place of the block's parts meanwhile: the rotary embedding, attention's output projection, an MLP that
takes its tokens in pieces. What doesn't: attention itself (`packed_attention.py`), which rows there are
(`packed_rows.py`), and the pass from the first block to the logits with its self-check (`packed.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxterp.causal.batching.one_pass import Base, CannotJoin
from mlxterp.causal.batching.packed_attention import (
    EmptyCache,
    Segment,
    WindowMask,
    attended,
)
from mlxterp.causal.batching.packed_rows import Group
from mlxterp.causal.batching.rows import edited_rows
from mlxterp.core.architecture import attention
from mlxterp.core.architecture.parts import Architecture
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention
from mlxterp.core.selection import Window
from mlxterp.core.taps import Around, renamed, tapped

MLP_TOKENS = 256
"""Tokens that an MLP computes at a time: its inner activations then stay in the processor's cache."""


class _Left(Exception):
    """The last block was left behind its attention."""


class Blocks:
    """The blocks of one pass: they know its prompts' keys and values, and where each group's tokens are."""

    def __init__(self, architecture: Architecture, base: Base) -> None:
        self._architecture, self._base = architecture, base
        self._n_layers = len(architecture.layers)
        self._layer = -1
        self._segments: list[Segment] = []
        self._later: list[list[Mapping[HookPoint, Sequence[Intervention]]]] = []  # of each group's rows
        self._prologue = architecture.prologue(
            mx.array(base.tokens[:1]), cache=[EmptyCache() for _ in architecture.layers]
        )

    def through(self, block: int, groups: Sequence[Group]) -> list[mx.array]:
        """What a block makes of each group's rows, [rows, tokens, d_model]; the last one of their last token
        only."""
        self._layer, self._segments = block, []
        self._later = [[entry.later for entry in group.live] for group in groups]
        parts, begin = [], 0
        for group in groups:
            assert group.h is not None
            n_rows, n_tokens = group.h.shape[:2]
            bases = tuple(entry.base for entry in group.live)
            self._segments.append(Segment(group.start, begin, n_rows, n_tokens, bases))
            parts.append(group.h.reshape(1, n_rows * n_tokens, -1))
            begin = self._segments[-1].end
        h = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)
        h = self._edited("resid_pre", h)
        if block == self._n_layers - 1:
            y, ends = self._last_block(h), np.cumsum([0, *(s.n_rows for s in self._segments)])
        else:
            with tapped(self._edits_of_parts(block)):
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
        """What the last block makes of each row's last token; of the others it needs keys and values only."""
        layer = self._architecture.layers[-1]
        last = np.concatenate(
            [np.arange(s.begin + s.n_tokens - 1, s.end, s.n_tokens) for s in self._segments]
        )
        chosen, written = mx.array(last), list[mx.array]()

        def project(call: Callable[..., Any], z: mx.array, *args: Any, **kwargs: Any) -> Any:
            return call(self._edited("z", mx.take(z, chosen, axis=1)), *args, **kwargs)

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
        edits = self._edits_of_parts(self._n_layers - 1)
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

    # edits made on the way, of rows that are edited at several hook points

    def _edits_of_parts(self, block: int) -> list[tuple[nn.Module, Around]]:
        layer, architecture = self._architecture.layers[block], self._architecture
        taps: list[tuple[nn.Module, Around]] = []
        if self._asks("z") and layer.out_proj is not None and block < self._n_layers - 1:
            taps.append((layer.out_proj, self._edit_input))
        if self._asks("attn_out") and layer.attn_adds is not None:
            taps.append((layer.attn_adds, self._edit_output("attn_out", architecture.attn_scale)))
        if self._asks("mlp_out") and layer.mlp_adds is not None:
            taps.append((layer.mlp_adds, self._edit_output("mlp_out", architecture.mlp_scale)))
        return taps

    def _edit_input(self, call: Callable[..., Any], z: mx.array, *args: Any, **kwargs: Any) -> Any:
        return call(self._edited("z", z), *args, **kwargs)

    def _edit_output(self, name: str, factor: float) -> Around:
        def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            y = call(*args, **kwargs)
            return self._edited(name, y) if factor == 1.0 else self._edited(name, y * factor) / factor

        return around

    def _asks(self, name: str) -> bool:
        point = HookPoint(name, self._layer)
        return any(point in later for rows in self._later for later in rows)

    def _edited(self, name: str, x: mx.array) -> mx.array:
        """`x` [1, tokens, …] of all rows, or of their last tokens only, with the edits made here."""
        if not self._asks(name):
            return x
        point, length = HookPoint(name, self._layer), self._base.tokens.shape[1]
        only_last = x.shape[1] == sum(s.n_rows for s in self._segments)
        parts, begin = [], 0
        for s, rows in zip(self._segments, self._later, strict=True):
            n = 1 if only_last else s.n_tokens
            end = begin + s.n_rows * n
            part = x[0, begin:end].reshape(s.n_rows, n, -1)
            if name == "z":
                part = part.reshape(s.n_rows, n, self._architecture.layers[self._layer].n_heads or 1, -1)
            edits = {i: later[point] for i, later in enumerate(rows) if point in later}
            # Some of the positions that an edit names may be before this window.
            window = Window(length - n, (length,), grows=True)
            parts.append(edited_rows(part, edits, window).reshape(1, s.n_rows * n, x.shape[-1]))
            begin = end
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)

    @contextmanager
    def patched_modules(self) -> Iterator[None]:
        """While the pass runs, the blocks' parts see each segment for itself."""
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
            if not (mask is None or isinstance(mask, WindowMask)) or keys.shape[2] != self._segments[-1].end:
                raise CannotJoin("its attention makes its own mask or keys")
            window = None if mask is None else mask.window
            assert self._base.caches is not None
            before = self._base.caches[self._layer]
            parts = [
                attended(original, s, before, queries, keys, values, scale, window, rest)
                for s in self._segments
            ]
            return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)

        return attend


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
