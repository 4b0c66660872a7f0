"""One forward of a model with activations edited and captured.

The model's own code runs; taps stand at the modules whose input or output a hook point names, only where
something is asked, and are gone afterwards whatever happens. Nothing is evaluated here: captures are lazy
arrays.

What lives here: the run, and which modules it has to see. What doesn't: what a run asks for and has seen
(`visit.py`), what a tap does at a module (`layer_taps.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.core as mx

from mlxterp.core.architecture import attention
from mlxterp.core.architecture.attention import SeenSoftmax
from mlxterp.core.architecture.parts import Architecture
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention
from mlxterp.core.layer_taps import (
    IN_ATTENTION_FUNCTION,
    Tap,
    attention_seen,
    layer_taps,
    output_tap,
    softmax_seen,
)
from mlxterp.core.linux_blas import blas
from mlxterp.core.selection import Window
from mlxterp.core.taps import renamed, tapped
from mlxterp.core.visit import Edits, Visit
from mlxterp.errors import HookError, InterventionNotFired, MissingActivation


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
    """
    edits: Edits = {}
    for intervention in interventions:
        edits.setdefault(intervention.point, []).append(intervention)
    wanted = frozenset(capture)
    for point in (*edits, *wanted):
        architecture.require_point(point)
    window = Window(start, lengths or (start + tokens.shape[1],) * tokens.shape[0], grows)
    visit = Visit(edits, wanted, window)
    blas.use_idle_cores()
    logits = forward(architecture, visit, tokens, cache)
    _check(visit, interventions)
    return logits, visit.captured, visit.fired


def forward(
    architecture: Architecture, visit: Visit, tokens: mx.array, cache: list[Any] | None = None
) -> mx.array:
    """The model's logits, with `visit` asked at every hook point it names."""
    with _hooked(architecture, visit):
        logits = architecture.forward(tokens, cache)
    return visit.at(HookPoint("logits"), logits)


def _check(visit: Visit, interventions: Sequence[Intervention]) -> None:
    silent = [point for point in visit.wanted if point not in visit.captured]
    if silent:
        raise MissingActivation(
            f"{silent[0]}: the model ran without calling this module, so there is nothing to see. "
            "Leave it out."
        )
    if not visit.window.grows:
        raise_unfired(interventions, visit.fired)


def raise_unfired(interventions: Iterable[Intervention], fired: set[Intervention]) -> None:
    """Raises InterventionNotFired for the first intervention that changed nothing."""
    for intervention in interventions:
        if intervention not in fired:
            raise InterventionNotFired(
                f"{intervention}: the run never came to this place, so nothing was changed. "
                "Check that the model calls this module, and that the positions were reached."
            )


@contextmanager
def _hooked(architecture: Architecture, visit: Visit) -> Iterator[None]:
    taps, namespaces, own_softmaxes = _taps(architecture, visit)
    if not taps:
        yield
        return
    if architecture.running:
        raise HookError(
            "The model was called from inside one of its own runs, by an edit function. "
            "Compute what the edit needs before the run."
        )
    architecture.running = True
    try:
        stand_ins = [(names, attention_seen(visit, names[attention.NAME])) for names in namespaces]
        seen = [(names, SeenSoftmax(partial(softmax_seen, visit))) for names in own_softmaxes]
        with tapped(taps), renamed(attention.NAME, stand_ins), renamed("mx", seen):
            yield
    finally:
        architecture.running = False


def _taps(
    architecture: Architecture, visit: Visit
) -> tuple[list[Tap], list[dict[str, Any]], list[dict[str, Any]]]:
    """Taps on the modules this run touches, and the namespaces of which it needs to see the attention
    function, or the softmax."""
    taps: list[Tap] = []
    namespaces: list[dict[str, Any]] = []
    own_softmaxes: list[dict[str, Any]] = []
    touched = {point.layer for point in (*visit.edits, *visit.wanted) if point.layer is not None}
    if visit.asks(HookPoint("embed")):
        touched.add(0)
    for index in sorted(touched):
        layer = architecture.layers[index]
        taps.extend(layer_taps(architecture, layer, index, visit))
        if any(visit.asks(HookPoint(name, index)) for name in IN_ATTENTION_FUNCTION):
            found = namespaces if layer.own_softmax is None else own_softmaxes
            found += [] if any(layer.namespace is known for known in found) else [layer.namespace]
    if visit.asks(HookPoint("final_norm")) and architecture.norm_module is not None:
        taps.append((architecture.norm_module, output_tap(visit, HookPoint("final_norm"))))
    for point in {*visit.edits, *visit.wanted}:
        if point.is_module_path:
            taps.append((architecture.module_at(point.name), output_tap(visit, point)))
    return taps, namespaces, own_softmaxes
