"""Pairs of any token lengths as runs: grouped by length, both runs of each, the metric and ranks of both.

What lives here: what is the same for every claim about these pairs, so that several claims share it. What
doesn't: interventions (`edits.py`), numbers of a claim (`measurement.py`). Unlike
`causal.prompts.pair.prepare` this refuses no pair for a missing gap: whoever judges the numbers does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import mlx.core as mx
import numpy as np

from mlxterp import metrics
from mlxterp.causal.batching import sweep
from mlxterp.causal.batching.rows import Ids, Row
from mlxterp.causal.prompts.alignment import Align, Alignment, align_positions
from mlxterp.causal.prompts.encoding import token_ids, token_rows
from mlxterp.causal.prompts.pair import PromptPair, read_rows, vocabulary_of
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import PositionsAligned, PromptPairError, SweepError
from mlxterp.metrics import Floats, Metric, MetricFunction, Targets

KEPT_BYTES = 1 << 30
"""Runs are kept for the claims that follow if all fit in this; else each claim runs the pairs anew."""
_KEPT_PER_LAYER = 8  # vectors of d_model that a kept run holds per token and layer, about

Side: TypeAlias = Literal["clean", "corrupted"]
SIDES: tuple[Side, Side] = ("clean", "corrupted")


@dataclass(frozen=True, eq=False)
class LengthGroup:
    """Pairs with the same numbers of tokens and the same map between their positions.

    Attributes:
        indices: which of all pairs these are.
        tokens: of each side `[n, length]`.
        logits: of each side at the last position `[n, d_vocab]`.
        parts: slices of the pairs that are run together, and for each side the run that was kept, or None.
    """

    indices: Ids
    tokens: dict[Side, Ids]
    logits: dict[Side, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = field(repr=False)
    alignment: Alignment
    targets: Targets = field(repr=False)
    parts: tuple[tuple[slice, dict[Side, sweep.BaseRun | None]], ...] = field(repr=False)

    def length(self, side: Side) -> int:
        return int(self.tokens[side].shape[1])

    def positions(self, edited: Side) -> dict[int, int]:
        """Of each position of the edited run that has a counterpart, its position in the other run."""
        pairs = self.alignment.positions
        return dict(pairs) if edited == "clean" else {corrupted: clean for clean, corrupted in pairs}

    def activations(
        self, model: InterpretableModel, side: Side, points: Iterable[HookPoint]
    ) -> dict[HookPoint, mx.array]:
        """Float32 activations `[n, …]` of one side's runs; free for what the kept runs hold."""
        wanted = sorted(set(points), key=str)
        found = [
            sweep.capture(model, self.tokens[side][part], wanted, base=runs[side])
            for part, runs in self.parts
        ]
        return {point: mx.concatenate([each[point].astype(mx.float32) for each in found]) for point in wanted}

    def run(self, model: InterpretableModel, side: Side, rows: Sequence[Row], metric: Metric) -> Floats:
        """The metric of each row, whose `base` counts within this group."""
        values = np.full(len(rows), np.nan)
        vocabulary = vocabulary_of(metric, self.targets)
        for part, runs in self.parts:
            mine = [i for i, row in enumerate(rows) if part.start <= row.base < part.stop]
            if not mine:
                continue
            targets = self.targets.take(np.arange(part.start, part.stop))
            values[mine] = sweep.run_rows(
                model,
                self.tokens[side][part],
                [Row(rows[i].base - part.start, rows[i].edits) for i in mine],
                lambda logits, examples, t=targets: read_rows(metric, t, logits, examples),  # type: ignore[misc]
                vocabulary=vocabulary_of(metric, targets) if vocabulary is not None else None,
                base=runs[side],
            )
        return values


@dataclass(frozen=True, eq=False)
class MeasuredPairs:
    """All pairs with both their runs.

    Attributes:
        metric_of: of each side, the metric of each pair in the pairs' order.
        n_tokens: `[n, 2]`, of the clean and the corrupted prompt.
        answer_rank: the answer's place in the clean run, 1 = first; None if the pairs have no answers.
        foil_rank: the foil's place in the corrupted run, likewise.
    """

    pairs: tuple[PromptPair, ...]
    metric: Metric
    groups: tuple[LengthGroup, ...]
    metric_of: dict[Side, Floats]
    n_tokens: Ids
    answer_rank: Ids | None
    foil_rank: Ids | None

    def __len__(self) -> int:
        return len(self.pairs)


def resolve_metric(metric: str | MetricFunction | Metric, pairs: Sequence[PromptPair]) -> Metric:
    """The metric; a function of `mlxterp.metrics` that a registry holds is the metric of that name."""
    named = getattr(metric, "__name__", None)
    if named in metrics.METRICS and getattr(metrics, named, None) is metric:
        metric = metrics.METRICS[named]
    return metrics.resolve(
        metric,
        answer=all(pair.answer is not None for pair in pairs),
        foil=all(pair.foil is not None for pair in pairs),
    )


def run_pairs(
    model: InterpretableModel,
    pairs: Sequence[PromptPair],
    metric: str | MetricFunction | Metric,
    *,
    align: Align = "strict",
    keep: bool = True,
) -> MeasuredPairs:
    """Both runs of every pair, by length. Costs two forwards per pair.

    Args:
        keep: also the activations that claims need, within `KEPT_BYTES`; False where only the metric is
            wanted.

    Raises:
        PromptPairError: no pairs; a pair without the answer or foil that the others have.
        LengthMismatch: a pair whose prompts differ in length, without a map.
    """
    listed = tuple(pairs)
    if not listed:
        raise PromptPairError("no prompt pairs were given. Pass at least one PromptPair.")
    resolved = resolve_metric(metric, listed)
    answers = token_ids(model, [pair.answer for pair in listed], "answer")
    foils = token_ids(model, [pair.foil for pair in listed], "foil")
    by_map: dict[tuple[int, int, tuple[tuple[int, int], ...]], list[int]] = {}
    tokens = [_tokens(model, pair) for pair in listed]
    n_tokens = sum(clean.size + corrupted.size for clean, corrupted in tokens)
    keep = keep and n_tokens * model.n_layers * model.d_model * 4 * _KEPT_PER_LAYER <= KEPT_BYTES
    for i, (clean, corrupted) in enumerate(tokens):
        found = _aligned(model, clean, corrupted, align)
        by_map.setdefault((clean.shape[1], corrupted.shape[1], found.positions), []).append(i)
    groups = tuple(
        _run_group(model, np.array(members), tokens, align, Targets(answers, foils), keep=keep)
        for members in by_map.values()
    )
    metric_of: dict[Side, Floats] = {}
    for side in SIDES:
        metric_of[side] = np.full(len(listed), np.nan)
        for group in groups:
            metric_of[side][group.indices] = resolved(group.logits[side], group.targets)
    return MeasuredPairs(
        pairs=listed,
        metric=resolved,
        groups=groups,
        metric_of=metric_of,
        n_tokens=np.array([[c.shape[1], x.shape[1]] for c, x in tokens]),
        answer_rank=_ranks(groups, "clean", answers),
        foil_rank=_ranks(groups, "corrupted", foils),
    )


def prepared_pairs(
    model: InterpretableModel,
    pairs: Sequence[PromptPair] | MeasuredPairs,
    metric: str | MetricFunction | Metric | None,
    align: Align,
    *,
    keep: bool = True,
) -> MeasuredPairs:
    """Pairs that are run already as they are, others run now.

    Raises:
        SweepError: a metric beside pairs that were run for another, or no metric.
    """
    if isinstance(pairs, MeasuredPairs):
        if metric is not None and resolve_metric(metric, pairs.pairs) != pairs.metric:
            raise SweepError(
                f"metric {metric!r} comes beside pairs that were run for {pairs.metric.name!r}. Leave it "
                "out, or run the pairs for it."
            )
        return pairs
    if metric is None:
        raise SweepError("no metric was given. Name one, as in metric='logit_diff'.")
    return run_pairs(model, pairs, metric, align=align, keep=keep)


def _tokens(model: InterpretableModel, pair: PromptPair) -> tuple[Ids, Ids]:
    return token_rows(model, [pair.clean], "clean"), token_rows(model, [pair.corrupted], "corrupted")


def _aligned(model: InterpretableModel, clean: Ids, corrupted: Ids, align: Align) -> Alignment:
    with warnings.catch_warnings():
        # The claim states the map, and the measurement records it.
        warnings.simplefilter("ignore", PositionsAligned)
        return align_positions(model, clean, corrupted, align)


def _run_group(
    model: InterpretableModel,
    members: Ids,
    tokens: Sequence[tuple[Ids, Ids]],
    align: Align,
    targets: Targets,
    *,
    keep: bool,
) -> LengthGroup:
    both: dict[Side, Ids] = {
        "clean": np.concatenate([tokens[i][0] for i in members]),
        "corrupted": np.concatenate([tokens[i][1] for i in members]),
    }
    at_once = max(1, sweep.KEPT_TOKENS // sum(rows.shape[1] for rows in both.values()))
    parts, logits = [], {side: [] for side in SIDES}  # type: ignore[var-annotated]
    for first in range(0, len(members), at_once):
        part = slice(first, min(first + at_once, len(members)))
        runs = {side: sweep.run_prompts(model, both[side][part]) if keep else None for side in SIDES}
        parts.append((part, runs))
        for side, run in runs.items():
            logits[side].append(sweep.answer_logits(model, both[side][part]) if run is None else run.logits)
    of_side = {side: np.concatenate(found) for side, found in logits.items()}
    mine = targets.take(members)
    return LengthGroup(
        indices=members,
        tokens=both,
        logits=of_side,
        alignment=_aligned(model, both["clean"], both["corrupted"], align),
        targets=Targets(mine.answers, mine.foils, of_side["clean"]),
        parts=tuple(parts),
    )


def _ranks(groups: Sequence[LengthGroup], side: Side, tokens: Ids | None) -> Ids | None:
    if tokens is None:
        return None
    found = np.zeros(len(tokens), dtype=np.int64)
    for group in groups:
        found[group.indices] = metrics.rank(group.logits[side], tokens[group.indices])
    return found
