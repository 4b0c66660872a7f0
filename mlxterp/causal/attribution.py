"""Attribution patching: what patching each site would do, estimated for all sites by one backward pass.

What lives here: the estimates, for every component, with the two fixes of AtP*. What doesn't: the backward
pass (`gradients.py`), what a gradient is multiplied with (`estimates.py`), patching itself
(`activation_patching.py`), edges (`edge_attribution.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from mlxterp.causal import sweep
from mlxterp.causal.alignment import Align
from mlxterp.causal.effects import effects
from mlxterp.causal.estimates import Subject, Wanted, estimates
from mlxterp.causal.gradients import refuse_at_its_minimum
from mlxterp.causal.pair import PromptPair, as_pairs, prepare
from mlxterp.causal.prompts import Prompt
from mlxterp.causal.sites import By, Direction, Grid, axes_of, runs_of, swept_positions, token_labels, within
from mlxterp.core.hook_points import component_name
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError
from mlxterp.metrics import Floats, Metric, MetricFunction
from mlxterp.results import PatchingResult

EVERY_NODE: tuple[tuple[str, By | None], ...] = (("z", "layer_pos_head"), ("mlp_out", "layer_pos"))
"""Every head and every MLP at every position."""

UNSTEADY, NAMED = 0.1, 6
"""From which range of single steps' effects on a site is named, if it is also above their mean; and how many
are named."""

_STREAM = ("resid_pre", "resid_mid", "resid_post")


def attribution_patching(
    model: InterpretableModel,
    clean: Prompt | PromptPair | Sequence[PromptPair],
    corrupted: Prompt | None = None,
    *,
    component: str = "z",
    by: By | None = None,
    metric: str | MetricFunction | Metric | None = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    direction: Direction = "denoising",
    align: Align = "strict",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    steps: int = 1,
    qk_fix: bool = False,
    grad_drop: bool = False,
    seed: int = 0,
) -> PatchingResult:
    """The effect of patching each site of `component`, estimated by a gradient instead of a forward per site.

        AtP(a) = ⟨a_source − a_base, ∂m/∂a⟩, the gradient taken in the run that would be patched

    Effects are shares of the gap, with the signs of `activation_patching`, whose arguments these are. They
    are exact where the metric is linear in what is patched. They are poor where a patch is a large change: on
    the residual stream, and through saturated softmaxes; the result says so, and holds the estimate for
    patching the whole input, which is exactly 1 in truth. Both options together are AtP*.

    Args:
        steps: take the gradient's mean over this many runs on the way from the other run's input to this
            one's, embeddings e_source + (k/steps) (e_base − e_source), k = 1 … steps. With 5, heads are seen
            that act through a later head's attention, which is saturated in both runs; and where single steps
            disagree, no gradient is to be trusted, and the result names the sites. One step is plain
            attribution patching. Costs a forward and a backward per step, batched.
        qk_fix: for q and k, recompute the softmax exactly and go on by the gradient at the pattern. Other
            components have no softmax of their own to recompute, and are not changed by it.
        grad_drop: the mean magnitude Σ_ℓ |estimate without layer ℓ| / (n_layers − 1): with the gradient
            through each layer's attention and MLP outputs dropped in turn, a direct and an indirect effect
            that cancel are both seen. The sign is the plain estimate's. Costs n_layers backward passes,
            batched.

    Over heads (z) of SmolLM2-135M, two sets of 8 IOI pairs, both directions: correlation with patching 0.78
    to 0.87 in one step and 0.94 to 0.95 in 5; of the ten strongest heads 8 to 10 are the same, and all 10.
    What one step misses are heads that decide where later heads look. GradDrop does not find them.

    Costs the pair's two baselines, one forward of the source run, one forward and one backward of the base
    run: about 5 forwards, whatever the number of sites.

    Raises:
        MetricError: a metric without a gradient, or a distance from the very run that is differentiated.
        SweepError: `grad_drop` for the residual stream, which is no layer's output; or with several steps.
        and what `activation_patching` raises.

    Source: Nanda 2022, "Attribution Patching"; Kramár et al. 2024 (2403.00745), AtP*. The steps are those of
    EAP-IG (Hanna et al. 2024, 2403.17806) for nodes; AtP* has none.
    """
    (found,) = attribution_patchings(
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
        steps=steps,
        qk_fix=qk_fix,
        grad_drop=grad_drop,
        seed=seed,
    )
    return found


def attribution_patchings(
    model: InterpretableModel,
    clean: Prompt | PromptPair | Sequence[PromptPair],
    corrupted: Prompt | None = None,
    *,
    sweeps: Sequence[tuple[str, By | None]] = EVERY_NODE,
    metric: str | MetricFunction | Metric | None = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    direction: Direction = "denoising",
    align: Align = "strict",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    steps: int = 1,
    qk_fix: bool = False,
    grad_drop: bool = False,
    seed: int = 0,
) -> tuple[PatchingResult, ...]:
    """Several `attribution_patching` results from one backward pass.

    Args:
        sweeps: (component, by) of each; by default every head and every MLP at every position. The rest as in
            `attribution_patching`.

    Returns:
        one result per sweep, in the order of `sweeps`.
    """
    if direction not in get_args(Direction):
        raise SweepError(
            f"direction {direction!r} is not known. Choose one of: {', '.join(get_args(Direction))}."
        )
    if not sweeps:
        raise SweepError("sweeps is empty. Name at least one, as in sweeps=[('z', 'layer_head')].")
    names = [component_name(component) for component, _ in sweeps]
    chosen = [axes_of(name, by) for name, (_, by) in zip(names, sweeps, strict=True)]
    model.architecture.require(*names)
    _refuse_steps(steps, grad_drop=grad_drop)
    if grad_drop:
        _refuse_dropping(model, names)
    pairs = as_pairs(clean, corrupted, answer=answer, foil=foil)
    prepared = prepare(model, pairs, metric, align=align)
    if "pattern" in names and prepared.alignment.kind != "strict":
        raise SweepError(
            "patterns have a source axis as long as the prompt, so they cannot be compared between prompts "
            "of different lengths. Use prompts of the same length, or component='z'."
        )
    if steps == 1:
        refuse_at_its_minimum(prepared.metric, "clean" if direction == "noising" else "corrupted")
    runs = runs_of(prepared, direction)
    swept = swept_positions(positions, runs)
    wanted = [
        Wanted(
            name,
            Grid(
                axes=along,
                layers=within(layers, model.n_layers, "layers"),
                positions=swept,
                heads=tuple(range(sweep.n_heads_of(model, name))) if "head" in along else (None,),
            ),
            exact_softmax=qk_fix and name in ("q", "k"),
        )
        for name, along in zip(names, chosen, strict=True)
    ]
    if any(each.exact_softmax for each in wanted):
        model.architecture.require("q", "k", "pattern")
    whole = prepared.alignment.kind == "strict"
    if steps > 1 and not whole:
        raise SweepError(
            f"steps={steps} goes from one run's embeddings to the other's, position by position, and these "
            "prompts are aligned by a map. Use steps=1, or prompts of the same length."
        )
    subject = Subject(model, prepared, runs, given_metric=metric, whole_input=whole)
    estimated, of_input, by_step = estimates(subject, wanted, grad_drop=grad_drop, steps=steps)
    one, zero = prepared.clean_metric, prepared.corrupted_metric
    if direction == "noising":
        one, zero = zero, one
    facts = prepared.measured_on(model) | {"direction": direction, "bootstrap_seed": seed, "steps": steps}
    gap = float(one.mean() - zero.mean())
    if whole:
        facts["estimate_of_patching_the_whole_input"] = float(of_input.mean() / gap)
    results = []
    for i, (each, changes) in enumerate(zip(wanted, estimated, strict=True)):
        base = zero.reshape(-1, *[1] * (changes.ndim - 1))
        found = effects(base + changes, one=one, zero=zero, seed=seed)
        fixes = ["the QK fix"] * each.exact_softmax + ["GradDrop"] * grad_drop
        fixes += [f"{steps} steps"] * (steps > 1)
        along = each.grid.axes
        results.append(
            PatchingResult(
                effects=found.effects,
                axes=along,
                component=each.name,
                by="_".join(along),
                direction=direction,
                metric=prepared.metric.name,
                clean_metric=float(prepared.clean_metric.mean()),
                corrupted_metric=float(prepared.corrupted_metric.mean()),
                labels={"pos": token_labels(model, prepared, direction, swept)} if "pos" in along else {},
                indices=each.grid.indices(),
                per_example=found.per_example if len(prepared.pairs) > 1 else None,
                ci_low=found.low,
                ci_high=found.high,
                method="attribution patching" + (f" with {' and '.join(fixes)}" if fixes else ""),
                cautions=(
                    *_cautions(each, facts, grad_drop=grad_drop),
                    *(_unsteady(each, by_step[i].mean(axis=0) / gap) if by_step else ()),
                ),
                measured_on=facts,
            )
        )
    return tuple(results)


def _refuse_steps(steps: int, *, grad_drop: bool) -> None:
    if steps < 1:
        raise SweepError(f"steps={steps}: the gradient is taken at one place at least. Give 1 or more.")
    if steps > 1 and grad_drop:
        raise SweepError(
            f"steps={steps} with grad_drop=True: the magnitudes without each layer are defined for the "
            "gradient in one run. Choose one of the two."
        )


def _unsteady(wanted: Wanted, by_step: Floats) -> Iterator[str]:
    """Where single steps [steps, *grid] say so different things that their mean is no more than a hint."""
    low, high, mean = by_step.min(axis=0), by_step.max(axis=0), by_step.mean(axis=0)
    spread = high - low
    unsteady = (spread > UNSTEADY) & (spread > np.abs(mean))
    order = np.argsort(-spread, axis=None)[: min(NAMED, int(unsteady.sum()))]
    named = []
    for flat in order:
        cell = np.unravel_index(int(flat), spread.shape)
        along = {
            axis: numbers[i] for (axis, numbers), i in zip(wanted.grid.indices().items(), cell, strict=True)
        }
        head = f".H{along['head']}" if "head" in along else ""
        pos = f" pos {along['pos']}" if "pos" in along else ""
        named.append(f"L{along['layer']}{head}{pos} ({low[cell]:.2f} to {high[cell]:.2f})")
    if named:
        more = int(unsteady.sum()) - len(named)
        where = ", ".join(named) + (f" and {more} more" if more else "")
        yield f"Single steps disagree at {where}, so no gradient says what patching does there. Patch these."


def _refuse_dropping(model: InterpretableModel, names: Iterable[str]) -> None:
    stream = sorted(set(names) & set(_STREAM))
    if stream:
        raise SweepError(
            f"grad_drop drops what each layer adds to the residual stream, and {stream[0]} is the stream "
            "itself. Use z, q, k, v, pattern, attn_out or mlp_out."
        )
    if model.n_layers < 2:
        raise SweepError(f"grad_drop compares layers, and {model.name} has one. Leave it out.")
    model.architecture.require("attn_out")


def _cautions(wanted: Wanted, facts: Mapping[str, Any], *, grad_drop: bool) -> Iterator[str]:
    share = facts.get("estimate_of_patching_the_whole_input")
    check = ""
    if share is not None:
        check = f" By the same gradient, patching the whole input has an effect of {share:.2f}; in truth, 1."
    yield f"Estimated to first order, nothing was patched: confirm what matters by patching.{check}"
    if grad_drop:
        yield (
            "GradDrop gives magnitudes; the sign is that of the plain estimate, which is least certain where "
            "effects cancel."
        )
    if wanted.name in _STREAM:
        yield (
            "On the residual stream a patch is a large change, so the estimate is poor by nature: on SmolLM2 "
            "and an IOI pair it shares at most 3 of its 10 strongest sites with patching. Patch it instead."
        )
    if wanted.name in ("q", "k") and not wanted.exact_softmax:
        yield (
            "Where attention is saturated (one key has nearly all of it), the gradient at queries and keys "
            "is near 0 whatever a patch would do. Use qk_fix=True."
        )
