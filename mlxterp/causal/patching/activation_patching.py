"""Activation patching: put one run's activation into the other, see how much of the behaviour follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp.causal.batching import sweep
from mlxterp.causal.finite import require_finite
from mlxterp.causal.patching.sites import (
    By,
    Direction,
    Runs,
    Site,
    Sweeps,
    check_sweeps,
    patching_result,
    plan_sweeps,
    runs_of,
)
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.encoding import Prompt
from mlxterp.causal.prompts.pair import MetricLike, Pairs, Prepared, as_pairs, prepare
from mlxterp.core import interventions
from mlxterp.core.hook_points import HookPoint, axes
from mlxterp.core.model import InterpretableModel
from mlxterp.measurements import recorder
from mlxterp.metrics import Floats
from mlxterp.progress import ProgressOption, reporting
from mlxterp.results import PatchingResult
from mlxterp.statistics.effects import effects

FIVE_SWEEPS: tuple[tuple[str, By | None], ...] = (
    ("resid_pre", "layer_pos"),
    ("resid_mid", "layer_pos"),
    ("attn_out", "layer_pos"),
    ("mlp_out", "layer_pos"),
    ("z", "layer_pos_head"),
)
"""Where the information is, and which component moves it there."""


def activation_patching(
    model: InterpretableModel,
    clean: Prompt | Pairs,
    corrupted: Prompt | None = None,
    *,
    component: str = "resid_pre",
    by: By | None = None,
    metric: MetricLike = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    direction: Direction = "denoising",
    align: Align = "strict",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    seed: int = 0,
    progress: ProgressOption = None,
) -> PatchingResult:
    """The effect of patching each site of `component`, one site at a time.

    Denoising puts the clean activation into the corrupted run (what is sufficient); 0 = as corrupted, 1 = as
    clean. Noising puts the corrupted activation into the clean run (what is necessary); 0 = as clean, 1 = as
    corrupted. The two are not each other's complement.

        denoising  (m_patched − m_corrupted) / (m_clean − m_corrupted)
        noising    (m_clean − m_patched) / (m_clean − m_corrupted)

    Over several pairs an effect is the ratio of means, with every pair's own effect beside it and, from four
    independent pairs on, a 95 % interval (`mlxterp.statistics.ratio`). The intervals of `components` and
    `top_components` hold for all sites at once, so that the best of many is not taken for an effect; from
    eight independent pairs on, the strongest sites of one half are measured again on the other. Positions
    before the first token that differs have an effect of exactly 0 and are not run.

    Args:
        clean, corrupted: two prompts; or one PromptPair, or a list of them, or what `prepare` made of these,
            and no `corrupted`.
        component: resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, q, k, v, pattern; or the short
            names mlp, attn, attn_head.
        by: "layer", "layer_pos", "layer_head" or "layer_pos_head"; by default "layer_head" for what has heads
            and "layer" for what hasn't. k and v have one head per key/value head.
        metric: a name or callable, see `mlxterp.metrics.resolve`; `logit_diff` if answer and foil are given,
            else "l2".
        answer, foil: one token each, as text or id; with pairs, instead of each one's own.
        align: how positions of prompts of different lengths correspond, see `alignment.py`.
        layers, positions: sweep only these; by default all layers that have the component. Positions are the
            patched run's, negative ones count from the end.
        seed: which half of the pairs chooses the sites that the other half measures again.
        progress: called with (rows done, rows in all); by default a bar after two seconds, False for none.

    Returns:
        effects with axes in the order of `by`.

    Raises:
        LengthMismatch, NoGap, PromptPairError: see `pair.prepare`.
        SweepError: axes that the component does not have.
        CapabilityUnavailable: this model has no such component, in any layer or in one asked for.
        NotFinite: some patched runs have no finite metric; names their sites.

    Source: Zhang & Nanda 2023 (2309.16042), Heimersheim & Nanda 2024 (2404.15255).
    """
    (found,) = activation_patchings(
        model,
        clean,
        corrupted,
        sweeps=[(component, by)],
        metric=metric,
        answer=answer,
        foil=foil,
        direction=direction,
        align=align,
        layers=layers,
        positions=positions,
        seed=seed,
        progress=progress,
    )
    return found


def activation_patchings(
    model: InterpretableModel,
    clean: Prompt | Pairs,
    corrupted: Prompt | None = None,
    *,
    sweeps: Sweeps = FIVE_SWEEPS,
    metric: MetricLike = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    direction: Direction = "denoising",
    align: Align = "strict",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    seed: int = 0,
    progress: ProgressOption = None,
) -> tuple[PatchingResult, ...]:
    """Several sweeps of `activation_patching` in one call: both prompts run once, and all rows run together.

    A patch that two sweeps share runs once: resid_mid at a position is resid_pre of the next layer there.

    Args:
        sweeps: (component, by) of each; by default the residual stream before and behind attention, both
            outputs, and z of each head, all by position. The rest as in `activation_patching`.

    Returns:
        one result per sweep, in the order of `sweeps`.
    """
    named = check_sweeps(model, sweeps, direction)
    prepared = prepare(model, as_pairs(clean, corrupted, answer=answer, foil=foil), metric, align=align)
    runs = runs_of(prepared, direction)
    planned = plan_sweeps(model, runs, named, layers, positions)
    measured = patched_metrics(
        model, prepared, runs, [(each.component, each.grid.sites()) for each in planned], progress
    )
    recorder.add_method("activation_patching", pairs=len(prepared.pairs))
    facts = prepared.measured_on(model) | {"direction": direction}
    results = []
    for each, values in zip(planned, measured, strict=True):
        require_finite(
            values,
            each.grid.name_of,
            f"{prepared.metric.name} with {each.component} patched",
            "Leave these sites out with layers= or positions=, or load the model with dtype=mx.float32.",
        )
        on_grid = values.reshape(len(values), *each.grid.shape)
        found = effects(
            on_grid,
            one=runs.source_metric,
            zero=runs.base_metric,
            clusters=prepared.clusters,
            search=True,
            seed=seed,
        )
        results.append(
            patching_result(model, prepared, runs, each, found, cautions=found.cautions, measured_on=facts)
        )
    return tuple(results)


def patched_metrics(
    model: InterpretableModel,
    prepared: Prepared,
    runs: Runs,
    sweeps: Sequence[tuple[str, Sequence[Site]]],
    progress: ProgressOption,
) -> list[Floats]:
    """Per sweep of a component over sites, the metric `[n_examples, n_sites]` with each site patched.

    Sites that change nothing keep the base value. All rows of all sweeps run together.
    """
    values = [np.repeat(runs.base_metric[:, None], len(sites), axis=1) for _, sites in sweeps]
    cells: dict[tuple[HookPoint, tuple[tuple[int, int], ...], int | None], list[tuple[int, int]]] = {}
    for s, (name, sites) in enumerate(sweeps):
        for i, site in enumerate(sites):
            positions = tuple(filter(runs.changes, site.positions))
            if positions:
                point = _same_as(HookPoint(name, site.layer), model.n_layers) if len(sweeps) > 1 else None
                cells.setdefault((point or HookPoint(name, site.layer), positions, site.head), []).append(
                    (s, i)
                )
    points = sorted({point for point, _, _ in cells}, key=str)
    captured = sweep.capture(model, runs.source, points, base=runs.source_run)
    source = {point: np.array(x.astype(mx.float32)) for point, x in captured.items()}
    rows = [
        sweep.Row(example, (_replacement(point, source[point][example : example + 1], positions, head),))
        for point, positions, head in cells
        for example in range(len(runs.base))
    ]
    if rows:
        with reporting(progress, "activation patching") as shown:
            found = sweep.run_rows(
                model,
                runs.base,
                rows,
                prepared.read,
                vocabulary=prepared.vocabulary,
                base=runs.base_run,
                progress=shown,
            )
        for where, of_examples in zip(cells.values(), found.reshape(len(cells), -1), strict=True):
            for s, i in where:
                values[s][:, i] = of_examples
    return values


def _same_as(point: HookPoint, n_layers: int) -> HookPoint:
    """The hook point whose patch is the same patch, so that several sweeps run it once.

    What enters a block is what the one before returned; and with resid_mid of the source at a position, the
    MLP, which sees that position only, makes the source's resid_post of it.
    """
    if point.name not in ("resid_mid", "resid_post") or point.layer is None:
        return point
    last = point.layer == n_layers - 1
    return HookPoint("resid_post", point.layer) if last else HookPoint("resid_pre", point.layer + 1)


def _replacement(
    point: HookPoint,
    source: np.ndarray[Any, Any],
    positions: tuple[tuple[int, int], ...],
    head: int | None,
) -> interventions.Intervention:
    where = axes(point)
    value = np.take(source, [s for _, s in positions], axis=where.pos)
    if head is not None and where.head is not None:
        value = np.take(value, [head], axis=where.head)
    return interventions.replace(point, value, positions=[b for b, _ in positions], heads=head)
