"""Gemma Scope's `params.npz`: W_enc [d_in, d_sae], W_dec [d_sae, d_in], JumpReLU; b_dec stays on the input.

Source: Lieberum et al. 2024, "Gemma Scope", arXiv:2408.05147.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxterp.errors import SAEFormatError
from mlxterp.sae.formats.weight_files import Arrays, Overrides, check, required
from mlxterp.sae.sae import SAE, JumpRelu

WEIGHTS = "params.npz"


def to_sae(file: Path, overrides: Overrides) -> SAE:
    """The SAE in this `.npz` file; it names neither model nor hook point, so `overrides` must."""
    loaded: Any = mx.load(str(file))
    arrays: Arrays = dict(loaded)
    if "W_enc" not in arrays or arrays["W_enc"].ndim != 2:
        raise SAEFormatError(
            f"{file}: arrays {sorted(arrays)}. Gemma Scope's are W_enc, b_enc, W_dec, b_dec, threshold."
        )
    d_in, d_sae = arrays["W_enc"].shape
    d_out = arrays["W_dec"].shape[1] if "W_dec" in arrays and arrays["W_dec"].ndim == 2 else d_in
    shapes = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
        "threshold": (d_sae,),
    }
    check(arrays, list(shapes), shapes, file)
    return SAE(
        W_enc=arrays["W_enc"],
        b_enc=arrays["b_enc"],
        W_dec=arrays["W_dec"],
        b_dec=arrays["b_dec"],
        activation=JumpRelu(arrays["threshold"]),
        hook_point=required(overrides.hook_point, "hook_point", file),
        hook_point_out=overrides.hook_point_out,
        model=str(overrides.model or "unknown"),
        metadata={"format": "Gemma Scope"},
    )
