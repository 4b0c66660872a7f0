"""Whether there is a behaviour to explain: what the gate decides on, per pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxterp import metrics
from mlxterp.causal.batching.rows import Ids
from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.linux_blas import blas
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import PromptPairError
from mlxterp.metrics import Floats, Metric, MetricFunction
from mlxterp.remeasure.measurement import numbers
from mlxterp.remeasure.pairs import MeasuredPairs, prepared_pairs


@dataclass(frozen=True, eq=False)
class BehaviourCells:
    """Both unpatched runs of each pair.

    Attributes:
        clean, corrupted: the metric.
        answer_preferred: whether the clean run gives the answer a higher logit than the foil.
        foil_preferred: whether the corrupted run gives the foil a higher one than the answer.
        answer_rank: the answer's place in the clean run, 1 = first.
        foil_rank: the foil's place in the corrupted run.
    """

    clean: Floats
    corrupted: Floats
    answer_preferred: NDArray[np.bool_]
    foil_preferred: NDArray[np.bool_]
    answer_rank: Ids
    foil_rank: Ids

    @property
    def gap(self) -> Floats:
        """clean − corrupted."""
        return self.clean - self.corrupted

    def to_dict(self) -> dict[str, Any]:
        return {
            "clean": numbers(self.clean),
            "corrupted": numbers(self.corrupted),
            "answer_preferred": self.answer_preferred.tolist(),
            "foil_preferred": self.foil_preferred.tolist(),
            "answer_rank": self.answer_rank.tolist(),
            "foil_rank": self.foil_rank.tolist(),
        }


@dataclass(frozen=True, eq=False)
class GateCells:
    """The behaviour on the pairs, and on candidates that nobody selected (None without any)."""

    pairs: BehaviourCells
    candidates: BehaviourCells | None
    d_vocab: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs.to_dict(),
            "candidates": None if self.candidates is None else self.candidates.to_dict(),
            "d_vocab": self.d_vocab,
        }


def gate_cells(
    model: InterpretableModel,
    pairs: Sequence[PromptPair] | MeasuredPairs,
    metric: str | MetricFunction | Metric | None = None,
    candidates: Sequence[PromptPair] = (),
) -> GateCells:
    """The gap, the preference in both runs and the rank of what should be said, per pair and per candidate.

    Costs two forwards per pair and candidate. To control the gate, measure it on `worlds.shuffled_twin` too.

    Raises:
        PromptPairError: a pair without answer or foil.
    """
    with blas.pinned_threads():
        ready = prepared_pairs(model, pairs, metric, "auto", keep=False)
        others = (
            prepared_pairs(model, candidates, ready.metric, "auto", keep=False) if len(candidates) else None
        )
    return GateCells(_cells(ready), None if others is None else _cells(others), model.d_vocab)


def _cells(ready: MeasuredPairs) -> BehaviourCells:
    if ready.answer_rank is None or ready.foil_rank is None:
        raise PromptPairError("the gate compares answer and foil, and these pairs lack one. Give both.")
    preferred = {side: np.zeros(len(ready), dtype=bool) for side in ("clean", "corrupted")}
    for group in ready.groups:
        answers, foils = group.targets.answers, group.targets.foils
        assert answers is not None, "there are ranks of it"
        assert foils is not None, "there are ranks of it"
        for side, logits in group.logits.items():
            difference = metrics.logit_diff(logits, answers, foils)
            preferred[side][group.indices] = difference > 0 if side == "clean" else difference < 0
    return BehaviourCells(
        ready.metric_of["clean"],
        ready.metric_of["corrupted"],
        preferred["clean"],
        preferred["corrupted"],
        ready.answer_rank,
        ready.foil_rank,
    )
