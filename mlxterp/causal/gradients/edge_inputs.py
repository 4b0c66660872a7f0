"""The gradient at each input of a graph, in the residual stream: of each head's queries, keys and values, of
each MLP, of the logits.

A backward pass gives the gradient behind what reads the stream: at the outputs of `q_proj`, `k_proj` and
`v_proj`, at an MLP's input. From there to the stream there are a weight, which is linear and falls apart into
heads, and a norm, whose derivative depends on nothing but the stream itself. So one head's gradient is its
rows of the weight times its part of the gradient, put through the derivative of the norm; heads share a
batch. For an RMS norm of input x, weight γ and r = rms(x) that is γ⊙u/r − x⟨x, γ⊙u⟩/(d r³).

Where queries, keys and values have no weights of their own (gpt2, gpt_neox), the gradient at q, k and v as
attention uses them is put through the model's own block instead, one batch row per head.

What lives here: those gradients. What doesn't: what they are multiplied with (`edge_attribution.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxterp.causal.batching.rows import last_position_only
from mlxterp.causal.circuits.graph import Graph
from mlxterp.causal.gradients.backward import Differentiable, Plus, slopes
from mlxterp.causal.prompts.encoding import Ids
from mlxterp.core import interventions
from mlxterp.core.architecture import linear
from mlxterp.core.architecture.attention import NAME as ATTENTION_FUNCTION
from mlxterp.core.architecture.parts import Layer, Prologue
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.core.taps import Around, renamed, tapped
from mlxterp.errors import CapabilityUnavailable

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
QKV = ("q", "k", "v")


class _Seen(Exception):
    """Ends a block's call where what it was called for is known."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


@dataclass(frozen=True, eq=False)
class Backward:
    """One backward pass: gradients behind what reads the stream, and the stream where it is read."""

    behind: dict[Hashable, mx.array]
    stream: dict[HookPoint, mx.array]


class EdgeInputs:
    """The inputs of a model's graph, ready to be differentiated.

    Raises:
        CapabilityUnavailable: the heads' inputs of this architecture cannot be told apart.
    """

    def __init__(self, model: InterpretableModel, graph: Graph) -> None:
        self._model, self._graph = model, graph
        self._layers = model.architecture.layers
        self.separate = all(_separate(layer, graph) for layer in self._layers)
        if not self.separate:
            model.architecture.require(*QKV)
        self._last = HookPoint("resid_post", graph.n_layers - 1)

    @property
    def any_position(self) -> bool:
        """Whether positions can be looked at one by one: the model's own attention needs all of them."""
        return self.separate

    def backward(self, tokens: Ids, metric: Differentiable, embed: mx.array | None) -> Backward:
        """One forward and backward of these rows; `embed` replaces what enters the first block."""
        ids = mx.array(tokens)
        layers = range(self._graph.n_layers)
        read = [HookPoint("resid_pre", layer) for layer in layers]
        if self._graph.has_mlp and not self._graph.parallel:
            read += [HookPoint("resid_mid", layer) for layer in layers]
        start = [] if embed is None else [interventions.edit("embed", lambda _: embed)]

        points = [self._last]
        if not self.separate:
            points += [HookPoint(name, layer) for layer in layers for name in QKV]

        def run(plus: Plus) -> tuple[mx.array, dict[HookPoint, mx.array]]:
            edits = [*start, *(interventions.edit(point, partial(plus, point)) for point in points)]
            with tapped(self._taps(plus)), last_position_only(self._model, ()):
                logits, seen = self._model.run(ids, interventions=edits, capture=read)
            return mx.sum(metric(logits[:, -1].astype(mx.float32))), seen

        behind, stream = slopes(run)
        return Backward(behind, stream)

    def _taps(self, plus: Plus) -> list[tuple[nn.Module, Around]]:
        taps: list[tuple[nn.Module, Around]] = []
        for index, layer in enumerate(self._layers):
            if self.separate and layer.attn is not None:
                for name, module in zip(QKV, PROJECTIONS, strict=True):
                    taps.append((layer.attn[module], _output_plus(plus, (name, index))))
            if layer.mlp is not None:
                taps.append((layer.mlp, _input_plus(plus, ("mlp", index))))
        return taps

    def of_layer(
        self, layer: int, seen: Backward, tokens: Ids, span: slice
    ) -> tuple[mx.array, mx.array | None]:
        """Gradients in the stream, of the attention inputs and of the MLP's, in the order of the graph.

        Args:
            span: the positions to look at; all of them unless `any_position`.

        Returns:
            [inputs, rows, pos, d_model] for q, k, v of the layer's heads, and [1, rows, pos, d_model] or
            None.
        """
        prologue = self._model.architecture.prologue(mx.array(tokens))
        h = seen.stream[HookPoint("resid_pre", layer)][:, span]
        attention = (self._by_weights if self.separate else self._by_block)(layer, seen, h, span, prologue)
        if not self._graph.has_mlp:
            return attention, None
        if not self._graph.parallel:
            h = seen.stream[HookPoint("resid_mid", layer)][:, span]
        behind = seen.behind["mlp", layer][:, span]
        return attention, self._through_norm(layer, h, behind[None], prologue, mlp=True)

    def of_logits(self, seen: Backward, span: slice) -> mx.array:
        """[1, rows, pos, d_model]."""
        return seen.behind[self._last][None, :, span]

    def _by_weights(
        self, layer: int, seen: Backward, h: mx.array, span: slice, prologue: Prologue
    ) -> mx.array:
        attn = self._layers[layer].attn
        assert attn is not None, "a graph has attention in every layer"
        parts = []
        for name, module in zip(QKV, PROJECTIONS, strict=True):
            n_heads = self._graph.n_heads if name == "q" else self._graph.n_kv_heads
            weight = linear.rows(attn[module])
            behind = seen.behind[name, layer][:, span]
            by_head = behind.reshape(*behind.shape[:2], n_heads, -1)
            parts.append(mx.einsum("rthe,hed->hrtd", by_head, weight.reshape(n_heads, -1, weight.shape[-1])))
        return self._through_norm(layer, h, mx.concatenate(parts), prologue, mlp=False)

    def _through_norm(
        self, layer: int, h: mx.array, behind: mx.array, prologue: Prologue, *, mlp: bool
    ) -> mx.array:
        """Gradients [inputs, rows, pos, d_model] behind a norm as gradients at its input `h`."""
        part = self._layers[layer]
        module = part.mlp if mlp else part.attn
        taps: list[tuple[Any, Around]] = [(module, _input_seen)]
        if mlp:  # attention adds nothing, so that the block's input is what the MLP's norm sees
            taps.append((part.attn, _nothing))
        if mlp and part.attn_adds is not part.attn:
            taps.append((part.attn_adds, _nothing))

        def normed(x: mx.array) -> mx.array:
            with tapped(taps):
                found: mx.array = self._until_seen(layer, x, prologue)
            return found

        inputs, rows, *rest = behind.shape
        x = mx.broadcast_to(h[None], behind.shape).reshape(inputs * rows, *rest)
        cotangent = behind.reshape(x.shape).astype(x.dtype)
        (found,) = mx.vjp(normed, [x], [cotangent])[1]
        return found.astype(mx.float32).reshape(inputs, rows, *rest)

    def _by_block(self, layer: int, seen: Backward, h: mx.array, span: slice, prologue: Prologue) -> mx.array:
        """Through the model's own block, from q, k and v as attention uses them; one batch row per head."""
        assert span == slice(None), "attention needs all positions"
        sizes = (self._graph.n_heads, self._graph.n_kv_heads, self._graph.n_kv_heads)
        n_inputs, rows = sum(sizes), len(h)
        x = mx.concatenate([h] * n_inputs)
        cotangents, before = [], 0
        for name, size in zip(QKV, sizes, strict=True):
            behind = seen.behind[HookPoint(name, layer)]  # [rows, pos, head, d_head]
            own = mx.eye(size)[:, None, None, :, None] * behind[None]
            edges = [(before, n_inputs - before - size), *[(0, 0)] * 4]
            per_input = mx.pad(own, edges).reshape(n_inputs * rows, *behind.shape[1:])
            cotangents.append(per_input.swapaxes(1, 2).astype(x.dtype))
            before += size

        def qkv(x: mx.array) -> list[mx.array]:
            with renamed(ATTENTION_FUNCTION, [(self._layers[layer].namespace, _qkv_seen)]):
                return list(self._until_seen(layer, x, prologue))

        (found,) = mx.vjp(qkv, [x], cotangents)[1]
        return found.astype(mx.float32).reshape(n_inputs, *h.shape)

    def _until_seen(self, layer: int, h: mx.array, prologue: Prologue) -> Any:
        try:
            self._model.architecture.block(layer, h, prologue)
        except _Seen as seen:
            return seen.value
        raise CapabilityUnavailable(
            f"{self._model.name}: layer {layer} ran without calling its attention or its MLP, so what they "
            "read is not known. Attribute to nodes instead of edges."
        )


def _separate(layer: Layer, graph: Graph) -> bool:
    """Whether queries, keys and values come from weights of their own, head after head."""
    attn = layer.attn
    if attn is None or not all(isinstance(attn.get(name), nn.Module) for name in PROJECTIONS):
        return False
    n_heads = (graph.n_heads, graph.n_kv_heads, graph.n_kv_heads)
    return all(
        linear.readable(attn[name]) and attn[name]["weight"].shape[0] % n == 0
        for name, n in zip(PROJECTIONS, n_heads, strict=True)
    )


def _output_plus(plus: Plus, key: Hashable) -> Around:
    return lambda call, *args, **kwargs: plus(key, call(*args, **kwargs))


def _input_plus(plus: Plus, key: Hashable) -> Around:
    return lambda call, x, *args, **kwargs: call(plus(key, x), *args, **kwargs)


def _nothing(_: Callable[..., Any], x: mx.array, *__: Any, **___: Any) -> mx.array:
    return mx.zeros_like(x)


def _input_seen(_: Callable[..., Any], x: mx.array, *__: Any, **___: Any) -> mx.array:
    raise _Seen(x)


def _qkv_seen(q: mx.array, k: mx.array, v: mx.array, *_: Any, **__: Any) -> mx.array:
    raise _Seen((q, k, v))
