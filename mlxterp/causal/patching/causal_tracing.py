"""Causal tracing: noise on the subject's embeddings, one clean state restored at a time.

What lives here: prompts with their subjects, how much noise, averages over draws and over prompts. What
doesn't: the noisy runs themselves (`causal_tracing.py`), patching between two prompts
(`activation_patching.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp import metrics
from mlxterp.causal.batching import one_pass, packed_rows, sweep
from mlxterp.causal.patching.sites import within
from mlxterp.causal.prompts.encoding import (
    Ids,
    Prompt,
    facts_of,
    frozen,
    position_index,
    shortened,
    str_tokens,
    token_id,
    token_rows,
)
from mlxterp.core import interventions
from mlxterp.core.hook_points import HookPoint, component_name
from mlxterp.core.linux_blas import swiglu as fast_math
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import NoGap, PromptPairError, SweepError, TokenError
from mlxterp.metrics import Floats, Metric, MetricFunction
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


def trace(
    model: InterpretableModel,
    subject: Subject,
    metric: Metric,
    name: str,
    window: int,
    layers: Sequence[int],
    std: float,
    samples: int,
    key: mx.array,
    progress: Callable[[int, int], None] | None,
) -> tuple[Floats, Floats]:
    """The metric with noise [samples], and with each state restored [samples, n_layers, length]."""
    length, where = subject.tokens.shape[1], list(subject.positions)
    clean = subject.embed[:, mx.array(where)]
    noisy = clean + std * mx.random.normal((samples, *clean.shape[1:]), key=key)
    mx.eval(noisy)
    corrupt = [interventions.replace(EMBED, noisy[s : s + 1], positions=where) for s in range(samples)]
    points = [HookPoint(name, layer) for layer in range(model.n_layers)]
    states = sweep.capture(model, subject.tokens, points)

    def read(logits: np.ndarray[Any, Any], _: Ids) -> Floats:
        return metric(logits, subject.targets.take(np.zeros(len(logits), dtype=np.int64)))

    restored = _Restored(states, window, model.n_layers)
    cells = [(row, layer, p) for row, layer in enumerate(layers) for p in range(where[0], length)]
    base = sweep.run_rows(model, subject.tokens, [sweep.Row(0, (edit,)) for edit in corrupt], read)
    values = np.repeat(base[:, None], len(layers) * length, axis=1).reshape(samples, len(layers), length)
    size = max(1, sweep.KEPT_TOKENS // length)
    for start in range(0, samples, size):
        some = range(start, min(start + size, samples))
        noisy_run = _noisy_run(model, subject.tokens, noisy[some.start : some.stop], where)
        joining = [] if noisy_run is None else [c for c in cells if restored.joins(name, c[1])]
        from_embedding = [c for c in cells if c not in set(joining)]
        for chosen, kept in ((joining, noisy_run), (from_embedding, None)):
            edits = [(i, s, restored.edits(layer, p)) for _, layer, p in chosen for i, s in enumerate(some)]
            if kept is None:  # the rows bring their noise along
                tokens = subject.tokens
                rows = [sweep.Row(0, (corrupt[s], *each)) for _, s, each in edits]
            else:
                tokens = np.repeat(subject.tokens, len(some), axis=0)
                rows = [sweep.Row(i, each) for i, _, each in edits]
            if not rows:
                continue
            # The plain engine knows nothing of a noisy run, so rows that join one must not fall back to it.
            engine: sweep.Engine = "auto" if kept is None else "one_pass"
            found = sweep.run_rows(model, tokens, rows, read, base=kept, engine=engine, progress=progress)
            for (row, _, p), of_samples in zip(chosen, found.reshape(len(chosen), -1), strict=True):
                values[list(some), row, p] = of_samples
    return base, values


def _noisy_run(
    model: InterpretableModel, tokens: Ids, noisy: mx.array, where: Sequence[int]
) -> sweep.Base | None:
    """The runs of these draws of noise, for rows to join; None where rows cannot join a running batch."""
    if tokens.size > sweep.KEPT_TOKENS:
        return None
    names = [name for name in packed_rows.POINTS if model.capabilities[name].available]
    points = [HookPoint(name, layer) for name in names for layer in range(model.n_layers)]
    edit = interventions.replace(EMBED, noisy, positions=list(where))
    rows = np.repeat(tokens, len(noisy), axis=0)
    try:
        with fast_math.used(model.architecture):
            return one_pass.run_base(model, rows, points, interventions=[edit])
    except one_pass.CannotJoin:
        return None


class _Restored:
    """The interventions that restore a state, made once each: equal rows then share them."""

    def __init__(self, states: Mapping[HookPoint, mx.array], window: int, n_layers: int) -> None:
        self._states = {point: np.array(x.astype(mx.float32)) for point, x in states.items()}
        self._window, self._n_layers = window, n_layers
        self._made: dict[tuple[HookPoint, int], interventions.Intervention] = {}

    def joins(self, name: str, layer: int) -> bool:
        """Whether a row restored around this layer is as its noisy run behind some block."""
        return name == "resid_post" or self._layers(layer).start > 0

    def edits(self, layer: int, position: int) -> tuple[interventions.Intervention, ...]:
        layers = self._layers(layer)
        return tuple(self._edit(point, position) for point in self._states if point.layer in layers)

    def _layers(self, middle: int) -> range:
        """As many layers as the window has, fewer at the ends."""
        first, until = middle - self._window // 2, middle - (-self._window // 2)
        return range(max(0, first), min(self._n_layers, until))

    def _edit(self, point: HookPoint, position: int) -> interventions.Intervention:
        known = self._made.get((point, position))
        if known is None:
            value = self._states[point][:, position : position + 1]
            known = self._made[point, position] = interventions.replace(point, value, positions=[position])
        return known


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
    metric: str | MetricFunction | Metric | None = "prob",
    layers: Sequence[int] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
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

    Returns:
        effects [n_layers, n_positions], or [n_layers, n_roles], in units of the metric.

    Raises:
        PromptPairError: the subject is not in the text, or more than once.
        NoGap: the noise does not change the metric.
        SweepError: a component or window that means nothing.

    Source: Meng et al. 2022 (2202.05262), "Locating and Editing Factual Associations in GPT", section 2. Here
    the noise is scaled by the embeddings of the prompts at hand, not of their 1,000 facts.
    """
    point_name, span = _what(model, component, window)
    if samples < 1 or noise <= 0:
        raise SweepError(
            f"samples={samples}, noise={noise:g}: give at least one draw, and noise of 0 or more."
        )
    listed = _listed(prompts, subject, answer, foil)
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
    read = [_subject(model, each, chosen) for each in listed]
    swept = within(layers, model.n_layers, "layers")
    std = noise * float(np.std(np.concatenate([np.array(s.embed)[0, list(s.positions)] for s in read])))
    measured: list[tuple[Floats, Floats]] = []
    for i, each in enumerate(read):
        told = _told(progress, i, len(read))
        measured.append(
            trace(model, each, chosen, point_name, span, swept, std, samples, mx.random.key(seed + i), told)
        )
    facts = facts_of(model) | {
        "prompts": [_described(model, each, s) for each, s in zip(listed, read, strict=True)],
        "metric": chosen.name,
        "metric_direction": chosen.direction,
        "noise": noise,
        "seed": seed,
    }
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
        return _one(model, read[0], measured[0], common)
    return _several(read, measured, common)


def _what(model: InterpretableModel, component: str, window: int | None) -> tuple[str, int]:
    name = component_name(component)
    if name not in packed_rows.POINTS:
        raise SweepError(
            f"component={component!r} is not a state of one position. Restore one of: "
            f"{', '.join(packed_rows.POINTS)}."
        )
    model.architecture.require(name)
    default = 1 if name.startswith("resid") else max(1, round(model.n_layers * 10 / 48))
    span = default if window is None else window
    if not 1 <= span <= model.n_layers:
        raise SweepError(
            f"window={span}: the model has {model.n_layers} layers. Choose 1 to {model.n_layers}."
        )
    return name, span


def _listed(
    prompts: Prompt | TracedPrompt | Sequence[TracedPrompt],
    subject: str | Sequence[int] | None,
    answer: str | int | None,
    foil: str | int | None,
) -> tuple[TracedPrompt, ...]:
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


def _subject(model: InterpretableModel, traced: TracedPrompt, metric: Metric) -> Subject:
    tokens = token_rows(model, [traced.text], "traced")
    positions = subject_positions(model, tokens, traced.subject)
    logits = sweep.answer_logits(model, tokens)
    right = int(logits[0].argmax()) if traced.answer is None else token_id(model, traced.answer)
    foils = None if traced.foil is None else np.array([token_id(model, traced.foil)])
    targets = metrics.Targets(np.array([right]), foils)
    embed = sweep.capture(model, tokens, [EMBED])[EMBED].astype(mx.float32)
    return Subject(tokens, positions, targets, float(metric(logits, targets)[0]), embed)


def _told(progress: Callable[[int, int], None] | None, i: int, n: int) -> Callable[[int, int], None] | None:
    """Progress of one prompt as progress of all."""
    return None if progress is None else lambda done, rows: progress(i * rows + done, n * rows)


def _described(model: InterpretableModel, traced: TracedPrompt, subject: Subject) -> dict[str, Any]:
    assert subject.targets.answers is not None
    shown = str_tokens(model, subject.tokens[0])
    optional = {"foil": traced.foil} if traced.foil is not None else {}
    return {
        "text": "".join(shown),
        "subject": "".join(shown[p] for p in subject.positions),
        "answer": str_tokens(model, subject.targets.answers)[0],
    } | optional


def _one(
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


def _several(
    subjects: Sequence[Subject],
    measured: Sequence[tuple[Floats, Floats]],
    common: Mapping[str, Any],
) -> CausalTracingResult:
    """Means over prompts by role; a prompt without a role (no middle token) does not count for it."""
    per_prompt = np.full((len(subjects), len(common["layers"]), len(ROLES)), np.nan)
    for i, (subject, (base, values)) in enumerate(zip(subjects, measured, strict=True)):
        gains = (values - base[:, None, None]).mean(axis=0)
        for role, positions in enumerate(_by_role(subject)):
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


def _by_role(subject: Subject) -> tuple[list[int], ...]:
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
