"""The effect of ablating each feature, estimated by gradients: all features of an SAE for one backward
pass, or a few.

`effects.py` has exact ablations, `circuits.py` edges between features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.batching.rows import last, last_position_only, measuring
from mlxterp.causal.finite import require_finite
from mlxterp.causal.gradients.backward import differentiable, gradients, refuse_at_its_minimum
from mlxterp.core import interventions
from mlxterp.core.model import InterpretableModel
from mlxterp.core.selection import Positions
from mlxterp.errors import SAEError
from mlxterp.measurements import recorder
from mlxterp.metrics import Floats, Metric, MetricFunction
from mlxterp.results import FeatureAttributionResult
from mlxterp.sae.analysis.runs import (
    Ablation,
    Runs,
    View,
    chosen_ablation,
    difference,
    intervals,
    prepare,
    shape_at,
    view,
)
from mlxterp.sae.analysis.texts import BATCH_TOKENS, Batch, Given
from mlxterp.sae.sae import SAE

Method: TypeAlias = Literal["gradient", "ig"]

STEPS = 10
"""Steps of the path integral, as Marks et al. use them."""


def feature_attribution(
    model: InterpretableModel,
    sae: SAE,
    text: Given,
    *,
    method: Method = "gradient",
    steps: int | None = None,
    metric: str | MetricFunction | Metric | None = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    ablation: Ablation | None = None,
    positions: Positions = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureAttributionResult:
    """The change of the metric that ablating each feature would make, to first order, for all at once.

        score(f)      Σ_pos (new_a − a_f) ⟨W_dec[f], ∂m/∂x⟩
        error_score   Σ_pos ⟨new_error − error, ∂m/∂x⟩

    with the error held where it is while a feature moves, as in `feature_effects`, whose sign this has.

    Args:
        text, answer, foil, ablation, positions, seed: as for `feature_effects`. Without an answer, it is the
            model's likeliest next token.
        method: "gradient": ∂m/∂x in the unchanged run. "ig": its mean along the straight path from there to
            the run in which all features and the error are ablated, at the middle of each step; the scores
            then add up to the metric's change from the one run to the other.
        steps: of "ig"; 10 by default.
        metric: "logit_diff" with a foil, else "log_prob".
        progress: called with (examples done, examples in all).

    Costs two forwards per example, then a forward and a backward per step.

    Raises:
        SAEError: as for `feature_effects`; an SAE at the final norm, for which exact effects cost no more.
        MetricError: a metric without a gradient; a distance from the unchanged run with "gradient", whose
            slope is 0 there.

    Source: Marks et al. 2024 (2403.19647), equations 3 and 4; their steps begin at the ablated end.
    """
    points = path(method, steps)
    refuse_behind_the_blocks(sae)
    runs = prepare(
        model, text, metric, answer=answer, foil=foil, positions=positions, own_answer=metric is None
    )
    chosen = chosen_ablation(ablation, runs.texts)
    if method == "gradient":
        refuse_at_its_minimum(runs.metric, "clean")
    n = len(runs.texts.examples)
    scores = np.zeros((n, sae.d_sae))
    errors, ablated = np.zeros(n), np.zeros(n)
    changes = np.zeros(sae.d_sae, dtype=np.bool_)
    done = 0
    for batch in runs.texts.batches:
        done += len(batch.examples)
        moved = move(model, sae, batch, chosen)
        slope = mean_slope(model, sae, runs, batch, moved, points)
        scores[batch.examples], errors[batch.examples] = moved.products(sae, slope)
        changes |= np.array(moved.acts != 0).any(axis=(0, 1))
        ablated[batch.examples] = runs.read(_run(model, sae, batch, moved), batch.examples)
        if progress is not None:
            progress(done, n)
    require_finite(
        np.concatenate([scores, errors[:, None]], axis=1),
        lambda i: f"feature {i}" if i < sae.d_sae else "the SAE's error",
        "scores of features by gradients",
        "A part of this model has no finite gradient there. Use `feature_effects`, which ablates.",
    )
    ids = np.flatnonzero(changes)
    bounds = intervals(scores[:, ids])
    options: dict[str, Any] = {"ablation": chosen, "method": method, "seed": seed}
    recorder.add_method("feature_attribution", pairs=n)
    return FeatureAttributionResult(
        features=tuple(ids.tolist()),
        scores=scores[:, ids].mean(axis=0),
        error_score=float(errors.mean()),
        method=method,
        steps=len(points) if method == "ig" else None,
        ablation=chosen,
        metric=runs.metric.name,
        clean_metric=float(runs.clean_metric.mean()),
        ablated_metric=float(ablated.mean()),
        hook_point=sae.hook_point,
        per_example=scores[:, ids] if n > 1 else None,
        ci_low=None if bounds is None else bounds[0],
        ci_high=None if bounds is None else bounds[1],
        measured_on=runs.measured_on(model, sae) | options,
    )


def path(method: str, steps: int | None) -> tuple[float, ...]:
    """How far along the path each gradient is taken: 0 is the unchanged run, 1 the ablated one.

    Raises:
        SAEError: an unknown method, or steps that mean nothing for it.
    """
    if method not in get_args(Method):
        raise SAEError(f"method={method!r} is not known. Choose one of: {', '.join(get_args(Method))}.")
    if steps is not None and (method != "ig" or steps < 1):
        raise SAEError(f"steps={steps} with method={method!r}: one step or more, and only with method='ig'.")
    n = STEPS if steps is None else steps
    return tuple((k + 0.5) / n for k in range(n)) if method == "ig" else (0.0,)


def refuse_behind_the_blocks(sae: SAE) -> None:
    """Raises SAEError for an SAE at the final norm, where a backward pass sees the last position only."""
    if sae.point_out.name in ("final_norm", "logits"):
        raise SAEError(
            f"an SAE at {sae.point_out}: gradients are taken inside of the blocks, up to the last "
            "resid_post. Use `feature_effects`, which is exact."
        )


@dataclass(frozen=True, eq=False)
class Move:
    """The change of an SAE's nodes when all are ablated, 0 at positions that do not count.

    Attributes:
        seen: the unchanged run, split.
        acts: change of the features, float32 `[n, length, d_sae]`; error: of the error `[n, length, d_out]`.
        written: both together, where the SAE writes `[n, length, d_out]`.
    """

    seen: View
    acts: mx.array
    error: mx.array
    written: mx.array

    def products(self, sae: SAE, slope: mx.array) -> tuple[Floats, Floats]:
        """Change times slope `[n, length, d_out]`, summed over positions: `[n, d_sae]`, and of the error."""
        along = mx.einsum("npf,npd,fd->nf", self.acts, slope, sae.W_dec)
        of_error = mx.sum(self.error * slope, axis=(1, 2))
        return np.array(along, dtype=np.float64), np.array(of_error, dtype=np.float64)


def move(model: InterpretableModel, sae: SAE, batch: Batch, ablation: Ablation) -> Move:
    """The change of each node by `ablation`."""
    seen = view(model, batch.clean, sae)
    counts = mx.array(batch.counted[..., None])
    acts, error = -seen.acts, -seen.error
    if ablation == "corrupted":
        assert batch.corrupted is not None
        other = view(model, batch.corrupted, sae)
        acts, error = difference(other.acts, seen.acts), error + other.error
    acts, error = mx.where(counts, acts, 0.0), mx.where(counts, error, 0.0)
    return Move(seen, acts, error, acts @ sae.W_dec + error)


def mean_slope(
    model: InterpretableModel, sae: SAE, runs: Runs, batch: Batch, moved: Move, points: Sequence[float]
) -> mx.array:
    """∂m/∂x where the SAE writes, `[n, length, d_out]`, the mean over these points of the path."""
    n, length = batch.clean.shape
    total = mx.zeros(moved.written.shape)
    at_once = max(1, BATCH_TOKENS // batch.clean.size)
    for start in range(0, len(points), at_once):
        some = points[start : start + at_once]
        targets = runs.targets.take(np.tile(batch.examples, len(some)))
        metric = differentiable(runs.given_metric, runs.metric, targets)
        steps = mx.concatenate([point * moved.written for point in some])
        edits = [interventions.add(sae.point_out, as_written(model, sae, steps))] if any(some) else []
        tokens = np.tile(batch.clean, (len(some), 1))
        found, _ = gradients(model, tokens, [sae.point_out], metric, edits=edits)
        each = found[sae.point_out].reshape(len(some), n, length, -1)
        total = total + mx.sum(each, axis=0)
        mx.eval(total)
    return total / len(points)


def as_written(model: InterpretableModel, sae: SAE, x: mx.array) -> mx.array:
    """`[n, length, d_out]` with the axes of the hook point: heads apart where it has heads."""
    return x.reshape(*x.shape[:2], *shape_at(model, sae))


def _run(model: InterpretableModel, sae: SAE, batch: Batch, moved: Move) -> NDArray[np.float32]:
    """Logits with everything ablated."""
    edit = interventions.add(sae.point_out, as_written(model, sae, moved.written))
    with measuring(model), last_position_only(model, ()):
        logits, _ = model.run(mx.array(batch.clean), interventions=[edit])
        return last(logits)
