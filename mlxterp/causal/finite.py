"""Refuses to report numbers of which a part is NaN or infinite, and names the sites.

An average or a ranking of what is left would read as a result, and the missing part may be what matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike

from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import NotFinite

NAMED = 6
"""At most so many sites are named."""


def require_finite(
    values: ArrayLike, names: Sequence[str] | Callable[[int], str], what: str, what_to_do: str
) -> None:
    """Raises NotFinite if some of `values [..., sites]` are NaN or infinite, naming those sites.

    Args:
        names: of the sites, in the order of the last axis.
        what: these values are, as in "effects of patching z".
        what_to_do: a sentence that says what to do.
    """
    array = np.asarray(values)
    if not array.size:
        return
    array = array.reshape(-1, array.shape[-1])
    bad = np.flatnonzero(~np.isfinite(array).all(axis=0))
    if not len(bad):
        return
    named = [names(int(i)) if callable(names) else names[int(i)] for i in bad[:NAMED]]
    more = f" and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
    raise NotFinite(
        f"{what}: {len(bad):,} of {array.shape[1]:,} are NaN or infinite, at {', '.join(named)}{more}. "
        f"Nothing is reported, because what is left would read as all. {what_to_do}"
    )


def require_finite_runs(model: InterpretableModel, logits: ArrayLike, tokens: ArrayLike, which: str) -> None:
    """Raises NotFinite if logits `[n, d_vocab]` of these prompts `[n, length]` are NaN or infinite.

    The message names the first layer behind which the residual stream is not finite; that costs a forward.
    """
    if np.isfinite(np.asarray(logits)).all():
        return
    layers = model.architecture.layers_with("resid_post")
    points = [HookPoint("resid_pre", 0), *(HookPoint("resid_post", layer) for layer in layers)]
    points = [point for point in points if point.layer in model.architecture.layers_with(point.name)]
    _, seen = model.run(np.asarray(tokens), capture=points)
    broken = [str(p) for p in points if not mx.all(mx.isfinite(seen[p].astype(mx.float32))).item()]
    where = (
        f"The residual stream is not finite from {broken[0]} on. Read that layer's parts with "
        f"model.trace(prompt, capture='all')"
        if broken
        else "The residual stream is finite in every layer, so it is the final norm or the unembedding. Look "
        "for NaN in their weights"
    )
    raise NotFinite(
        f"{model.name}: the logits of the {which} prompt are NaN or infinite, so no metric of them means "
        f"anything. {where}; a 16-bit type may overflow, which dtype=mx.float32 cures."
    )


def require_finite_activations(
    model: InterpretableModel, activations: Mapping[str, mx.array], what_to_do: str = ""
) -> None:
    """Raises NotFinite if some of these activations are NaN or infinite, naming their hook points."""
    broken = [name for name, x in activations.items() if not mx.all(mx.isfinite(x)).item()]
    if broken:
        raise NotFinite(
            f"{model.name}: NaN or infinity at {', '.join(broken[:NAMED])}. Nothing is computed from these "
            f"activations, because what is left would read as all. {what_to_do or WHAT_TO_DO}"
        )


WHAT_TO_DO = (
    "Look at the weights and at model.trace(prompt, capture='all'); a 16-bit type may overflow, which "
    "dtype=mx.float32 cures."
)
