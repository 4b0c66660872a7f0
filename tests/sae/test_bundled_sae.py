"""The SAE in the package: small, honest about itself, and of the model it says."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.datasets import sample_texts
from mlxterp.errors import SAEError
from mlxterp.sae import TopK, bundled_sae, sae_quality
from mlxterp.sae.bundled import BUNDLED


def test_it_is_small_and_says_how_it_was_made():
    from importlib.resources import files

    sae = bundled_sae("smollm2-135m")

    folder = files("mlxterp") / "weights" / BUNDLED["smollm2-135m"]
    assert (
        sum(len((folder / name).read_bytes()) for name in ("cfg.json", "sae_weights.safetensors")) < 2_600_000
    )
    assert (sae.model, sae.hook_point, sae.d_in, sae.d_sae) == ("smollm2-135m", "L15.resid_post", 576, 1024)
    assert sae.activation == TopK(32)
    assert sae.metadata["training"]["tokens"] > 1_000_000
    assert 0 < sae.metadata["held out"]["fvu"] < 0.25
    np.testing.assert_allclose(np.array(mx.linalg.norm(sae.W_dec, axis=1)), 1, atol=5e-3)  # bfloat16


def test_there_is_none_for_other_models():
    with pytest.raises(SAEError, match="there is one for smollm2-135m"):
        bundled_sae("toy-induction")


@pytest.mark.slow
def test_it_reconstructs_the_model_it_says():
    from mlxterp import InterpretableModel

    quality = sae_quality(InterpretableModel("smollm2-135m"), bundled_sae(), sample_texts(8))

    assert quality["fvu"].value < 0.3
    assert quality["l0"].value == 32
    assert quality["ce_recovered_mean"].value > 0.9
