"""The bundled SAE: small, for examples. `python -m tests.benchmarks.sae_smollm2 bundle` makes it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from mlxterp.errors import SAEError
from mlxterp.sae.formats import load_sae
from mlxterp.sae.sae import SAE

BUNDLED = {"smollm2-135m": "sae_smollm2_135m_L15"}


def bundled_sae(model: str = "smollm2-135m") -> SAE:
    """The SAE in the package for this model: 1,024 features of SmolLM2-135M's residual stream after layer 15.

    2.4 MB in bfloat16; computes in float32. With so few features many are coarse. `sae.metadata` holds its
    training, three epochs over a million tokens of Brown and Austen, and its quality.

    Raises:
        SAEError: there is none for this model.
    """
    if model not in BUNDLED:
        raise SAEError(
            f"No SAE for {model!r} is in the package; there is one for {', '.join(BUNDLED)}. Train one with "
            "`python -m mlxterp.sae train`, or load one with load_sae."
        )
    return load_sae(bundled_path(model))


def bundled_path(model: str) -> Path:
    """The directory of the SAE in the package for this model, one of `BUNDLED`."""
    return Path(str(files("mlxterp") / "weights" / BUNDLED[model]))
