"""Whether there is a behaviour to explain: what the gate decides on, per pair.

The pairs run a second time behind an unrelated prefix. A behaviour is a rule that the model follows, and
survives that; answers that were selected because one model happens to prefer them do not (measured in
`docs/selftest.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxterp import metrics
from mlxterp.causal.batching.rows import Ids
from mlxterp.causal.prompts.encoding import token_id
from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.linux_blas import blas
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import PromptPairError
from mlxterp.metrics import Floats, Metric, MetricFunction
from mlxterp.remeasure.measurement import numbers
from mlxterp.remeasure.pairs import SIDES, MeasuredPairs, Side, prepared_pairs


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


PREFIX = 16
"""Tokens before each prompt: with 16, preferences of random networks are those of a coin."""


@dataclass(frozen=True, eq=False)
class GateCells:
    """The behaviour on the pairs, on candidates that nobody selected (None without any), and on the pairs
    behind an unrelated prefix (None where that was not asked for, or no positions are left for one)."""

    pairs: BehaviourCells
    candidates: BehaviourCells | None
    d_vocab: int
    prefixed: BehaviourCells | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs.to_dict(),
            "candidates": None if self.candidates is None else self.candidates.to_dict(),
            "d_vocab": self.d_vocab,
            "prefixed": None if self.prefixed is None else self.prefixed.to_dict(),
        }


def gate_cells(
    model: InterpretableModel,
    pairs: Sequence[PromptPair] | MeasuredPairs,
    metric: str | MetricFunction | Metric | None = None,
    candidates: Sequence[PromptPair] = (),
    *,
    prefixes: bool = True,
    seed: int = 0,
) -> GateCells:
    """The gap, the preference in both runs and the rank of what should be said, per pair and per candidate.

    Costs four forwards per pair, two of them `PREFIX` tokens longer, and two per candidate. To control the
    gate, measure it on `worlds.shuffled_twin` too.

    Args:
        prefixes: whether the pairs run behind an unrelated prefix, too.
        seed: of the prefixes.

    Raises:
        PromptPairError: a pair without answer or foil.
    """
    with blas.pinned_threads():
        ready = prepared_pairs(model, pairs, metric, "auto", keep=False)
        others = (
            prepared_pairs(model, candidates, ready.metric, "auto", keep=False) if len(candidates) else None
        )
        behind = _behind_prefixes(model, ready, seed) if prefixes else None
        prefixed = None if behind is None else prepared_pairs(model, behind, ready.metric, "auto", keep=False)
    return GateCells(
        _cells(ready),
        None if others is None else _cells(others),
        model.d_vocab,
        None if prefixed is None else _cells(prefixed),
    )


def _behind_prefixes(model: InterpretableModel, ready: MeasuredPairs, seed: int) -> list[PromptPair] | None:
    """Each pair with the same random tokens before both prompts, drawn from what other pairs hold and this
    one does not; None where there are no such tokens or no positions left.

    They follow a token for the beginning of a text, where the prompts begin with one.
    """
    tokens: dict[int, dict[Side, list[int]]] = {}
    for group in ready.groups:
        for row, i in enumerate(group.indices.tolist()):
            tokens[i] = {side: [int(t) for t in group.tokens[side][row]] for side in SIDES}
    every = {token for both in tokens.values() for ids in both.values() for token in ids}
    rng = np.random.default_rng(seed)
    found = []
    for i, pair in enumerate(ready.pairs):
        clean, corrupted = tokens[i]["clean"], tokens[i]["corrupted"]
        named = {token_id(model, each) for each in (pair.answer, pair.foil) if each is not None}
        free = sorted(every - {*clean, *corrupted, *named, model.bos_token_id})
        size = min(PREFIX, len(free))
        limit = model.architecture.max_positions
        if not size or (limit is not None and max(len(clean), len(corrupted)) + size > limit):
            return None
        prefix = [int(token) for token in rng.choice(free, size=size, replace=False)]
        first = int(clean[0] == corrupted[0] == model.bos_token_id)
        found.append(
            replace(
                pair,
                clean=(*clean[:first], *prefix, *clean[first:]),
                corrupted=(*corrupted[:first], *prefix, *corrupted[first:]),
            )
        )
    return found


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
