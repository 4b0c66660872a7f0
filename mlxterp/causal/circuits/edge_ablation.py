"""What an ablated edge carries: its sender's value on the corrupted prompt, zero, or its mean.

Lives here: the choice, and that value. What doesn't: runs with ablated edges (`edge_patching.py`), estimates of
them (`edge_attribution.py`), ablation of nodes (`ablation.py`).
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import mlx.core as mx
import numpy as np

from mlxterp.causal.prompts.encoding import Ids
from mlxterp.errors import SweepError

EdgeAblation: TypeAlias = Literal["corrupted", "zero", "mean"]

DESCRIBED = {
    "corrupted": "removed edges carry the corrupted prompt's value (resample)",
    "zero": "removed edges carry zero",
    "mean": "removed edges carry the sender's mean over all prompts, clean and corrupted, per position",
}


def check_ablation(ablation: str, clean: Ids, corrupted: Ids) -> None:
    """SweepError for a kind that is not known, or a mean over a single prompt."""
    if ablation not in get_args(EdgeAblation):
        raise SweepError(
            f"ablation={ablation!r} is not known. Choose one of: {', '.join(get_args(EdgeAblation))}."
        )
    if ablation == "mean" and clean.shape == corrupted.shape and len(different(clean, corrupted)) < 2:
        raise SweepError("ablation='mean' over a single prompt carries what is already there. Give several.")


def different(clean: Ids, corrupted: Ids) -> Ids:
    """Which of all prompts, clean then corrupted, are the first of their kind; all of them where lengths
    differ."""
    if clean.shape != corrupted.shape:
        return np.arange(len(clean) + len(corrupted))
    return np.sort(np.unique(np.concatenate([clean, corrupted]), axis=0, return_index=True)[1])


def carried(ablation: EdgeAblation, clean: mx.array, corrupted: mx.array, mean_over: Ids) -> mx.array:
    """What stands in for a sender's values on the clean prompts, [n, …] from both runs' values [n, …]."""
    if ablation == "zero":
        return mx.zeros_like(clean)
    if ablation == "mean":
        every = mx.concatenate([clean, corrupted])[mx.array(mean_over)]
        mean = mx.mean(every.astype(mx.float32), axis=0, keepdims=True).astype(clean.dtype)
        return mx.broadcast_to(mean, clean.shape)
    return corrupted
