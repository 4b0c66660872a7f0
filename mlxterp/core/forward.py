"""One forward of a model with activations edited and captured.

The model's own code runs; taps stand at the modules whose input or output a hook point names, only where a
hook point is edited or captured, and are removed afterwards, also when the run raises. Nothing is evaluated
here: captures are lazy arrays.

Lives here: one hooked run, the taps it puts on modules, and what each tap does. Does not live here: how a
module is tapped (`taps.py`), which modules a family has (`architecture/`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxterp.component_names import LAYER_NAMES
from mlxterp.core.architecture import attention
from mlxterp.core.architecture.attention import MxWithHookedSoftmax
from mlxterp.core.architecture.parts import Architecture, Layer
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention
from mlxterp.core.linux_blas import blas
from mlxterp.core.selection import Window
from mlxterp.core.taps import Around, RunLock, renamed, tapped
from mlxterp.errors import HookError, InterventionNotFired, MissingActivation
from mlxterp.measurements import recorder

Edits = dict[HookPoint, list[Intervention]]
Comparisons = list[tuple[HookPoint, mx.array]]
"""Hook points, and whether an edit there made another activation: a boolean, not computed yet."""


@dataclass(eq=False)
class HookedRun:
    """The hook points one run edits or captures, and what it has captured so far; `comparisons` collects what
    the edits changed, unless it is None."""

    edits: Edits
    wanted: frozenset[HookPoint]
    window: Window
    lock: RunLock
    captured: dict[HookPoint, mx.array] = field(default_factory=dict)
    fired: set[Intervention] = field(default_factory=set)
    called: set[HookPoint] = field(default_factory=set)  # modules named by their path
    attended: dict[int, mx.array] = field(default_factory=dict)  # by layer, the attention function's result
    layer: int = -1
    resid_pre: mx.array | None = None
    comparisons: Comparisons | None = None

    @property
    def inside_block(self) -> bool:
        """Whether one of this run's blocks is computed right now, and not a block of another model."""
        return self.layer >= 0 and self.lock.innermost

    def uses(self, point: HookPoint) -> bool:
        return point in self.wanted or point in self.edits

    def at(self, point: HookPoint, x: mx.array, *, start: int | None = None) -> mx.array:
        """The activation the model continues with: edited, and captured if it is wanted; `x` itself if
        neither."""
        if point.is_module_path:
            self._note_call(point)
        window = self.window if start is None else Window(start, self.window.lengths, self.window.grows)
        for intervention in self.edits.get(point, ()):
            edited = intervention.apply(x, window)
            if edited is not None:
                self.fired.add(intervention)
                if self.comparisons is not None and recorder.needs_comparison(str(point)):
                    self.comparisons.append((point, mx.any(edited != x)))
                x = edited
        if point in self.wanted:
            # A handle of its own: a model's `h += ...` would change the captured array.
            self.captured[point] = x[...]
        return x

    def _note_call(self, point: HookPoint) -> None:
        if point in self.called:
            raise HookError(
                f"{point}: one run calls this module more than once, as it does a rotary embedding (for "
                "queries and for keys), so its output is no single activation. Name what you mean, as in "
                "'L0.q' or 'L0.k', or a module that runs once."
            )
        self.called.add(point)


Tap = tuple[nn.Module, Around]
IN_ATTENTION_FUNCTION = ("q", "k", "v", "pattern")
"""Hook points that are seen where attention is computed, not at a module."""


def layer_taps(architecture: Architecture, layer: Layer, index: int, hooked: HookedRun) -> Iterator[Tap]:
    """The taps that this run needs on one layer's modules and on its block."""
    here = {name: HookPoint(name, index) for name in LAYER_NAMES}
    mid = here["resid_mid"] if hooked.uses(here["resid_mid"]) else None
    if layer.own_softmax is not None:
        if hooked.uses(here["q"]) or hooked.uses(here["k"]):
            yield layer.own_softmax.rope, _rotated(hooked, [here["q"], here["k"]])
        if hooked.uses(here["v"]):
            yield layer.own_softmax.v_proj, _values(hooked, here["v"], layer.n_kv_heads or 1)
    if layer.out_proj is not None and hooked.uses(here["z"]):
        yield layer.out_proj, _heads_input(hooked, here["z"], layer.n_heads or 1)
    if layer.attn_adds is not None and (hooked.uses(here["attn_out"]) or mid):
        yield layer.attn_adds, output_tap(hooked, here["attn_out"], architecture.attn_scale, mid)
    if layer.mlp_adds is not None and hooked.uses(here["mlp_out"]):
        yield layer.mlp_adds, output_tap(hooked, here["mlp_out"], architecture.mlp_scale)
    yield layer.block, _block(architecture, hooked, here, index)


def _block(architecture: Architecture, hooked: HookedRun, here: dict[str, HookPoint], index: int) -> Around:
    def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        h, others = architecture.stream(args, kwargs)
        hooked.layer = index
        if index == 0:
            h = hooked.at(HookPoint("embed"), architecture.entering(h))
        hooked.resid_pre = h = hooked.at(here["resid_pre"], h)
        try:
            return _first(others.call(call, h), lambda y: hooked.at(here["resid_post"], y))
        finally:
            hooked.layer = -1

    return around


def output_tap(
    hooked: HookedRun, point: HookPoint, factor: float = 1.0, mid: HookPoint | None = None
) -> Around:
    """A tap on what a module adds to the residual stream: its output times `factor`."""

    def added(y: mx.array) -> mx.array:
        contribution = y if factor == 1.0 else y * factor
        edited = hooked.at(point, contribution)
        if mid is not None:
            edited = _through_mid(hooked, mid, edited)
        if edited is contribution:
            return y
        return edited if factor == 1.0 else edited / factor

    return lambda call, *args, **kwargs: _first(call(*args, **kwargs), added)


def _through_mid(hooked: HookedRun, mid: HookPoint, attn_out: mx.array) -> mx.array:
    # The block adds attention to its own local copy of the residual, so changing what the second norm *sees*
    # would leave the skip path unpatched. Writing the difference at attn_out moves both, and equals the
    # hand-written forward (tests/core/architecture/test_parts.py).
    assert hooked.resid_pre is not None
    resid = hooked.resid_pre + attn_out
    edited = hooked.at(mid, resid)
    return attn_out if edited is resid else attn_out + (edited - resid)


def _heads_input(hooked: HookedRun, point: HookPoint, n_heads: int) -> Around:
    """A tap on the input of an output projection, seen as heads."""

    def around(call: Callable[..., Any], x: mx.array, *args: Any, **kwargs: Any) -> Any:
        z = x.reshape(*x.shape[:-1], n_heads, -1)
        edited = hooked.at(point, z)
        return call(x if edited is z else edited.reshape(x.shape), *args, **kwargs)

    return around


def hooked_attention(hooked: HookedRun, original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """The replacement of the attention function in a run that edits or captures q, k, v or pattern."""

    def attend(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any = None,
        scale: float = 1.0,
        mask: mx.array | str | None = None,
        **rest: Any,
    ) -> mx.array:
        if not hooked.inside_block:
            return original(queries, keys, values, cache, scale=scale, mask=mask, **rest)
        point = {name: HookPoint(name, hooked.layer) for name in IN_ATTENTION_FUNCTION}
        queries = _by_position(hooked, point["q"], queries, None)
        keys = _by_position(hooked, point["k"], keys, 0)  # a cache puts all earlier keys in front
        values = _by_position(hooked, point["v"], values, 0)
        if hooked.uses(point["pattern"]):
            probabilities = attention.pattern(queries, keys, scale=scale, mask=mask, sinks=rest.get("sinks"))
            edited = hooked.at(point["pattern"], probabilities)
            if edited is not probabilities:
                return attention.attend(edited, values)
        result = original(queries, keys, values, cache, scale=scale, mask=mask, **rest)
        hooked.attended[hooked.layer] = result.swapaxes(1, 2)
        return result

    return attend


def _rotated(hooked: HookedRun, points: Sequence[HookPoint]) -> Around:
    """A tap on a rotary embedding: its first call gives the queries of this run, its second the keys."""
    left = list(points)

    def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        y = call(*args, **kwargs)
        return _by_position(hooked, left.pop(0), y, None) if left else y

    return around


def _values(hooked: HookedRun, point: HookPoint, n_kv_heads: int) -> Around:
    """A tap on the projection of values, before a cache puts earlier ones in front."""

    def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        y = call(*args, **kwargs)
        v = y.reshape(*y.shape[:-1], n_kv_heads, -1)
        edited = hooked.at(point, v)
        return y if edited is v else edited.reshape(y.shape)

    return around


def hooked_softmax(hooked: HookedRun, probabilities: mx.array) -> mx.array:
    """The result of a block's own softmax, [batch, …heads, dest, src], captured and edited as the pattern."""
    point = HookPoint("pattern", hooked.layer)
    if not hooked.inside_block or not hooked.uses(point):
        return probabilities
    batch, *_, n_dest, n_src = probabilities.shape
    pattern = probabilities.reshape(batch, -1, n_dest, n_src)
    edited = hooked.at(point, pattern)
    return probabilities if edited is pattern else edited.reshape(probabilities.shape)


def _by_position(hooked: HookedRun, point: HookPoint, x: mx.array, start: int | None) -> mx.array:
    """Edits and captures [batch, head, pos, d_head] as [batch, pos, head, d_head]."""
    if not hooked.uses(point):
        return x
    seen = x.swapaxes(1, 2)
    edited = hooked.at(point, seen, start=start)
    return x if edited is seen else edited.swapaxes(1, 2)


def _first(y: Any, change: Callable[[mx.array], mx.array]) -> Any:
    """Changes a module's output; of a tuple, its first entry."""
    if isinstance(y, tuple):
        return (change(y[0]), *y[1:])
    return change(y)


def run(
    architecture: Architecture,
    tokens: mx.array,
    *,
    interventions: Sequence[Intervention] = (),
    capture: Iterable[HookPoint] = (),
    lengths: tuple[int, ...] | None = None,
    cache: list[Any] | None = None,
    start: int = 0,
    grows: bool = False,
    comparisons: Comparisons | None = None,
) -> tuple[mx.array, dict[HookPoint, mx.array], set[Intervention]]:
    """Logits [batch, pos, d_vocab], what was captured, and which interventions changed something.

    Args:
        architecture: of the model to run.
        tokens: [batch, pos].
        interventions: edits, in order; at one hook point, each sees what the one before left.
        capture: hook points whose activation, after any edits there, is wanted.
        lengths: how many tokens of each row are its own, the rest being padding on the right.
        cache: one per layer; `start` is then the position of the first token.
        grows: later calls bring later positions, so an intervention may wait for its own.
        comparisons: gets whether each edit changed something; evaluate them with the logits.
    """
    edits: Edits = {}
    for intervention in interventions:
        edits.setdefault(intervention.point, []).append(intervention)
    wanted = frozenset(capture)
    for point in (*edits, *wanted):
        architecture.require_point(point)
    window = Window(start, lengths or (start + tokens.shape[1],) * tokens.shape[0], grows)
    hooked = HookedRun(edits, wanted, window, architecture.lock, comparisons=comparisons)
    blas.use_idle_cores()
    logits = forward(architecture, hooked, tokens, cache)
    _check(hooked, interventions)
    return logits, hooked.captured, hooked.fired


def forward(
    architecture: Architecture, hooked: HookedRun, tokens: mx.array, cache: list[Any] | None = None
) -> mx.array:
    """The model's logits, with the edits and captures of `hooked`."""
    with architecture.lock.run():
        with _hooked(architecture, hooked):
            logits = architecture.forward(tokens, cache)
        return hooked.at(HookPoint("logits"), logits)


def _check(hooked: HookedRun, interventions: Sequence[Intervention]) -> None:
    silent = [point for point in hooked.wanted if point not in hooked.captured]
    if silent:
        raise MissingActivation(
            f"{silent[0]}: the model ran without calling this module, so it has no activation. "
            "Leave it out of `capture`."
        )
    if not hooked.window.grows:
        raise_unfired(interventions, hooked.fired)


def raise_unfired(interventions: Iterable[Intervention], fired: set[Intervention]) -> None:
    """Raises InterventionNotFired for the first intervention that was never made."""
    every = list(interventions)
    if not every:
        return
    recorder.add_interventions(
        [str(each.point) for each in every if each in fired],
        [str(each.point) for each in every if each not in fired],
    )
    for intervention in every:
        if intervention not in fired:
            raise InterventionNotFired(
                f"{intervention}: this place was never computed, so nothing was changed. "
                "Check that the model calls this module, and that the positions were reached."
            )


@contextmanager
def _hooked(architecture: Architecture, hooked: HookedRun) -> Iterator[None]:
    taps, namespaces, own_softmaxes = _taps(architecture, hooked)
    if not taps:
        yield
        return
    stand_ins = [(names, hooked_attention(hooked, names[attention.NAME])) for names in namespaces]
    seen = [(names, MxWithHookedSoftmax(partial(hooked_softmax, hooked))) for names in own_softmaxes]
    with tapped(taps), renamed(attention.NAME, stand_ins), renamed("mx", seen):
        yield


def _taps(
    architecture: Architecture, hooked: HookedRun
) -> tuple[list[Tap], list[dict[str, Any]], list[dict[str, Any]]]:
    """Taps on the modules this run touches, and the namespaces of which it needs to see the attention
    function, or the softmax."""
    taps: list[Tap] = []
    namespaces: list[dict[str, Any]] = []
    own_softmaxes: list[dict[str, Any]] = []
    touched = {point.layer for point in (*hooked.edits, *hooked.wanted) if point.layer is not None}
    if hooked.uses(HookPoint("embed")) or architecture.stream_in_float32:
        touched.add(0)
    for index in sorted(touched):
        layer = architecture.layers[index]
        taps.extend(layer_taps(architecture, layer, index, hooked))
        if any(hooked.uses(HookPoint(name, index)) for name in IN_ATTENTION_FUNCTION):
            found = namespaces if layer.own_softmax is None else own_softmaxes
            found += [] if any(layer.namespace is known for known in found) else [layer.namespace]
    if hooked.uses(HookPoint("final_norm")) and architecture.norm_module is not None:
        taps.append((architecture.norm_module, output_tap(hooked, HookPoint("final_norm"))))
    for point in {*hooked.edits, *hooked.wanted}:
        if point.is_module_path:
            taps.append((architecture.module_at(point.name), output_tap(hooked, point)))
    return taps, namespaces, own_softmaxes
