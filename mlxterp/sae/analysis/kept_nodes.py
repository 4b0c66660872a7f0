"""The model with only some nodes of its SAEs kept, everything else ablated, exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from mlxterp.causal.batching.rows import last, last_position_only
from mlxterp.core import interventions
from mlxterp.core.linux_blas import swiglu as fast_math
from mlxterp.core.model import InterpretableModel
from mlxterp.metrics import Floats
from mlxterp.results import FeatureNode
from mlxterp.sae.analysis.attribution import Move, move
from mlxterp.sae.analysis.interventions import flat
from mlxterp.sae.analysis.runs import Ablation, Runs
from mlxterp.sae.analysis.texts import Batch
from mlxterp.sae.sae import SAE


@dataclass(frozen=True)
class Keep:
    """Which nodes of one SAE are kept: these features or, if `inverted`, all others; and the error or not."""

    features: frozenset[int]
    error: bool
    inverted: bool = False

    @classmethod
    def of(cls, nodes: Sequence[FeatureNode], sae: SAE) -> Keep:
        """The nodes of a circuit that are this SAE's."""
        own = [node.feature for node in nodes if node.hook_point == sae.hook_point]
        return cls(frozenset(f for f in own if f is not None), None in own)

    @classmethod
    def nothing(cls) -> Keep:
        return cls(frozenset(), error=False)

    def others(self) -> Keep:
        """What this leaves out."""
        return replace(self, error=not self.error, inverted=not self.inverted)

    def mask(self, d_sae: int) -> mx.array:
        """`[d_sae]`, True where a feature is kept."""
        kept = np.isin(np.arange(d_sae), list(self.features))
        return mx.array(~kept if self.inverted else kept)


def kept_metric(
    model: InterpretableModel,
    saes: Sequence[SAE],
    runs: Runs,
    keep: Sequence[Keep] | None,
    ablation: Ablation,
) -> Floats:
    """The metric of each example `[n]` with every node outside of `keep` ablated, at the counted positions.

    A kept node has the value that it takes in this very run. None: everything is kept, which is the model.
    One forward per example, besides looking at what the ablated nodes are to be.
    """
    values = np.empty(len(runs.texts.examples))
    for batch in runs.texts.batches:
        edits = []
        if keep is not None:
            for sae, each in zip(saes, keep, strict=True):
                moved = move(model, sae, batch, ablation)
                edits.append(interventions.edit(sae.point, _keeping(sae, each, batch, moved)))
        with fast_math.used(model.architecture), last_position_only(model, ()):
            logits, _ = model.run(mx.array(batch.clean), interventions=edits)
            values[batch.examples] = runs.read(last(logits), batch.examples)
    return values


def _keeping(sae: SAE, keep: Keep, batch: Batch, moved: Move) -> Callable[[mx.array], mx.array]:
    mask, counts = keep.mask(sae.d_sae), mx.array(batch.counted[..., None])
    ablated_acts, ablated_error = moved.seen.acts + moved.acts, moved.seen.error + moved.error

    def edit(x: mx.array) -> mx.array:
        vectors = flat(x, sae).astype(mx.float32)
        acts = sae.encode(vectors)
        new = mx.where(mask, acts, ablated_acts)
        # With the error kept only the features' terms change, so that keeping everything changes nothing.
        kept = vectors + (new - acts) @ sae.W_dec if keep.error else sae.decode(new) + ablated_error
        return mx.where(counts, kept, vectors).reshape(x.shape)

    return edit
