"""The effects of single features: exact ablations, one feature at a time with the error held, and random
features as controls.

Many ablations share a pass that restarts at the SAE's layer. `attribution.py` estimates the same by
gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.batching import sweep
from mlxterp.causal.batching.rows import Row
from mlxterp.causal.finite import require_finite
from mlxterp.core import interventions
from mlxterp.core.model import InterpretableModel
from mlxterp.core.selection import Positions
from mlxterp.errors import SAEError
from mlxterp.measurements import recorder
from mlxterp.metrics import Metric, MetricFunction
from mlxterp.results import FeatureEffectsResult
from mlxterp.sae.analysis.activity import FiredFeatures, fired_features
from mlxterp.sae.analysis.interventions import checked_features
from mlxterp.sae.analysis.runs import (
    Ablation,
    Runs,
    chosen_ablation,
    decoder_norms,
    deltas,
    intervals,
    percentiles,
    prepare,
    shape_at,
    view,
)
from mlxterp.sae.analysis.texts import Batch, Given
from mlxterp.sae.sae import SAE

CONTROLS = 20
"""Random features that each effect is compared with."""

_NUMBERS = 1 << 24
"""Numbers in the edits of the rows of one sweep: 64 MiB."""


def feature_effects(
    model: InterpretableModel,
    sae: SAE,
    text: Given,
    *,
    features: Sequence[int] | None = None,
    metric: str | MetricFunction | Metric | None = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    ablation: Ablation | None = None,
    positions: Positions = None,
    top_k: int = 20,
    controls: int = CONTROLS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureEffectsResult:
    """The metric at the last position with one feature ablated at a time, minus the metric without.

    The activation is reconstruction + error, and only the feature's own term is changed,

        x' = x + (new_a − a_f) W_dec[f]       at every counted position where new_a ≠ a_f

    so the SAE's error counts towards no feature, and a feature that does not fire has an effect of exactly 0.
    Each feature is compared with `controls` random ones put in its place: the same positions, the same
    amount ‖(new_a − a_f) W_dec[f]‖, another feature's decoder direction, drawn from those that fire on these
    texts (and from the others, if these are too few, which the result says).

    Args:
        text: a text or token ids; several; a PromptPair or several, with their answers and foils.
        features: their indices; by default the `top_k` that write most on these texts.
        metric: by default "logit_diff" with a foil, "log_prob" with an answer, else "kl" from the unchanged
            run, in nats.
        ablation: "zero" takes a feature out; "corrupted" gives it its activation on the corrupted prompt. By
            default "zero" for texts, "corrupted" for pairs.
        positions: which count; by default all but the first.
        seed: of the random features and of the intervals.
        progress: called with (ablations done, ablations in all).

    Returns:
        effects in units of the metric, each with its percentile among its controls, and an interval where
        there are several examples. An effect is invariant to rescaling the SAE's features.

    Costs at most examples × features × (1 + controls) rows, each from the SAE's layer on and from its first
    changed position on.

    Raises:
        SAEError: a feature that does not exist, an SAE of another width, "corrupted" without pairs.

    Source: ablation with the error held, Marks et al. 2024 (2403.19647); the controls are ours.
    """
    if controls < 0 or top_k < 1:
        raise SAEError(f"controls={controls}, top_k={top_k}: controls is 0 or more, top_k 1 or more.")
    runs = prepare(model, text, metric, answer=answer, foil=foil, positions=positions)
    chosen = chosen_ablation(ablation, runs.texts)
    fired = fired_features(model, sae, runs.texts, chosen)
    measured = fired.strongest(top_k) if features is None else checked_features(sae, features)
    table = _Directions.draw(sae, fired, measured, controls, seed)
    changes = np.zeros((len(runs.texts.examples), len(measured), 1 + controls))
    changes[:, table.ids < 0] = np.nan
    counts = np.zeros(len(measured), dtype=np.int64)
    total = changes.size
    done = 0
    for batch in runs.texts.batches:
        edits = _edits(model, sae, batch, table, chosen)
        counts += edits.counts
        done += len(batch.clean) * table.ids.size - len(edits.cells)  # cells without a change
        for some in edits.chunks():
            values = sweep.run_rows(
                model,
                batch.clean,
                [edits.row(cell) for cell in some],
                _reader(runs, batch),
                progress=None if progress is None else _from(progress, done, total),
            )
            done += len(some)
            for cell, value in zip(some, values, strict=True):
                changes[batch.examples[cell.example], cell.feature, cell.direction] = value
    require_finite(
        np.where(table.ids < 0, 0.0, changes).reshape(len(changes), -1),
        lambda flat: _named_change(table, flat),
        f"changes of {runs.metric.name} by ablating features",
        "Leave these features out with features=, or load the model with dtype=mx.float32.",
    )
    own, means = changes[:, :, 0], changes.mean(axis=0)
    bounds = intervals(own)
    options: dict[str, Any] = {"ablation": chosen, "seed": seed, "controls": controls}
    recorder.add_method("feature_effects", pairs=len(own))
    return FeatureEffectsResult(
        features=tuple(measured),
        effects=means[:, 0],
        fired=tuple(counts.tolist()),
        maxima=fired.maxima[list(measured)],
        controls=means[:, 1:],
        percentiles=percentiles(np.abs(means)),
        ablation=chosen,
        metric=runs.metric.name,
        clean_metric=float(runs.clean_metric.mean()),
        hook_point=sae.hook_point,
        tolerance=runs.metric.tolerance,
        inactive_controls=table.inactive,
        per_example=own if len(own) > 1 else None,
        ci_low=None if bounds is None else bounds[0],
        ci_high=None if bounds is None else bounds[1],
        measured_on=runs.measured_on(model, sae) | options,
    )


def _named_change(table: _Directions, flat: int) -> str:
    """`feature 12`, or `a control of feature 12`."""
    feature, direction = np.unravel_index(flat, table.ids.shape)
    own = f"feature {table.ids[feature, 0]}"
    return own if direction == 0 else f"a control of {own}"


@dataclass(frozen=True, eq=False)
class _Directions:
    """The decoder rows that each feature is ablated along: its own first, then random ones.

    Attributes:
        ids: `[n_features, 1 + controls]`, −1 where there is none.
        inactive: whether some of the random ones do not fire.
    """

    ids: NDArray[np.int64]
    inactive: bool

    @classmethod
    def draw(
        cls, sae: SAE, fired: FiredFeatures, features: Sequence[int], controls: int, seed: int
    ) -> _Directions:
        active = np.array(fired.active, dtype=np.int64)
        silent = np.setdiff1d(np.flatnonzero(decoder_norms(sae) > 0), active)
        ids = np.full((len(features), 1 + controls), -1, dtype=np.int64)
        ids[:, 0] = features
        inactive = False
        for i, f in enumerate(features):
            # Seeded by the feature, so that its controls do not depend on which others are measured.
            rng = np.random.default_rng([seed, f])
            drawn = rng.permutation(active[active != f])[:controls]
            if len(drawn) < controls:
                more = rng.permutation(silent[silent != f])[: controls - len(drawn)]
                drawn, inactive = np.concatenate([drawn, more]), inactive or len(more) > 0
            ids[i, 1 : 1 + len(drawn)] = drawn
        return cls(ids, inactive)


class _Cell(NamedTuple):
    """One row: an example of the batch, a feature and a direction by their places in the table."""

    example: int
    feature: int
    direction: int


@dataclass(frozen=True, eq=False)
class _Edits:
    """The rows of a batch: one per example, feature and direction, where the feature changes at all.

    Attributes:
        change: `[n, length, n_features]`, how the ablation changes each feature.
        written: `[n, length, d_out]`, the activation it changes; shape: of one position of it.
        directions: decoder rows by feature index.
        counts: `[n_features]`, at how many positions the ablation changes each.
    """

    sae: SAE
    table: _Directions
    change: NDArray[np.float32]
    written: NDArray[np.float32]
    shape: tuple[int, ...]
    directions: Mapping[int, NDArray[np.float32]]
    cells: list[_Cell]
    counts: NDArray[np.int64]

    def row(self, cell: _Cell) -> Row:
        own, other = (int(self.table.ids[cell.feature, place]) for place in (0, cell.direction))
        where = np.flatnonzero(self.change[cell.example, :, cell.feature])
        amount = self.change[cell.example, where, cell.feature][:, None]
        direction = self.directions[other]
        if cell.direction:
            direction = direction * (np.linalg.norm(self.directions[own]) / np.linalg.norm(direction))
        value = (self.written[cell.example, where] + amount * direction).astype(np.float32)
        value = value.reshape(1, len(where), *self.shape)
        return Row(
            cell.example,
            (interventions.replace(self.sae.point_out, value, positions=where.tolist()),),
        )

    def chunks(self) -> Iterator[list[_Cell]]:
        """The rows in groups whose edits fit in memory together."""
        some: list[_Cell] = []
        held = 0
        for cell in self.cells:
            size = np.count_nonzero(self.change[cell.example, :, cell.feature]) * self.sae.d_out
            if some and held + size > _NUMBERS:
                yield some
                some, held = [], 0
            some.append(cell)
            held += size
        if some:
            yield some


def _edits(
    model: InterpretableModel,
    sae: SAE,
    batch: Batch,
    table: _Directions,
    ablation: Ablation,
) -> _Edits:
    seen = view(model, batch.clean, sae)
    change = deltas(model, sae, batch, seen, ablation)[..., table.ids[:, 0]]
    needed = np.unique(table.ids[table.ids >= 0])
    rows = np.array(sae.W_dec[mx.array(needed)]) if len(needed) else ()
    changed = (change != 0).any(axis=1)
    return _Edits(
        sae=sae,
        table=table,
        change=change,
        written=np.array(seen.written),
        shape=shape_at(model, sae),
        directions=dict(zip(needed.tolist(), rows, strict=True)),
        cells=[
            _Cell(example, i, c)
            for example, i in np.argwhere(changed).tolist()
            for c in np.flatnonzero(table.ids[i] >= 0).tolist()
        ],
        counts=(change != 0).sum(axis=(0, 1)),
    )


def _reader(runs: Runs, batch: Batch) -> sweep.Read:
    return lambda logits, bases: runs.changes(logits, batch.examples[bases])


def _from(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: progress(before + done, total)
