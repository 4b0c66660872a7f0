"""What one node of the computational graph writes, given what it reads: a head from its q, k and v inputs, an
MLP from its input, the logits from theirs.

The model's own block runs, with taps that give each projection its own input and stop the block behind the
output. So rotary embedding, masks, norms and gates are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.batching.base_run import PrefixCache
from mlxterp.causal.circuits.partial_forward import (
    Taps,
    present,
    run_until_reached,
    stop_with_input,
    stop_with_output,
    without_attention,
)
from mlxterp.core.architecture import linear
from mlxterp.core.architecture.attention import NAME as ATTENTION_FUNCTION
from mlxterp.core.architecture.parts import Layer
from mlxterp.core.model import InterpretableModel
from mlxterp.core.taps import Around, renamed
from mlxterp.errors import CapabilityUnavailable

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_AGREEMENT = 1e-4
"""How far one head computed by itself may be from the same head among all, relative to the largest value."""


class NodeOutputs:
    """The nodes of a model as functions of their inputs, for prompts of one length.

    Args:
        length: of the inputs.
        before: per layer a cache with what attention sees before the first of them; none for whole prompts.

    Raises:
        CapabilityUnavailable: the heads of this architecture cannot be run one by one.
    """

    def __init__(
        self, model: InterpretableModel, length: int, before: Sequence[PrefixCache] | None = None
    ) -> None:
        architecture = model.architecture
        architecture.require("decomposed", "head_outputs", "unembedding")
        self.n_heads, self.n_kv_heads = model.n_heads, model.n_kv_heads
        self.has_mlps = architecture.capabilities["mlp_out"].available
        self._model, self._architecture = model, architecture
        tokens = mx.zeros((1, length), dtype=mx.int32)
        with architecture.float32_stream():
            self._prologue = architecture.prologue(tokens, None if before is None else list(before))
        self._dtype = self._prologue.h.dtype
        self._written: dict[int, mx.array] = {}
        self._slices: dict[tuple[int, int], tuple[mx.array, mx.array | None]] = {}
        for index, layer in enumerate(architecture.layers):
            if not _separate(layer) and ATTENTION_FUNCTION not in layer.namespace:
                raise CapabilityUnavailable(
                    f"{architecture.name}: layer {index} neither has {', '.join(_PROJECTIONS)} nor calls "
                    f"{ATTENTION_FUNCTION}, so a head's q, k and v inputs cannot be told apart. Patch nodes "
                    "instead of edges."
                )
        self._one_head = self._agrees_by_itself(length)

    def head(self, layer: int, head: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """z of one head [rows, pos, d_head], whose queries, keys and values read these residual streams.

        Each is [rows, pos, d_model], or [1, pos, d_model] where all rows read the same.
        """
        return self._heads(layer, (q, k, v), head if self._one_head else None)[..., head, :]

    def mlp(self, layer: int, h: mx.array) -> mx.array:
        """What the MLP adds to the stream [rows, pos, d_model] when it reads `h`."""
        part = self._architecture.layers[layer]
        scale = self._architecture.mlp_scale
        taps = [*without_attention(part), (present(part.mlp_adds), stop_with_output)]
        out = self._run(layer, h, taps).astype(mx.float32)
        return out if scale == 1.0 else out * scale

    def logits(self, h: mx.array) -> NDArray[np.float32]:
        """Float32 logits [rows, d_vocab] at the last position, from the last stream [rows, pos, d_model]."""
        found = self._architecture.final(h[:, -1:].astype(self._dtype))
        return np.array(found[:, -1].astype(mx.float32))

    def written(self, layer: int, head: int, z: mx.array) -> mx.array:
        """What one head adds to the stream, where nothing stands between the heads and the stream."""
        if layer not in self._written:
            self._written[layer] = self._architecture.w_o(layer) * self._architecture.attn_scale
            mx.eval(self._written[layer])
        return z.astype(mx.float32) @ self._written[layer][head]

    def all_written(self, layer: int, z: mx.array) -> mx.array:
        """What every head of a layer adds [rows, pos, n_heads, d_model], from z [rows, pos, n_heads, d_head].

        All heads together are attn_out: each is given its share of the output bias.
        """
        heads, bias = self._architecture.head_outputs(layer, z)
        return heads + bias[..., None, :] / self.n_heads

    def heads_interact(self, layer: int) -> bool:
        """Whether a norm stands between the heads and the stream, so that each scales all others."""
        part = self._architecture.layers[layer]
        return part.attn_adds is not part.attn

    def _heads(self, layer: int, inputs: tuple[mx.array, ...], only: int | None) -> mx.array:
        """z [rows, pos, n_heads, d_head]; of one head only, the others are not computed."""
        part = self._architecture.layers[layer]
        rows = max(len(x) for x in inputs)
        ends = np.cumsum([len(x) for x in inputs]).tolist()
        begins = [0, *ends[:-1]]
        parts = [slice(a, b) for a, b in zip(begins, ends, strict=True)]
        taps: Taps = []
        names: list[tuple[dict[str, Any], Any]] = []
        if _separate(part):
            normed: list[mx.array] = []
            taps.append((present(part.attn), _split(normed, parts, rows)))
            for i, name in enumerate(_PROJECTIONS):
                module = present(part.attn)[name]
                taps.append((module, self._projection(module, normed, i, rows, only)))
        else:
            stand_in = _attend_parts(part.namespace[ATTENTION_FUNCTION], parts, rows)
            names.append((part.namespace, stand_in))
        taps.append((present(part.out_proj), stop_with_input))
        with renamed(ATTENTION_FUNCTION, names):
            z = self._run(layer, mx.concatenate(list(inputs)), taps)
        return z[:rows].reshape(rows, z.shape[1], self.n_heads, -1)

    def _projection(
        self, module: nn.Module, normed: list[mx.array], which: int, rows: int, only: int | None
    ) -> Around:
        """A tap that projects the input meant for it; of one head only, the others stay 0."""

        def around(call: Callable[..., mx.array], *_: Any, **__: Any) -> mx.array:
            x = normed[which]
            y = call(x) if only is None else self._slice_of(module, x, which, only)
            return mx.broadcast_to(y, (rows, *y.shape[1:]))

        return around

    def _slice_of(self, module: nn.Module, x: mx.array, which: int, head: int) -> mx.array:
        count = self.n_heads if which == 0 else self.n_kv_heads
        index = head if which == 0 else head * self.n_kv_heads // self.n_heads
        key = (id(module), index)
        if key not in self._slices:
            width = linear.n_rows(module) // count
            own = slice(index * width, (index + 1) * width)
            bias = linear.bias(module)
            self._slices[key] = (linear.rows(module, own).T, None if bias is None else bias[own])
            mx.eval(self._slices[key][0])
        weight, bias = self._slices[key]
        y = x @ weight.astype(x.dtype)
        y = y if bias is None else y + bias.astype(x.dtype)
        before, after = index * y.shape[-1], (count - 1 - index) * y.shape[-1]
        return mx.pad(y, [(0, 0), (0, 0), (before, after)])

    def _agrees_by_itself(self, length: int) -> bool:
        """Whether a head's own rows of the projections are enough: not where a norm spans heads (olmo2)."""
        layers = self._architecture.layers
        plain = all(
            type(present(layer.attn)[name]) in (nn.Linear, nn.QuantizedLinear)
            for layer in layers
            if _separate(layer)
            for name in _PROJECTIONS
        )
        if not plain or not all(_separate(layer) for layer in layers):
            return False
        shape = (1, length, self._architecture.d_model)
        q, k, v = (mx.random.normal(shape, key=mx.random.key(i)).astype(self._dtype) for i in range(3))
        for layer in {0, len(layers) - 1}:
            whole = self._heads(layer, (q, k, v), None)
            for head in {0, self.n_heads - 1}:
                alone = self._heads(layer, (q, k, v), head)[..., head, :]
                away = mx.max(mx.abs(alone - whole[..., head, :]))
                if not (away <= _AGREEMENT * mx.max(mx.abs(whole))).item():
                    return False
        return True

    def _run(self, layer: int, h: mx.array, taps: Taps) -> mx.array:
        found: mx.array = run_until_reached(
            self._architecture, layer, h.astype(self._dtype), self._prologue, taps
        )
        return found


def _separate(layer: Layer) -> bool:
    """Whether queries, keys and values have a projection each."""
    attn = layer.attn
    return attn is not None and all(isinstance(attn.get(name), nn.Module) for name in _PROJECTIONS)


def _split(normed: list[mx.array], parts: Sequence[slice], rows: int) -> Around:
    """A tap on attention: keeps what each projection is to read, and lets attention see `rows` rows."""

    def around(call: Callable[..., Any], x: mx.array, *args: Any, **kwargs: Any) -> Any:
        normed.extend(x[part] for part in parts)
        return call(mx.broadcast_to(x[:1], (rows, *x.shape[1:])), *args, **kwargs)

    return around


def _attend_parts(original: Callable[..., mx.array], parts: Sequence[slice], rows: int) -> Callable[..., Any]:
    """Attention in which queries, keys and values come from different rows; the rows behind them are 0."""

    def attend(q: mx.array, k: mx.array, v: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        chosen = (x[part] for x, part in zip((q, k, v), parts, strict=True))
        z = original(*(mx.broadcast_to(x, (rows, *x.shape[1:])) for x in chosen), *args, **kwargs)
        return mx.concatenate([z, mx.zeros((len(q) - rows, *z.shape[1:]), dtype=z.dtype)])

    return attend
