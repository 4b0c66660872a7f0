"""What an SAE sees of a batch of prompts: its features, and the error that they leave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.prompts.encoding import Ids
from mlxterp.core.linux_blas import swiglu as fast_math
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SAEError
from mlxterp.sae.analysis.interventions import flat
from mlxterp.sae.analysis.runs import Ablation
from mlxterp.sae.analysis.texts import Batch, Texts
from mlxterp.sae.sae import SAE

ROUNDING = 1e-5
"""Relative difference of two activations that are the same but for the order of float32 additions."""


@dataclass(frozen=True, eq=False)
class View:
    """What an SAE sees of some prompts: written = reconstruction + error.

    Attributes:
        written: the activation where the SAE writes, float32 `[n, length, d_out]`.
        acts: its features, float32 `[n, length, d_sae]`.
        error: written − reconstruction.
    """

    written: mx.array
    acts: mx.array
    error: mx.array


def view(model: InterpretableModel, tokens: Ids, sae: SAE) -> View:
    """Activations, features and errors of these prompts `[n, length]`; one forward, as deep as the SAE.

    Raises:
        SAEError: the model is of another width there than the SAE.
    """
    with fast_math.used(model.architecture):
        _, seen = model.run(mx.array(tokens), capture=[sae.point, sae.point_out])
        mx.eval(list(seen.values()))  # the logits are never asked for
    read, written = (flat(seen[p], sae, p).astype(mx.float32) for p in (sae.point, sae.point_out))
    for point, x, width, name in (
        (sae.point, read, sae.d_in, "d_in"),
        (sae.point_out, written, sae.d_out, "d_out"),
    ):
        if x.shape[-1] != width:
            raise SAEError(
                f"{model.name} is {x.shape[-1]} wide at {point}, this SAE has {name} = {width}; it was "
                f"trained on {sae.model!r} at {sae.hook_point}. Use the model and hook point of its training."
            )
    return View(written, sae.encode(read), written - sae.reconstruct(read))


def activity(
    model: InterpretableModel, sae: SAE, texts: Texts
) -> Iterator[tuple[Batch, View, NDArray[np.float32]]]:
    """Each batch with what the SAE sees of it, and its features as numpy with 0 where nothing counts."""
    for batch in texts.batches:
        seen = view(model, batch.clean, sae)
        yield batch, seen, np.where(batch.counted[..., None], np.array(seen.acts), np.float32(0.0))


def deltas(
    model: InterpretableModel, sae: SAE, batch: Batch, seen: View, ablation: Ablation
) -> NDArray[np.float32]:
    """How an ablation changes each feature, `[n, length, d_sae]`; 0 where nothing counts."""
    if ablation == "zero":
        change = -seen.acts
    else:
        assert batch.corrupted is not None
        change = difference(view(model, batch.corrupted, sae).acts, seen.acts)
    return np.where(batch.counted[..., None], np.array(change), np.float32(0.0))


def difference(new: mx.array, old: mx.array) -> mx.array:
    """new − old of activations, 0 where they differ by rounding only."""
    change = new - old
    return mx.where(mx.abs(change) > ROUNDING * mx.maximum(mx.abs(new), mx.abs(old)), change, 0.0)


def decoder_norms(sae: SAE) -> NDArray[np.float64]:
    """‖W_dec[f]‖ of every feature: a unit of activation in units of the residual stream."""
    return np.array(mx.linalg.norm(sae.W_dec, axis=-1), dtype=np.float64)
