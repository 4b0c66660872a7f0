"""Causal tracing: noise on the subject's embeddings, one clean state restored at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp import metrics
from mlxterp.causal.batching import packed, sweep
from mlxterp.causal.finite import require_finite, require_finite_runs
from mlxterp.causal.patching.sites import within
from mlxterp.causal.prompts.cautions import of_component, of_form
from mlxterp.causal.prompts.encoding import (
    Ids,
    Prompt,
    facts_of,
    frozen,
    position_index,
    require_model,
    shortened,
    str_tokens,
    token_id,
    token_rows,
)
from mlxterp.causal.prompts.pair import MetricLike
from mlxterp.component_names import component_name
from mlxterp.core import interventions
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import NoGap, PromptPairError, SweepError, TokenError
from mlxterp.measurements import recorder
from mlxterp.metrics import Floats, Metric
from mlxterp.progress import Progress, ProgressOption, reporting
from mlxterp.results import CausalTracingResult
from mlxterp.statistics.ratio import mean_of

EMBED = HookPoint("embed")


@dataclass(frozen=True, eq=False)
class Subject:
    """One prompt as tokens, where its subject is, and its clean metric."""

    tokens: Ids  # [1, length]
    positions: tuple[int, ...]
    targets: metrics.Targets
    clean: float
    embed: mx.array  # [1, length, d_model], float32
    cautions: tuple[str, ...] = ()


def subject_positions(
    model: InterpretableModel, tokens: Ids, subject: str | tuple[int, ...]
) -> tuple[int, ...]:
    """The tokens that hold any of the subject's characters."""
    if not isinstance(subject, str):
        found = tuple(sorted({position_index(p, tokens.shape[1]) for p in subject}))
        if not found:
            raise TokenError("subject=() names no position. Give the positions of the subject's tokens.")
        return found
    shown = str_tokens(model, tokens[0])
    text = "".join(shown)
    if not subject or text.count(subject) != 1:
        raise PromptPairError(
            f"subject={subject!r} stands {text.count(subject) if subject else 0} times in {text!r}. Give a "
            "part that stands there once, or the positions of its tokens."
        )
    first = text.index(subject)
    ends = np.cumsum([len(token) for token in shown])
    starts = ends - [len(token) for token in shown]
    inside = (ends > first) & (starts < first + len(subject))
    return tuple(int(p) for p in np.flatnonzero(inside))


@dataclass(frozen=True)
class _Restoration:
    """What is restored, in which runs: `window` layers of a component around each of `layers`, in runs with
    noise of standard deviation `std`."""

    component: str
    window: int
    layers: Sequence[int]
    std: float
    samples: int

    def restored_layers(self, middle: int, n_layers: int) -> range:
        """As many layers as the window has, fewer at the ends."""
        first, until = middle - self.window // 2, middle - (-self.window // 2)
        return range(max(0, first), min(n_layers, until))


def _trace(
    model: InterpretableModel,
    subject: Subject,
    metric: Metric,
    what: _Restoration,
    key: mx.array,
    progress: Progress | None,
) -> tuple[Floats, Floats]:
    """The metric with noise [samples], and with each state restored [samples, n_layers, length]."""
    length, where, samples = subject.tokens.shape[1], list(subject.positions), what.samples
    clean = subject.embed[:, mx.array(where)]
    noisy = clean + what.std * mx.random.normal((samples, *clean.shape[1:]), key=key)
    mx.eval(noisy)
    noise = [(interventions.replace(EMBED, noisy[s : s + 1], positions=where),) for s in range(samples)]
    points = [HookPoint(what.component, layer) for layer in model.architecture.layers_with(what.component)]
    states = {
        p: np.array(x.astype(mx.float32)) for p, x in sweep.capture(model, subject.tokens, points).items()
    }

    def read(logits: np.ndarray[Any, Any], _: Ids) -> Floats:
        return metric(logits, subject.targets.take(np.zeros(len(logits), dtype=np.int64)))

    @cache  # rows with equal edits share them, so that each is made once
    def restore(point: HookPoint, position: int) -> interventions.Intervention:
        value = states[point][:, position : position + 1]
        return interventions.replace(point, value, positions=[position])

    base = sweep.run_rows(model, subject.tokens, [sweep.Row(0, edits) for edits in noise], read)
    cells = [(i, p) for i in range(len(what.layers)) for p in range(where[0], length)]
    rows = []
    for i, p in cells:
        layers = what.restored_layers(what.layers[i], model.n_layers)
        edits = tuple(restore(point, p) for point in points if point.layer in layers)
        rows += [sweep.Row(s, edits) for s in range(samples)]
    # The noisy runs are the prompts that rows branch off from.
    tokens = np.repeat(subject.tokens, samples, axis=0)
    found = sweep.run_rows(model, tokens, rows, read, base_edits=noise, progress=progress)
    values = np.repeat(base[:, None], len(what.layers) * length, axis=1).reshape(samples, -1, length)
    for (i, p), of_samples in zip(cells, found.reshape(len(cells), samples), strict=True):
        values[:, i, p] = of_samples
    require_finite(
        values.reshape(samples, -1),
        lambda flat: f"L{what.layers[flat // length]}.{what.component} pos {flat % length}",
        f"{metric.name} with noise and a state restored",
        "Give less noise, or load the model with dtype=mx.float32.",
    )
    return base, values


ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token after",
    "further tokens",
    "last token",
)
"""The columns that prompts are averaged over (Meng et al. 2022, figure 2)."""


@dataclass(frozen=True)
class TracedPrompt:
    """A statement without its last word.

    Attributes:
        text: the prompt.
        subject: the part of it that gets the noise, as text or as positions.
        answer: one token, as text or id; by default the model's own first choice.
        foil: a second token, for metrics that compare two.
    """

    text: Prompt
    subject: str | tuple[int, ...]
    answer: str | int | None = None
    foil: str | int | None = None


def causal_tracing(
    model: InterpretableModel,
    prompts: Prompt | TracedPrompt | Sequence[TracedPrompt],
    subject: str | Sequence[int] | None = None,
    *,
    answer: str | int | None = None,
    foil: str | int | None = None,
    component: str = "resid_post",
    window: int | None = None,
    noise: float = 3.0,
    samples: int = 10,
    metric: MetricLike = "prob",
    layers: Sequence[int] | None = None,
    seed: int = 0,
    progress: ProgressOption = None,
) -> CausalTracingResult:
    """How much of a fact comes back when one clean state is restored in a run whose subject is noise.

    The embeddings of the subject's tokens get normal noise ε; then `component` at one position, of `window`
    layers around one layer, is set to what it was in the clean run. The indirect effect of that state is

        IE = E_ε [ m(noisy, state restored) − m(noisy) ]

    A position before the subject has an effect of exactly 0 and is not run. Costs n_layers × n_positions ×
    samples rows of the sweep engine: on SmolLM2-135M 30 to 45 CPU seconds for ten tokens and ten draws.

    Args:
        prompts: a text with its `subject` (a part of the text, or positions); a TracedPrompt; or several of
            them, whose positions are then averaged by role (`ROLES`), each prompt with the same weight.
        answer, foil: for a text; see TracedPrompt.
        component: resid_pre, resid_mid, resid_post, attn_out, mlp_out or z.
        window: how many layers are restored at once. By default 1 for the residual stream, and for parts of a
            layer 10/48 of the layers, the paper's 10 of GPT-2 XL's 48.
        noise: standard deviation of ε in standard deviations of the subjects' embeddings, over all entries.
        samples: draws of ε per prompt.
        metric: "prob" as in the paper, or any other of `mlxterp.metrics` that needs no corrupted prompt.
        layers: restore at these only.
        seed: of the noise, `seed + i` for prompt i.
        progress: called with (rows done, rows in all); by default a bar after two seconds, False for none.

    Returns:
        effects [n_layers, n_positions], or [n_layers, n_roles], in units of the metric.

    Raises:
        PromptPairError: the subject is not in the text, or more than once.
        NoGap: the noise does not change the metric.
        SweepError: an unknown component, or a window of no layers.

    Source: Meng et al. 2022 (2202.05262), "Locating and Editing Factual Associations in GPT", section 2. Here
    the noise is scaled by the embeddings of the prompts at hand, not of their 1,000 facts.
    """
    require_model(model)
    point_name, span = _component_and_window(model, component, window)
    if samples < 1 or noise <= 0:
        raise SweepError(
            f"samples={samples}, noise={noise:g}: give at least one draw, and noise of 0 or more."
        )
    listed = _list_prompts(prompts, subject, answer, foil)
    chosen = metrics.resolve(
        metric,
        answer=True,
        foil=all(each.foil is not None for each in listed),
    )
    if "clean_logits" in chosen.needs:
        raise SweepError(
            f"metric={chosen.name!r} is a distance from the clean run, and an effect here is a gain of what "
            "the noise took. Use 'prob', 'log_prob', 'logit' or 'logit_diff'."
        )
    read = [_read_subject(model, each, chosen) for each in listed]
    having = model.architecture.layers_with(point_name)
    swept = having if layers is None else within(layers, model.n_layers, "layers")
    for layer in swept:
        model.architecture.require_in_layer(point_name, layer)
    std = noise * float(np.std(np.concatenate([np.array(s.embed)[0, list(s.positions)] for s in read])))
    what = _Restoration(point_name, span, swept, std, samples)
    measured: list[tuple[Floats, Floats]] = []
    with reporting(progress, "causal tracing") as shown:
        for i, each in enumerate(read):
            of_prompt = _progress_of(shown, i, len(read))
            measured.append(_trace(model, each, chosen, what, mx.random.key(seed + i), of_prompt))
    recorder.add_method("causal_tracing", pairs=len(listed))
    limits = [text for s in read for text in s.cautions]
    limits += [*of_component(model, point_name, swept), *of_component(model, "embed", ())]
    facts = (
        facts_of(model)
        | ({"cautions": list(dict.fromkeys(limits))} if limits else {})
        | {
            "prompts": [_describe(model, each, s) for each, s in zip(listed, read, strict=True)],
            "metric": chosen.name,
            "metric_direction": chosen.direction,
            "noise": noise,
            "seed": seed,
        }
    )
    common: dict[str, Any] = {
        "layers": swept,
        "component": point_name,
        "window": span,
        "metric": chosen.name,
        "clean_metric": float(np.mean([s.clean for s in read])),
        "corrupted_metric": float(np.mean([base.mean() for base, _ in measured])),
        "noise_std": std,
        "n_samples": samples,
        "measured_on": facts,
    }
    gap = common["clean_metric"] - common["corrupted_metric"]
    if abs(gap) <= chosen.tolerance:
        raise NoGap(
            f"{chosen.name} is {common['clean_metric']:.6g} on the clean prompts and "
            f"{common['corrupted_metric']:.6g} with noise of standard deviation {std:.3g} on the subject: "
            "there is nothing to restore. Give more noise, or prompts whose answer depends on the subject."
        )
    if len(read) == 1:
        return _result_of_one(model, read[0], measured[0], common)
    return _result_of_several(read, measured, common)


def _component_and_window(model: InterpretableModel, component: str, window: int | None) -> tuple[str, int]:
    name = component_name(component)
    if name not in packed.POINTS:
        raise SweepError(
            f"component={component!r} is not a state of one position. Restore one of: "
            f"{', '.join(packed.POINTS)}."
        )
    model.architecture.require_in_some_layer(name)
    default = 1 if name.startswith("resid") else max(1, round(model.n_layers * 10 / 48))
    span = default if window is None else window
    if not 1 <= span <= model.n_layers:
        raise SweepError(
            f"window={span}: the model has {model.n_layers} layers. Choose 1 to {model.n_layers}."
        )
    return name, span


def _list_prompts(
    prompts: Prompt | TracedPrompt | Sequence[TracedPrompt],
    subject: str | Sequence[int] | None,
    answer: str | int | None,
    foil: str | int | None,
) -> tuple[TracedPrompt, ...]:
    if not isinstance(prompts, TracedPrompt) and (
        isinstance(prompts, str) or not hasattr(prompts, "__len__")
    ):
        prompts = frozen(prompts)
    several = not isinstance(prompts, str | TracedPrompt) and len(prompts) > 0
    given: tuple[Any, ...] = tuple(prompts) if several else (prompts,)  # type: ignore[arg-type]
    if all(isinstance(each, TracedPrompt) for each in given):
        if subject is not None or answer is not None or foil is not None:
            raise PromptPairError("a TracedPrompt holds its own subject, answer and foil. Leave these out.")
        return given
    if subject is None or any(isinstance(each, TracedPrompt) for each in given):
        raise PromptPairError(
            f"{shortened(prompts)} comes without a subject. Pass subject= (a part of the text, or its "
            "positions), a TracedPrompt, or a list of nothing but TracedPrompt."
        )
    where = subject if isinstance(subject, str) else tuple(int(p) for p in subject)
    return (TracedPrompt(frozen(prompts), where, answer, foil),)


def _read_subject(model: InterpretableModel, traced: TracedPrompt, metric: Metric) -> Subject:
    tokens = token_rows(model, [traced.text], "traced")
    positions = subject_positions(model, tokens, traced.subject)
    logits = sweep.answer_logits(model, tokens)
    require_finite_runs(model, logits, tokens, "traced")
    right = int(logits[0].argmax()) if traced.answer is None else token_id(model, traced.answer)
    foils = None if traced.foil is None else np.array([token_id(model, traced.foil)])
    targets = metrics.Targets(np.array([right]), foils)
    embed = sweep.capture(model, tokens, [EMBED])[EMBED].astype(mx.float32)
    limits = tuple(of_form(model, logits[0], traced.answer, "answer"))
    return Subject(tokens, positions, targets, float(metric(logits, targets)[0]), embed, limits)


def _progress_of(progress: Progress | None, i: int, n: int) -> Progress | None:
    """Progress of one prompt as progress of all."""
    return None if progress is None else lambda done, rows: progress(i * rows + done, n * rows)


def _describe(model: InterpretableModel, traced: TracedPrompt, subject: Subject) -> dict[str, Any]:
    assert subject.targets.answers is not None
    shown = str_tokens(model, subject.tokens[0])
    optional = {"foil": traced.foil} if traced.foil is not None else {}
    return {
        "text": "".join(shown),
        "subject": "".join(shown[p] for p in subject.positions),
        "answer": str_tokens(model, subject.targets.answers)[0],
    } | optional


def _result_of_one(
    model: InterpretableModel,
    subject: Subject,
    measured: tuple[Floats, Floats],
    common: Mapping[str, Any],
) -> CausalTracingResult:
    base, values = measured
    gains = values - base[:, None, None]
    low, high = _intervals(gains)
    return CausalTracingResult(
        effects=gains.mean(axis=0),
        columns=tuple(str_tokens(model, subject.tokens[0])),
        positions=tuple(range(subject.tokens.shape[1])),
        subject=subject.positions,
        ci_low=low,
        ci_high=high,
        **common,
    )


def _result_of_several(
    subjects: Sequence[Subject],
    measured: Sequence[tuple[Floats, Floats]],
    common: Mapping[str, Any],
) -> CausalTracingResult:
    """Means over prompts by role; a prompt without a role (no middle token) does not count for it."""
    per_prompt = np.full((len(subjects), len(common["layers"]), len(ROLES)), np.nan)
    for i, (subject, (base, values)) in enumerate(zip(subjects, measured, strict=True)):
        gains = (values - base[:, None, None]).mean(axis=0)
        for role, positions in enumerate(_positions_by_role(subject)):
            if positions:
                per_prompt[i, :, role] = gains[:, positions].mean(axis=1)
    there = [role for role in range(len(ROLES)) if np.isfinite(per_prompt[:, 0, role]).any()]
    low, high = _intervals(per_prompt[:, :, there])
    return CausalTracingResult(
        effects=np.nanmean(per_prompt[:, :, there], axis=0),
        columns=tuple(ROLES[role] for role in there),
        subject=tuple(i for i, role in enumerate(there) if role < 3),
        n_prompts=len(subjects),
        ci_low=low,
        ci_high=high,
        **common,
    )


def _positions_by_role(subject: Subject) -> tuple[list[int], ...]:
    """The positions of each role; a subject of one token is its last one."""
    length, inside = subject.tokens.shape[1], list(subject.positions)
    after = list(range(inside[-1] + 1, length))
    first = inside[:1] if len(inside) > 1 else []
    return first, inside[1:-1], inside[-1:], after[:1] if len(after) > 1 else [], after[1:-1], after[-1:]


def _intervals(values: Floats) -> tuple[Floats | None, Floats | None]:
    """95 % intervals of the means over the rows of `values` [n, …], NaN left out; NaN where fewer than four
    rows are known, None where that is so everywhere."""
    flat = values.reshape(len(values), -1)
    low, high = np.full((2, flat.shape[1]), np.nan)
    for i, column in enumerate(flat.T):
        known = column[np.isfinite(column)]
        found = mean_of(known) if len(known) else None
        if found is not None and found.low is not None and found.high is not None:
            low[i], high[i] = float(found.low), float(found.high)
    if not np.isfinite(low).any():
        return None, None
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])
