"""The gradient of a metric at many places of a model at once: one forward and one backward.

A zero is added at every place, and the metric is differentiated with respect to the zeros; so quantised
layers, norms and attention are passed through as the model computes them. The metrics are here too, as
functions of mlx arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import mlx.core as mx

from mlxterp import metrics
from mlxterp.causal.batching.rows import last_position_only
from mlxterp.causal.prompts.encoding import Ids
from mlxterp.core import interventions
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MetricError
from mlxterp.metrics import Metric, Targets

Differentiable: TypeAlias = Callable[[mx.array], mx.array]
"""Float32 logits [n, d_vocab] at the answer position → n numbers."""

Plus: TypeAlias = Callable[[Hashable, mx.array], mx.array]
"""plus(place, x): the activation at a place of the gradient; the forward continues with its value."""

T = TypeVar("T")

TOKEN_BUDGET = 512
"""Tokens in one backward pass, which keeps every activation: 3 MB each on SmolLM2-135M, as measured.

One prompt of more tokens takes what it takes.
"""


def gradients(
    model: InterpretableModel,
    tokens: Ids,
    points: Sequence[HookPoint],
    metric: Differentiable,
    *,
    edits: Sequence[Intervention] = (),
    capture: Sequence[HookPoint] = (),
) -> tuple[dict[HookPoint, mx.array], dict[HookPoint, mx.array]]:
    """The metric's gradient at each hook point, float32, and captured activations; one row per prompt.

    Args:
        tokens: prompts of one length, `[n, length]`.
        metric: of the logits at the last position; examples don't mix, so each row's gradient is its own.
        edits: made on what is differentiated with respect to, where both are at one hook point.
        capture: hook points whose activations are wanted from the same forward.

    Costs one forward and one backward. Nothing is evaluated.
    """
    ids = mx.array(tokens)

    def run(plus: Plus) -> tuple[mx.array, dict[HookPoint, mx.array]]:
        added = [interventions.edit(point, partial(plus, point)) for point in points]
        with last_position_only(model, ()):
            logits, captured = model.run(ids, interventions=[*added, *edits], capture=list(capture))
        return mx.sum(metric(logits[:, -1].astype(mx.float32))), captured

    return slopes(run)


def slopes(run: Callable[[Plus], tuple[mx.array, T]]) -> tuple[dict[Any, mx.array], T]:
    """The gradient of the number that `run` gives, at every place where it calls `plus(place, x)`, and what
    else it gives."""
    shapes: dict[Any, tuple[int, ...]] = {}

    def record_shape(place: Hashable, x: mx.array) -> mx.array:
        shapes[place] = x.shape
        return x

    run(record_shape)  # lazy: nothing of it is computed
    zeros = [mx.zeros(shape) for shape in shapes.values()]

    def of_zeros(zeros: list[mx.array]) -> tuple[mx.array, T]:
        at = dict(zip(shapes, zeros, strict=True))
        return run(lambda place, x: x + at[place].astype(x.dtype))

    (_, rest), found = mx.value_and_grad(of_zeros)(zeros)
    return dict(zip(shapes, found, strict=True)), rest


def differentiable(given: Any, metric: Metric, targets: Targets) -> Differentiable:
    """The metric on mlx arrays.

    Args:
        given: the metric as the caller passed it; a function is called with an mlx array (and the targets,
            if it takes them).
        metric, targets: the resolved metric, and the targets of the examples in each call.

    Raises:
        MetricError: a metric that cannot be differentiated.
    """
    if metric.name in _NAMED and metrics.METRICS.get(metric.name) is metric:
        return _NAMED[metric.name](targets)
    own = given if callable(given) and not isinstance(given, Metric) else metric.function
    if own is not None:
        return _own(metrics.bind_targets(own, targets), metric.name)
    raise MetricError(
        f"metric {metric.name!r} cannot be differentiated: it computes on numpy arrays. Use one of "
        f"{', '.join(_NAMED)}, or pass a function that also takes mlx arrays [n, d_vocab]."
    )


def refuse_at_its_minimum(metric: Metric, base: str) -> None:
    """A distance from the clean run has no slope in the clean run, where every estimate would be 0."""
    if base == "clean" and "clean_logits" in metric.needs:
        raise MetricError(
            f"metric {metric.name!r} is a distance from the clean run, so its gradient there is 0 and every "
            "estimate would be 0. Use 'logit_diff' or 'log_prob', direction='denoising' for nodes, or "
            "method='eap-ig' for edges."
        )


def _own(function: Callable[[mx.array], Any], name: str) -> Differentiable:
    def compute(logits: mx.array) -> mx.array:
        try:
            value: Any = function(logits)
        except (TypeError, ValueError, AttributeError, IndexError) as problem:
            raise MetricError(_NOT_MLX.format(name=name, problem=problem)) from problem
        if not isinstance(value, mx.array) or value.shape != logits.shape[:1]:
            what = f"it gave {type(value).__name__} of shape {getattr(value, 'shape', '?')}"
            raise MetricError(_NOT_MLX.format(name=name, problem=what))
        return value

    return compute


_NOT_MLX = (
    "metric {name!r} cannot be differentiated: called with an mlx array of logits [n, d_vocab] it must give "
    "an mlx array of n numbers ({problem}). Write it with operators that numpy and mlx share, as in "
    "`lambda logits: logits[:, 5] - logits[:, 7]`."
)


def _at(tokens: metrics.Tokens | None, name: str) -> Differentiable:
    if tokens is None:
        raise MetricError(f"this metric reads the {name}'s token id, and the targets hold none.")
    index = mx.array(tokens)[:, None]
    return lambda x: mx.take_along_axis(x, index, axis=-1)[:, 0]


def _logit(t: Targets) -> Differentiable:
    return _at(t.answers, "answer")


def _logit_diff(t: Targets) -> Differentiable:
    answer, foil = _at(t.answers, "answer"), _at(t.foils, "foil")
    return lambda x: answer(x) - foil(x)


def _log_prob(t: Targets) -> Differentiable:
    answer = _at(t.answers, "answer")
    return lambda x: answer(x) - mx.logsumexp(x, axis=-1)


def _prob(t: Targets) -> Differentiable:
    log_prob = _log_prob(t)
    return lambda x: mx.exp(log_prob(x))


def _clean(t: Targets) -> mx.array:
    if t.clean_logits is None:
        raise MetricError(
            "this metric is a distance from the clean run, and the targets hold no clean logits."
        )
    return mx.array(t.clean_logits)


def _kl(t: Targets) -> Differentiable:
    reference = _clean(t)
    log_p = reference - mx.logsumexp(reference, axis=-1, keepdims=True)

    def compute(x: mx.array) -> mx.array:
        log_q = x - mx.logsumexp(x, axis=-1, keepdims=True)
        return mx.sum(mx.exp(log_p) * (log_p - log_q), axis=-1)

    return compute


def _l2(t: Targets) -> Differentiable:
    reference = _clean(t)

    def compute(x: mx.array) -> mx.array:
        square = mx.sum(mx.square(_centred(x - reference)), axis=-1)
        # The root has no slope at 0, where it would make NaN of everything before it.
        return mx.where(square > 0, mx.sqrt(mx.where(square > 0, square, 1.0)), 0.0)

    return compute


def _cosine(t: Targets) -> Differentiable:
    reference = _unit(_centred(_clean(t)))
    return lambda x: 0.5 * mx.sum(mx.square(_unit(_centred(x)) - reference), axis=-1)


def _centred(x: mx.array) -> mx.array:
    return x - mx.mean(x, axis=-1, keepdims=True)


def _unit(x: mx.array) -> mx.array:
    return x / mx.linalg.norm(x, axis=-1, keepdims=True)


_NAMED: dict[str, Callable[[Targets], Differentiable]] = {
    "logit_diff": _logit_diff,
    "log_prob": _log_prob,
    "prob": _prob,
    "logit": _logit,
    "kl": _kl,
    "l2": _l2,
    "cosine": _cosine,
}
