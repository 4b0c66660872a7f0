"""A metric with a slope in the clean run, for attributing a distance between prompts of different lengths.

Lives here: that metric, and the mean of its scores over pairs. Does not live here: attribution
(`mlxterp.causal.gradients.edge_attribution`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp.metrics import MetricFunction, log_softmax
from mlxterp.results import EdgeScoresResult
from mlxterp.workflows.request import Asked, both_logits

SHIFT = "shift_towards_clean"


def towards_clean(asked: Asked, pair: int) -> MetricFunction:
    """Σ_v (p_clean(v) − p_corrupted(v)) · logit(v), for one pair.

    A distance from the clean run is at its minimum there, so EAP sees no slope. This one is linear in the
    logits; between the two runs it differs by KL(clean ‖ corrupted) + KL(corrupted ‖ clean), so it has a gap
    wherever they differ; and its slope in the corrupted run is that of −KL(clean ‖ ·).
    """
    clean, corrupted = (np.exp(log_softmax(rows[pair])) for rows in both_logits(asked.model, asked.prepared))
    weights = (clean - corrupted).astype(np.float32)

    def shift_towards_clean(logits: Any) -> Any:
        return logits @ (mx.array(weights) if isinstance(logits, mx.array) else weights)

    return shift_towards_clean


def mean_of_pairs(each: Sequence[EdgeScoresResult]) -> EdgeScoresResult:
    """The mean score of each edge over pairs that were attributed one by one; the only one as it is."""
    first = each[0]
    if len(each) == 1:
        return first
    scores = np.stack([result.scores for result in each])
    prompts = [prompt for result in each for prompt in result.measured_on["prompts"]]
    return replace(
        first,
        scores=scores.mean(axis=0),
        per_example=scores,
        clean_metric=float(np.mean([result.clean_metric for result in each])),
        corrupted_metric=float(np.mean([result.corrupted_metric for result in each])),
        measured_on=dict(first.measured_on) | {"prompts": prompts, "reduced": "mean of each pair's scores"},
    )
