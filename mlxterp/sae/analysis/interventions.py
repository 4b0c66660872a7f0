"""Edits of features: zero, clamp, scale or add one, as an `Intervention` for any run or generation.

An activation is x = Σ_f a_f W_dec[f] + b_dec + error. Every edit here changes only the feature's own term:

    x' = x + (new_a − a) W_dec[f]

so the error, and every other feature, stays as it was, and a feature that does not fire is edited into
exactly the same x. `effects.py` measures what single edits do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from mlxterp.core import interventions
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Heads, Intervention
from mlxterp.core.selection import Positions
from mlxterp.errors import SAEError
from mlxterp.sae.sae import SAE

Features = int | Sequence[int]
Amount = float | Sequence[float]

_WITHOUT_VECTORS = ("pattern", "logits")


def feature_zero(
    sae: SAE, feature: Features, *, positions: Positions = None, rows: Heads = None
) -> Intervention:
    """Takes a feature out of the activation: x' = x − a_f W_dec[f] (feature ablation).

    Args:
        feature: its index, or several, which are taken out together.
        positions, rows: as for every intervention (`mlxterp.core.interventions`); all by default.

    Costs one encoding of the tokens it sees: 2 · d_in · d_sae operations a token.

    Raises:
        SAEError: a feature that does not exist; a transcoder, which writes elsewhere than it reads.
    """
    return _edit(sae, feature, lambda acts: mx.zeros_like(acts), positions, rows)


def feature_clamp(
    sae: SAE, feature: Features, value: Amount, *, positions: Positions = None, rows: Heads = None
) -> Intervention:
    """Sets a feature's activation to `value`, whether it fires or not (Templeton et al. 2024, "Scaling
    Monosemanticity"): x' = x + (value − a_f) W_dec[f].

    Args:
        feature, positions, rows: as for `feature_zero`.
        value: in units of the feature's activation; one, or one per feature.
    """
    target = _amounts(sae, feature, value, "value")
    return _edit(sae, feature, lambda acts: mx.broadcast_to(target, acts.shape), positions, rows)


def feature_scale(
    sae: SAE, feature: Features, factor: float, *, positions: Positions = None, rows: Heads = None
) -> Intervention:
    """Multiplies a feature's activation: x' = x + (factor − 1) a_f W_dec[f]. Factor 0 is `feature_zero`."""
    return _edit(sae, feature, lambda acts: acts * factor, positions, rows)


def feature_add(
    sae: SAE, feature: Features, amount: Amount, *, positions: Positions = None, rows: Heads = None
) -> Intervention:
    """Steers along a feature: x' = x + amount · W_dec[f], whatever the feature does there.

    Args:
        feature, positions, rows: as for `feature_zero`.
        amount: in units of the feature's activation, negative to steer away; one, or one per feature.

    Nothing is encoded, so it costs an addition.
    """
    ids = checked_features(sae, feature)
    refuse_transcoder(sae, "steered by an intervention")
    vector = _amounts(sae, feature, amount, "amount") @ sae.W_dec[mx.array(ids)]

    def steer(x: mx.array) -> mx.array:
        return (flat(x, sae).astype(mx.float32) + vector).reshape(x.shape)

    return interventions.edit(sae.point, steer, positions=positions, rows=rows)


def checked_features(sae: SAE, features: Features) -> list[int]:
    """Feature indices that exist, in the order given; SAEError names the first that does not."""
    ids = [int(features)] if isinstance(features, int | np.integer) else [int(f) for f in features]
    for f in ids:
        if not 0 <= f < sae.d_sae:
            raise SAEError(
                f"there is no feature {f}: this SAE at {sae.hook_point} has {sae.d_sae} features, 0 to "
                f"{sae.d_sae - 1}. Name one of these; `active_features` says which of them fire on a text."
            )
    if not ids or len(set(ids)) < len(ids):
        raise SAEError(f"features={ids}: name at least one feature, and each once.")
    return ids


def refuse_transcoder(sae: SAE, what: str) -> None:
    """Raises SAEError for a transcoder."""
    if sae.is_transcoder:
        raise SAEError(
            f"a feature of this transcoder cannot be {what}: it reads at {sae.hook_point} and writes at "
            f"{sae.hook_point_out}, and an intervention sees one place. Measure it with `feature_effects`."
        )


def flat(x: mx.array, sae: SAE, point: HookPoint | None = None) -> mx.array:
    """An activation [batch, pos, …] with one vector per position, [batch, pos, d]: heads side by side."""
    where = point or sae.point
    if where.name in _WITHOUT_VECTORS:
        raise SAEError(f"an SAE at {where}: there is no vector per position there to take features from.")
    return x if x.ndim == 3 else x.reshape(*x.shape[:2], -1)


def _edit(
    sae: SAE,
    feature: Features,
    new: Callable[[mx.array], mx.array],
    positions: Positions,
    rows: Heads,
) -> Intervention:
    ids = mx.array(checked_features(sae, feature))
    refuse_transcoder(sae, "edited by an intervention")
    directions = sae.W_dec[ids]

    def change(x: mx.array) -> mx.array:
        vectors = flat(x, sae)
        acts = sae.encode(vectors)[..., ids]
        return (vectors.astype(mx.float32) + (new(acts) - acts) @ directions).reshape(x.shape)

    return interventions.edit(sae.point, change, positions=positions, rows=rows)


def _amounts(sae: SAE, feature: Features, given: Amount, name: str) -> mx.array:
    """One number per feature, float32."""
    n = len(checked_features(sae, feature))
    values = np.atleast_1d(np.asarray(given, dtype=np.float32))
    if values.shape not in ((1,), (n,)) or not np.isfinite(values).all():
        raise SAEError(f"{name}={given!r} for {n} features: give one finite number, or one per feature.")
    return mx.array(np.broadcast_to(values, (n,)).copy())
