"""`behavior_localization`: which heads and MLPs make a model say what it says.

Lives here: the steps and their order. Does not live here: patching and attribution themselves
(`mlxterp.causal`), the sentences (`narratives.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlxterp.causal.circuits.graph import graph_of
from mlxterp.causal.direct_logit_attribution import direct_logit_attribution
from mlxterp.causal.patching.activation_patching import activation_patchings
from mlxterp.causal.patching.path_patching import path_patching
from mlxterp.causal.patching.sites import By, Direction
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.encoding import Prompt, require_model
from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import CapabilityUnavailable, SweepError
from mlxterp.results import Step, WorkflowResult, mean_attribution
from mlxterp.results.views import listed
from mlxterp.workflows import narratives
from mlxterp.workflows.progress import ProgressOption, ProgressReporter
from mlxterp.workflows.question import (
    MetricLike,
    Question,
    ask,
    chosen_steps,
    metric_choice,
    require_top_k,
)

NAME = "behavior_localization"
SWEEPS: dict[str, tuple[str, By, str]] = {
    "patch_resid": ("resid_pre", "layer_pos", "Residual stream, by layer and position"),
    "patch_mlp": ("mlp_out", "layer", "MLP outputs, by layer"),
    "patch_attn": ("attn_out", "layer", "Attention outputs, by layer"),
    "patch_heads": ("z", "layer_head", "Heads"),
}
DIRECT = "direct_effects"
STEPS = ("dla", *SWEEPS, DIRECT)
DEFAULT = ("dla", "patch_mlp", "patch_attn", "patch_heads", DIRECT)
MOST_DIRECT = 8
"""Over how many pairs direct effects are measured at most: every component's output is kept for each."""
_NEEDS = {
    "dla": ("unembedding", "final_norm_formula", "attn_out", "head_outputs"),
    DIRECT: ("head_outputs",),
    **{step: (component,) for step, (component, _, _) in SWEEPS.items()},
}


def behavior_localization(
    model: InterpretableModel,
    clean: Prompt | PromptPair | Sequence[PromptPair],
    corrupted: Prompt | None = None,
    *,
    answer: str | int | None = None,
    foil: str | int | None = None,
    steps: Sequence[str] | None = None,
    metric: MetricLike = None,
    metric_kwargs: Mapping[str, Any] | None = None,
    direction: Direction = "denoising",
    top_k: int = 5,
    align: Align = "auto",
    seed: int = 0,
    verbose: bool = False,
    progress: ProgressOption = None,
) -> WorkflowResult:
    """Which components make the model behave on `clean` as it does, and not as on `corrupted`.

        dla             what the embedding, each head and each MLP write towards the answer in the clean run
        patch_mlp       the recovered share of the gap when each layer's MLP output is the clean run's
        patch_attn      the same for each layer's attention output
        patch_heads     the same for each head's z
        patch_resid     the same for the residual stream at each layer and position; not by default
        direct_effects  of the strongest heads and MLPs found by patching, the share of the gap that each
                        carries to the logits directly (path patching, past all other components)

    Args:
        clean, corrupted: two prompts; or one PromptPair, or a list of them, and no `corrupted`.
        answer, foil: one token each, as text or id. Without them `dla` looks at what the model says first on
            clean and on corrupted.
        steps: some of the names above; by default all but patch_resid, those that the model can do.
            `direct_effects` follows patch_mlp or patch_heads.
        metric: a name or a function of logits, see `mlxterp.metrics.resolve`; `logit_diff` with answer and
            foil, else "l2".
        metric_kwargs: further arguments of a function given as metric; of a named one, answer and foil.
        direction: "denoising" (what is sufficient) or "noising" (what is necessary).
        top_k: how many components the narrative names per step.
        align: positions of prompts of different lengths; "auto" maps the common prefix and suffix, and the
            result says so.
        seed: which half of the pairs chooses the components that the other half measures again.
        verbose: say on stderr how far it is. progress: called with StepProgress instead.

    Costs one run of each prompt, shared by all steps, one more of each clean prompt for `dla`, and a row per
    patched site, all of them in one batch: n_layers·(n_heads + 2) for the default steps; for `direct_effects`
    one run of both prompts of at most 8 pairs, and a row per component. `measured_on["ran"]` says how many.
    Each step's result is what the analysis alone returns.

    Returns:
        a WorkflowResult; `top_components` ranks heads and MLPs by recovered share. Their intervals hold for
        all sites of their sweep at once; the conclusion says which are established among all that were
        searched, and the steps what the strongest are on pairs that did not choose them.

    Raises:
        SweepError: an unknown step, listing them; direct_effects by name for prompts of different lengths, or
            without a sweep that it could follow. MetricError: an unknown metric, or arguments it lacks.
        NoGap: both runs give the same metric, so that there is nothing to localise.
        LengthMismatch: prompts that end differently, with align="auto"; or of different lengths, with
            "strict".
        CapabilityUnavailable: a step that was named and that this model cannot do.

    Source: the order is that of Wang et al. 2022 (2211.00593), section 3: direct effects, then patching.
    """
    require_model(model)
    require_top_k(top_k)
    chosen = chosen_steps(NAME, steps, STEPS, DEFAULT)
    chosen, left_out = _possible(model, chosen, named=steps is not None)
    reporter = ProgressReporter(NAME, progress, verbose=verbose)
    reporter.report(chosen[0], "running both prompts")
    choice = metric_choice(metric, metric_kwargs, answer, foil)
    question = ask(model, clean, corrupted, choice, align)
    if DIRECT in chosen and (why := _no_direct_effects(question, chosen)):
        if steps is not None:
            raise SweepError(f"{DIRECT} cannot be measured here: {why}. Leave the step out.")
        chosen = tuple(step for step in chosen if step != DIRECT)
        left_out = (*left_out, f"{DIRECT} was left out: {why}.")
    reporter.ran["prompts"] = 2 * len(question.pairs)
    done: list[Step] = []
    if "dla" in chosen:
        done.append(_attribution(question, reporter, top_k))
    sweeps = [step for step in chosen if step in SWEEPS]
    if sweeps:
        results = activation_patchings(
            model,
            question.prepared,
            sweeps=[SWEEPS[step][:2] for step in sweeps],
            direction=direction,
            seed=seed,
            progress=reporter.counter(" + ".join(sweeps), "patched rows"),
        )
        done += [
            narratives.patching(step, result, SWEEPS[step][2], top_k)
            for step, result in zip(sweeps, results, strict=True)
        ]
    if DIRECT in chosen:
        done += _direct_effects(question, reporter, done, top_k)
    found = WorkflowResult(
        name=NAME,
        question=narratives.question(question, "Which components make the model do it?"),
        steps=tuple(done),
        cautions=(*left_out, *narratives.cautions(question)),
        components_from=_ranked(chosen),
        measured_on=question.measured_on(
            direction=direction, steps=list(chosen), top_k=top_k, ran=reporter.ran
        ),
    )
    return replace(found, conclusion=_conclusion(found, question, top_k))


def _possible(
    model: InterpretableModel, steps: tuple[str, ...], *, named: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The steps that this model can do, and a caution for each of the others; a named one raises instead."""
    can: list[str] = []
    cautions: list[str] = []
    for step in steps:
        if named:
            model.architecture.require(*_NEEDS[step])
        missing = [name for name in _NEEDS[step] if not model.capabilities[name].available]
        if missing:
            cautions.append(f"{step} was left out: {model.capabilities[missing[0]].reason}")
        else:
            can.append(step)
    if not can:
        raise CapabilityUnavailable(
            f"{model.name} can do none of {', '.join(steps)}: {' '.join(cautions)} Nothing can be localised."
        )
    return tuple(can), tuple(cautions)


def _no_direct_effects(question: Question, steps: Sequence[str]) -> str:
    """Why direct effects cannot be measured after these steps; empty if they can."""
    try:
        graph_of(question.model)
    except CapabilityUnavailable as problem:
        return str(problem).rstrip(".")
    if question.prepared.alignment.stated is not None:
        return "paths carry a position's value to the same one, and these prompts have different lengths"
    if not {"patch_mlp", "patch_heads"} & set(steps):
        return "it follows patch_mlp or patch_heads, whose strongest components it looks at"
    return ""


def _direct_effects(
    question: Question, reporter: ProgressReporter, done: Sequence[Step], top_k: int
) -> list[Step]:
    """What the strongest heads and MLPs carry to the logits directly; nothing where none has an effect."""
    pairs = question.pairs[:MOST_DIRECT]
    of = [each.result for each in done if each.name in ("patch_mlp", "patch_heads")]
    found = sorted(
        (c for result in of for c in result.components() if c.effect), key=lambda c: -abs(c.effect)
    )
    strong = narratives.notable(found[:top_k])
    result = path_patching(
        question.model,
        question.prepared if len(pairs) == len(question.pairs) else list(pairs),
        receivers="logits",
        senders=[narratives.node_of(each.label) for each in strong],
        freeze_mlps=True,
        metric=question.metric,
        progress=reporter.counter(DIRECT, "senders"),
    )
    text = narratives.direct_effects(result, strong, len(pairs), len(question.pairs))
    return [Step(DIRECT, result, text)]


def _attribution(question: Question, reporter: ProgressReporter, top_k: int) -> Step:
    pairs, each = question.with_choices(), []
    count = reporter.counter("dla", "prompts")
    for pair in pairs:
        each.append(direct_logit_attribution(question.model, pair.clean, answer=pair.answer, foil=pair.foil))
        count(len(each), len(pairs))
    result = mean_attribution(each)
    cautions: tuple[str, ...] = ()
    if question.pairs[0].answer is None and pairs[0].foil is not None:
        cautions = (
            "No answer was given: these are the model's own first choices on clean and on corrupted.",
        )
    elif question.pairs[0].answer is None:
        cautions = (
            "No answer was given, and the model says the same first on clean and on corrupted, so this is "
            "about a token that does not tell them apart. Give answer= and foil=.",
        )
    return Step("dla", result, narratives.attribution(result, top_k, len(each)), cautions)


def _ranked(steps: Sequence[str]) -> tuple[str, ...]:
    """The finest steps whose effects are in one unit: heads rather than their layer's attention."""
    attention = "patch_heads" if "patch_heads" in steps else "patch_attn"
    fine = tuple(step for step in ("patch_mlp", attention) if step in steps)
    return fine or steps[-1:]  # type: ignore[return-value]


def _conclusion(found: WorkflowResult, question: Question, top_k: int) -> str:
    strong = narratives.notable(found.top_components(top_k))
    if not strong:
        return "No component has an effect that is a finite number."
    unit = "logits" if found.components_from == ("dla",) else "of the gap"
    parts = [f"The strongest components are {listed(strong)} ({unit})."]
    sweeps = [found.get_step(name) for name in found.components_from if name in SWEEPS]
    if sweeps:
        parts.append(narratives.established_among(sweeps, question))
    if DIRECT in found.step_names:
        said = list(narratives.roles(strong, found.get_step(DIRECT)))
        parts += [f"{'; '.join(said)}."] if said else []
    return " ".join(parts)
