"""Taps on the modules of a layer: each sees an activation in the shape that its hook point promises.

What lives here: what a tap does where a module is called, and what stands in for the attention function. What
doesn't: which modules a run has to see (`forward.py`), edits and captures (`visit.py`), how a tap is put on
(`taps.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxterp.core.architecture import attention
from mlxterp.core.architecture.parts import Architecture, Layer, stream
from mlxterp.core.hook_points import LAYER_NAMES, HookPoint
from mlxterp.core.taps import Around
from mlxterp.core.visit import Visit

Tap = tuple[nn.Module, Around]
IN_ATTENTION_FUNCTION = ("q", "k", "v", "pattern")
"""Hook points that are seen where attention is computed, not at a module."""


def layer_taps(architecture: Architecture, layer: Layer, index: int, visit: Visit) -> Iterator[Tap]:
    """The taps on one layer's modules, and on its block, that this run needs."""
    here = {name: HookPoint(name, index) for name in LAYER_NAMES}
    mid = here["resid_mid"] if visit.asks(here["resid_mid"]) else None
    if layer.own_softmax is not None:
        if visit.asks(here["q"]) or visit.asks(here["k"]):
            yield layer.own_softmax.rope, _rotated(visit, [here["q"], here["k"]])
        if visit.asks(here["v"]):
            yield layer.own_softmax.v_proj, _values(visit, here["v"], layer.n_kv_heads or 1)
    if layer.out_proj is not None and visit.asks(here["z"]):
        yield layer.out_proj, _heads_input(visit, here["z"], layer.n_heads or 1)
    if layer.attn_adds is not None and (visit.asks(here["attn_out"]) or mid):
        yield layer.attn_adds, output_tap(visit, here["attn_out"], architecture.attn_scale, mid)
    if layer.mlp_adds is not None and visit.asks(here["mlp_out"]):
        yield layer.mlp_adds, output_tap(visit, here["mlp_out"], architecture.mlp_scale)
    yield layer.block, _block(visit, here, index)


def _block(visit: Visit, here: dict[str, HookPoint], index: int) -> Around:
    def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        h, rest, named = stream(args, kwargs)
        visit.layer = index
        if index == 0:
            h = visit.at(HookPoint("embed"), h)
        visit.resid_pre = h = visit.at(here["resid_pre"], h)
        try:
            return _first(call(h, *rest, **named), lambda y: visit.at(here["resid_post"], y))
        finally:
            visit.layer = -1

    return around


def output_tap(visit: Visit, point: HookPoint, factor: float = 1.0, mid: HookPoint | None = None) -> Around:
    """A tap on what a module adds to the residual stream: its output times `factor`."""

    def added(y: mx.array) -> mx.array:
        contribution = y if factor == 1.0 else y * factor
        edited = visit.at(point, contribution)
        if mid is not None:
            edited = _through_mid(visit, mid, edited)
        if edited is contribution:
            return y
        return edited if factor == 1.0 else edited / factor

    return lambda call, *args, **kwargs: _first(call(*args, **kwargs), added)


def _through_mid(visit: Visit, mid: HookPoint, attn_out: mx.array) -> mx.array:
    # The block adds attention to its own local copy of the residual, so changing what the second norm *sees*
    # would leave the skip path unpatched. Writing the difference at attn_out moves both, and equals the
    # hand-written forward (tests/core/architecture/test_parts.py).
    assert visit.resid_pre is not None
    resid = visit.resid_pre + attn_out
    edited = visit.at(mid, resid)
    return attn_out if edited is resid else attn_out + (edited - resid)


def _heads_input(visit: Visit, point: HookPoint, n_heads: int) -> Around:
    """A tap on the input of an output projection, seen as heads."""

    def around(call: Callable[..., Any], x: mx.array, *args: Any, **kwargs: Any) -> Any:
        z = x.reshape(*x.shape[:-1], n_heads, -1)
        edited = visit.at(point, z)
        return call(x if edited is z else edited.reshape(x.shape), *args, **kwargs)

    return around


def attention_seen(visit: Visit, original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """What stands in for the attention function while a run looks at q, k, v or pattern."""

    def attend(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any = None,
        scale: float = 1.0,
        mask: mx.array | str | None = None,
        **rest: Any,
    ) -> mx.array:
        if visit.layer < 0:
            return original(queries, keys, values, cache, scale=scale, mask=mask, **rest)
        point = {name: HookPoint(name, visit.layer) for name in IN_ATTENTION_FUNCTION}
        queries = _by_position(visit, point["q"], queries, None)
        keys = _by_position(visit, point["k"], keys, 0)  # a cache puts all earlier keys in front
        values = _by_position(visit, point["v"], values, 0)
        if visit.asks(point["pattern"]):
            probabilities = attention.pattern(queries, keys, scale=scale, mask=mask, sinks=rest.get("sinks"))
            edited = visit.at(point["pattern"], probabilities)
            if edited is not probabilities:
                return attention.attend(edited, values)
        return original(queries, keys, values, cache, scale=scale, mask=mask, **rest)

    return attend


def _rotated(visit: Visit, points: Sequence[HookPoint]) -> Around:
    """A tap on a rotary embedding: its first call gives the queries of this run, its second the keys."""
    left = list(points)

    def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        y = call(*args, **kwargs)
        return _by_position(visit, left.pop(0), y, None) if left else y

    return around


def _values(visit: Visit, point: HookPoint, n_kv_heads: int) -> Around:
    """A tap on the projection of values, before a cache puts earlier ones in front."""

    def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        y = call(*args, **kwargs)
        v = y.reshape(*y.shape[:-1], n_kv_heads, -1)
        edited = visit.at(point, v)
        return y if edited is v else edited.reshape(y.shape)

    return around


def softmax_seen(visit: Visit, probabilities: mx.array) -> mx.array:
    """What a block's own softmax gave, [batch, …heads, dest, src], seen and edited as the pattern."""
    point = HookPoint("pattern", visit.layer)
    if visit.layer < 0 or not visit.asks(point):
        return probabilities
    batch, *_, n_dest, n_src = probabilities.shape
    pattern = probabilities.reshape(batch, -1, n_dest, n_src)
    edited = visit.at(point, pattern)
    return probabilities if edited is pattern else edited.reshape(probabilities.shape)


def _by_position(visit: Visit, point: HookPoint, x: mx.array, start: int | None) -> mx.array:
    """Visits [batch, head, pos, d_head] as [batch, pos, head, d_head]."""
    if not visit.asks(point):
        return x
    seen = x.swapaxes(1, 2)
    edited = visit.at(point, seen, start=start)
    return x if edited is seen else edited.swapaxes(1, 2)


def _first(y: Any, change: Callable[[mx.array], mx.array]) -> Any:
    """Changes a module's output; of a tuple, its first entry."""
    if isinstance(y, tuple):
        return (change(y[0]), *y[1:])
    return change(y)
