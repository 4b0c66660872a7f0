"""Means and one scale, measured before a training and folded into the weights after it.

There is no scale per dimension, which would change what a reconstruction error means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.errors import SAEError
from mlxterp.sae.config import SAEConfig
from mlxterp.sae.sae import SAE, Activation, JumpRelu, Relu, TopK
from mlxterp.sae.training.objective import ACTIVATION, Params

Rows = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Scaling:
    """(x − mean) · scale has a mean squared length of 9 k.

    One scale for all dimensions: the geometry stays.
    """

    mean: mx.array
    scale: float

    def __call__(self, x: mx.array) -> mx.array:
        return (x - self.mean) * self.scale


class Scalings(NamedTuple):
    """Of what is read and of what is written: the same one unless a transcoder is trained."""

    read: Scaling
    written: Scaling


def measure(rows: Rows, place: str, k: int) -> Scaling:
    """The scaling of rows [n, d] with which an active feature is about 3 (`objective.ACTIVATION`).

    Raises:
        SAEError: NaN or infinities among them, or all rows equal.
    """
    exact = rows.astype(np.float64)
    mean = exact.mean(axis=0)
    variance = float(((exact - mean) ** 2).sum(axis=1).mean())
    if not math.isfinite(variance):
        raise SAEError(
            f"Activations at {place} hold NaN or infinite values; of {len(rows)} tokens, "
            f"{int((~np.isfinite(exact)).any(axis=1).sum())} have one. Look at the model's dtype and weights."
        )
    if variance == 0:
        raise SAEError(
            f"All {len(rows)} tokens have the same activation at {place}: there is nothing to learn. "
            "Check the hook point, and that the texts differ."
        )
    return Scaling(mx.array(mean.astype(np.float32)), ACTIVATION * math.sqrt(k / variance))


def folded(
    config: SAEConfig,
    params: Params,
    scalings: Scalings,
    *,
    threshold: float,
    model: str,
    metadata: dict[str, Any],
) -> SAE:
    """The SAE that does on raw activations what the trained weights do on scaled ones.

    With s the scale of what is read, t that of what is written, a raw activation is a / t, so that decoder
    rows keep norm 1 and an activation is a length in the model's own units.
    """
    (inner, s), (outer, t) = ((each.mean, each.scale) for each in scalings)
    tied = not config.is_transcoder
    W_enc = params["W_enc"] * (s / t)
    b_enc, b_dec = params["b_enc"] / t, params["b_dec"] / t + outer
    if not tied:
        b_enc = b_enc - inner @ W_enc
    W_skip = params.get("W_skip")
    if W_skip is not None:
        W_skip = W_skip * (s / t)
        b_dec = b_dec - inner @ W_skip
    return SAE(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=params["W_dec"],
        b_dec=b_dec,
        activation=_activation(config, params, threshold, t),
        hook_point=str(config.hook_point),
        hook_point_out=config.hook_point_out if not tied else None,
        model=model,
        subtract_b_dec=tied,
        W_skip=W_skip,
        metadata=metadata,
    )


def _activation(config: SAEConfig, params: Params, threshold: float, t: float) -> Activation:
    if config.variant == "topk":
        return TopK(config.k)
    if config.variant == "relu":
        return Relu()
    if config.variant == "jumprelu":
        return JumpRelu(params["threshold"] / t)
    return JumpRelu(mx.full((config.d_sae,), threshold / t))
