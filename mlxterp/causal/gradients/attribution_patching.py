"""Attribution patching: what patching each site would do, estimated for all sites by one backward pass.

With the two fixes of AtP*, steps along the path between both inputs, verification of the strongest sites, and
cautions that say what limits the estimates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlxterp.causal.finite import require_finite
from mlxterp.causal.gradients.backward import refuse_at_its_minimum
from mlxterp.causal.gradients.estimates import ComponentRequest, Estimates, Subject, estimates
from mlxterp.causal.gradients.verification import Places, Verified, refuse_count, verify_strongest
from mlxterp.causal.patching.sites import (
    By,
    Direction,
    Sweeps,
    check_sweeps,
    patching_result,
    plan_sweeps,
    runs_of,
)
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.encoding import Prompt
from mlxterp.causal.prompts.pair import MetricLike, Pairs, as_pairs, prepare
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError
from mlxterp.measurements import recorder
from mlxterp.metrics import Floats
from mlxterp.results import PatchingResult
from mlxterp.results.views import number
from mlxterp.statistics.effects import effects

UNSTEADY, NAMED = 0.1, 6
"""A site is named if the range of its single steps' effects is above this and above their mean; at most so
many are named."""

MISSED = 0.1
"""The estimates miss sites if one drawn at random has an effect above this and above the median of the
strongest."""

STEPS, VERIFIED = 5, 30
"""By default: how many gradients are taken, and how many sites are patched where they are not trusted."""

TRUSTED = (0.9, 1.1)
"""The estimate for patching the whole input, 1 in truth, with which estimates of single sites are trusted."""

STREAM = ("resid_pre", "resid_mid", "resid_post")
"""Components that are the residual stream itself."""


def cautions(
    wanted: ComponentRequest, facts: Mapping[str, Any], *, grad_drop: bool, checked: Verified | None
) -> Iterator[str]:
    """What limits these estimates; where all were verified, only how far off they had been."""
    share = facts.get("estimate_of_patching_the_whole_input")
    check = ""
    if share is not None:
        check = f" By the same gradient, patching the whole input has an effect of {share:.2f}; in truth, 1."
    if checked is None:
        yield f"Estimated to first order, nothing was patched: confirm what matters by patching.{check}"
    else:
        yield from _of_verifying(checked, check)
        if not checked.n_left:
            return
    if grad_drop:
        yield (
            "GradDrop gives magnitudes; the sign is that of the plain estimate, which is least certain where "
            "effects cancel."
        )
    if wanted.name in STREAM:
        yield (
            "On the residual stream a patch is a large change, so the estimate is poor by nature: on SmolLM2 "
            "and an IOI pair it shares at most 3 of its 10 strongest sites with patching. Patch it instead."
        )
    if wanted.name in ("q", "k") and not wanted.exact_softmax:
        yield (
            "Where attention is saturated (one key has nearly all of it), the gradient at queries and keys "
            "is near 0 whatever a patch would do. Use qk_fix=True."
        )


def unsteady(wanted: ComponentRequest, by_step: Floats, *, checked: Verified | None) -> Iterator[str]:
    """Where single steps [steps, *grid] differ so much that their mean is no more than a hint.

    Sites that were patched are not named: there the mean is not what counts.
    """
    low, high, mean = by_step.min(axis=0), by_step.max(axis=0), by_step.mean(axis=0)
    spread = high - low
    found = (spread > UNSTEADY) & (spread > np.abs(mean))
    if checked is not None:
        found &= ~checked.measured
    order = np.argsort(-np.where(found, spread, 0.0), axis=None, kind="stable")[
        : min(NAMED, int(found.sum()))
    ]
    named = [f"{wanted.grid.name_of(int(i))} ({low.ravel()[i]:.2f} to {high.ravel()[i]:.2f})" for i in order]
    if named:
        more = int(found.sum()) - len(named)
        where = ", ".join(named) + (f" and {more} more" if more else "")
        yield f"Single steps disagree at {where}, so no gradient says what patching does there. Patch these."


def _of_verifying(checked: Verified, check: str) -> Iterator[str]:
    n, k, left = len(checked.strongest), len(checked.sampled), checked.n_left
    if left:
        yield (
            f"The {n:,} sites with the strongest estimates were patched, and {k:,} drawn at random from the "
            f"other {k + left:,}. The {left:,} left are estimated to first order.{check}"
        )
    else:
        yield "Every site that a patch can change was patched: effects are measured, not estimated."
    if n:
        where = checked.strongest if left else np.concatenate([checked.strongest, checked.sampled])
        median = float(np.median(checked.differences.ravel()[where]))
        yield (
            f"{'Of the strongest, the' if left else 'The'} estimates were off by {_short(median)} in the "
            f"median and by {_worst(checked, where)}."
        )
    if k and left:
        largest = float(np.abs(checked.effects.ravel()[checked.sampled]).max())
        usual = float(np.median(np.abs(checked.effects.ravel()[checked.strongest])))
        text = (
            f"Of the random ones, the estimates were off by {_worst(checked, checked.sampled)}, and the "
            f"largest effect is {_short(largest)}: with 95 % confidence at most {checked.at_most_above:,} "
            f"of the {left:,} left have a larger one."
        )
        if largest > max(MISSED, usual):
            text += " Drawn at random, one this large says that the estimates miss sites: raise verify."
        yield text


def _worst(checked: Verified, where: Places) -> str:
    """`0.41 at most (L9.H6: estimated 0.55, patched 0.14)`."""
    worst = int(where[np.argmax(checked.differences.ravel()[where])])
    estimate, effect = checked.estimates.ravel()[worst], checked.effects.ravel()[worst]
    site = checked.grid.name_of(worst)
    found = f"estimated {_short(estimate)}, patched {_short(effect)}"
    return f"{_short(abs(effect - estimate))} at most ({site}: {found})"


def _short(value: float) -> str:
    """An effect to three decimals: less is rounding."""
    return number(round(value, 3) + 0.0)


EVERY_NODE: tuple[tuple[str, By | None], ...] = (("z", "layer_pos_head"), ("mlp_out", "layer_pos"))
"""Every head and every MLP at every position."""


def attribution_patching(
    model: InterpretableModel,
    clean: Prompt | Pairs,
    corrupted: Prompt | None = None,
    *,
    component: str = "z",
    by: By | None = None,
    metric: MetricLike = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    direction: Direction = "denoising",
    align: Align = "strict",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    steps: int | None = None,
    qk_fix: bool = False,
    grad_drop: bool = False,
    verify: int | None = None,
    seed: int = 0,
) -> PatchingResult:
    """The effect of patching each site of `component`, estimated by gradients instead of a forward per site.

        AtP(a) = ⟨a_source − a_base, ∂m/∂a⟩, the mean of gradients on the way from the other run's input to
        that of the run which would be patched

    Effects are shares of the gap, with the signs of `activation_patching`, whose arguments these are. They
    are exact where the metric is linear in what is patched. They are poor where a patch is a large change: on
    the residual stream, and through saturated softmaxes; the result says so, and holds the estimate for
    patching the whole input, which is exactly 1 in truth. By default there are five steps, and the strongest
    sites are patched where that check fails: the result says which sites and what the check gave. One step
    with both options `qk_fix` and `grad_drop` is AtP*.

    Args:
        steps: take the gradient's mean over this many runs on the way from the other run's input to this
            one's, embeddings e_source + (k/steps) (e_base − e_source), k = 1 … steps. By default 5, and 1
            where there is no such way: with `grad_drop`, and for prompts aligned by a map. With 5, heads are
            seen that act through a later head's attention, which is saturated in both runs; and where single
            steps disagree, no gradient is to be trusted, and the result names the sites. One step is plain
            attribution patching. Costs a forward and a backward per step, batched.
        qk_fix: for q and k, recompute the softmax exactly and go on by the gradient at the pattern. Other
            components have no softmax of their own to recompute, and are not changed by it.
        grad_drop: the mean magnitude Σ_ℓ |estimate without layer ℓ| / (n_layers − 1): with the gradient
            through each layer's attention and MLP outputs dropped in turn, a direct and an indirect effect
            that cancel are both seen. The sign is the plain estimate's. Costs n_layers backward passes,
            batched.
        verify: patch this many of the sites with the strongest estimates, and half as many of the others,
            drawn at random; what is measured replaces what was estimated (`measured` says where). The
            cautions say how far off the estimates were, and how many of the sites left may have a larger
            effect than the random ones (95 % confidence). Costs a patched run for each of them, per pair. By
            default 30 where the estimate for the whole input is outside 0.9 to 1.1 or is not known, else 0.
        seed: of that draw.

    Over heads (z) of SmolLM2-135M, three single IOI pairs and two sets of 8, both directions, against
    patching all 270: Pearson correlation, and how many of the ten strongest heads are the same.

        verify              0                       20                      30
        one step            0.71 to 0.98, 8 to 10   0.98 to 1.00, 9 to 10   1.00, 10
        5 steps             0.92 to 0.98, 7 to 10   0.98 to 1.00, 9 to 10   0.99 to 1.00, 10

    What one step misses are heads that decide where later heads look: their estimates are too small, though
    among the 30 strongest. GradDrop does not find them.

    Over the same pairs, resid_pre, attn_out and mlp_out by layer and position and z by layer and head, on
    SmolLM2-135M and Gemma 3 270M: one step falls to −0.85 where five give 0.83 to 0.98, and how far the
    estimate for the whole input is from 1 predicts the error (Spearman −0.83).

    Costs the pair's two baselines, one forward of both runs, and a forward and a backward for each step:
    about 20 forwards with five, whatever the number of sites; and what is verified.

    Raises:
        MetricError: a metric without a gradient, or a distance from the very run that is differentiated.
        NotFinite: a gradient that is NaN or infinite at some sites; names them.
        SweepError: `grad_drop` for the residual stream, which is no layer's output; or with several steps.
        and what `activation_patching` raises.

    Source: Nanda 2022, "Attribution Patching"; Kramár et al. 2024 (2403.00745), AtP*, also for verifying the
    strongest. They bound what was missed by patching random subsets of sites at once; here single sites are
    drawn, and the bound is on ranks. The steps are those of EAP-IG (Hanna et al. 2024, 2403.17806) for nodes.
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
        verify=verify,
        seed=seed,
    )
    return found


def attribution_patchings(
    model: InterpretableModel,
    clean: Prompt | Pairs,
    corrupted: Prompt | None = None,
    *,
    sweeps: Sweeps = EVERY_NODE,
    metric: MetricLike = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    direction: Direction = "denoising",
    align: Align = "strict",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    steps: int | None = None,
    qk_fix: bool = False,
    grad_drop: bool = False,
    verify: int | None = None,
    seed: int = 0,
) -> tuple[PatchingResult, ...]:
    """Several `attribution_patching` results from one backward pass.

    Args:
        sweeps: (component, by) of each; by default every head and every MLP at every position. The rest as in
            `attribution_patching`; `verify` is of each sweep.

    Returns:
        one result per sweep, in the order of `sweeps`.
    """
    named = check_sweeps(model, sweeps, direction)
    if steps is not None:
        _refuse_steps(steps, grad_drop=grad_drop)
    if verify is not None:
        refuse_count(verify)
    if grad_drop:
        _refuse_dropping(model, [name for name, _ in named])
    prepared = prepare(model, as_pairs(clean, corrupted, answer=answer, foil=foil), metric, align=align)
    runs = runs_of(prepared, direction)
    if steps is None:
        steps = 1 if grad_drop or runs.mapped else STEPS
    if steps == 1:
        refuse_at_its_minimum(prepared.metric, "clean" if direction == "noising" else "corrupted")
    planned = plan_sweeps(model, runs, named, layers, positions)
    wanted = [
        ComponentRequest(each.component, each.grid, qk_fix and each.component in ("q", "k"))
        for each in planned
    ]
    if any(each.exact_softmax for each in wanted):
        model.architecture.require("q", "k", "pattern")
    if steps > 1 and runs.mapped:
        raise SweepError(
            f"steps={steps} goes from one run's embeddings to the other's, position by position, and these "
            "prompts are aligned by a map. Use steps=1, or prompts of the same length."
        )
    subject = Subject(model, prepared, runs, whole_input=not runs.mapped)
    estimated: Estimates = estimates(subject, wanted, grad_drop=grad_drop, steps=steps)
    for each, found_changes in zip(planned, estimated.of_sites, strict=True):
        require_finite(
            found_changes.reshape(len(found_changes), -1),
            each.grid.name_of,
            f"estimates for {each.component} by gradients",
            "A part of this model has no finite gradient there. Patch these sites instead "
            "(activation_patching), or estimate only the layers behind it with layers=.",
        )
    facts = prepared.measured_on(model) | {"direction": direction, "seed": seed, "steps": steps}
    gap = float(runs.source_metric.mean() - runs.base_metric.mean())
    if subject.whole_input and np.isfinite(estimated.of_input).all():
        facts["estimate_of_patching_the_whole_input"] = float(estimated.of_input.mean() / gap)
    chosen = verify is None
    if verify is None:
        share = facts.get("estimate_of_patching_the_whole_input")
        low, high = TRUSTED
        verify = 0 if share is not None and low <= share <= high else VERIFIED
    values = [
        runs.base_metric.reshape(-1, *[1] * (changes.ndim - 1)) + changes for changes in estimated.of_sites
    ]
    checks: Sequence[Verified | None] = [None] * len(wanted)
    if verify:
        swept = list(zip(planned, values, strict=True))
        checks = verify_strongest(model, prepared, runs, swept, verify=verify, seed=seed)
    results = []
    for i, (each, request, checked) in enumerate(zip(planned, wanted, checks, strict=True)):
        final = values[i] if checked is None else checked.values
        found = effects(
            final,
            one=runs.source_metric,
            zero=runs.base_metric,
            clusters=prepared.clusters,
            search=True,
            seed=seed,
        )
        limits = [*cautions(request, facts, grad_drop=grad_drop, checked=checked)]
        if chosen and checked is not None:
            limits.insert(0, _why_verified(facts))
        if subject.whole_input and not np.isfinite(estimated.of_input).all():
            limits.append(
                "The gradient at the input is NaN or infinite, so the estimate for patching the whole input, "
                "which would be 1 in truth, is not known."
            )
        if estimated.by_step:
            limits += unsteady(request, estimated.by_step[i].mean(axis=0) / gap, checked=checked)
        options = ["the QK fix"] * request.exact_softmax + ["GradDrop"] * grad_drop
        options += [f"{steps} steps"] * (steps > 1)
        if checked is not None:
            options.append(f"{len(checked.strongest)} sites verified")
        recorder.add_method("attribution_patching", pairs=len(prepared.pairs))
        results.append(
            patching_result(
                model,
                prepared,
                runs,
                each,
                found,
                method="attribution patching" + (f" with {' and '.join(options)}" if options else ""),
                cautions=(*limits, *found.cautions),
                measured=None if checked is None else checked.measured,
                measured_on=facts if checked is None else facts | {"verified": checked.facts()},
            )
        )
    return tuple(results)


def _why_verified(facts: Mapping[str, Any]) -> str:
    share = facts.get("estimate_of_patching_the_whole_input")
    given = "is not known here" if share is None else f"is {share:.2f}, outside {TRUSTED[0]} to {TRUSTED[1]}"
    return (
        f"The estimate for patching the whole input, 1 in truth, {given}: so the strongest sites were "
        "patched. verify= chooses how many."
    )


def _refuse_steps(steps: int, *, grad_drop: bool) -> None:
    if steps < 1:
        raise SweepError(f"steps={steps}: the gradient is taken at one place at least. Give 1 or more.")
    if steps > 1 and grad_drop:
        raise SweepError(
            f"steps={steps} with grad_drop=True: the magnitudes without each layer are defined for the "
            "gradient in one run. Choose one of the two."
        )


def _refuse_dropping(model: InterpretableModel, names: Iterable[str]) -> None:
    stream = sorted(set(names) & set(STREAM))
    if stream:
        raise SweepError(
            f"grad_drop drops what each layer adds to the residual stream, and {stream[0]} is the stream "
            "itself. Use z, q, k, v, pattern, attn_out or mlp_out."
        )
    if model.n_layers < 2:
        raise SweepError(f"grad_drop compares layers, and {model.name} has one. Leave it out.")
    model.architecture.require("attn_out")
