"""Ablation of sets of components: does the behaviour need them, and do they suffice?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import mlx.core as mx
import numpy as np

from mlxterp import metrics
from mlxterp.causal.batching import sweep
from mlxterp.causal.finite import require_finite, require_finite_runs
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.cautions import of_form
from mlxterp.causal.prompts.encoding import (
    Ids,
    Prompt,
    facts_of,
    frozen,
    prompt_text,
    require_model,
    token_ids,
    token_rows,
)
from mlxterp.causal.prompts.pair import (
    MetricLike,
    Pairs,
    Prepared,
    PromptPair,
    as_pairs,
    prepare,
    read_rows,
    vocabulary_of,
)
from mlxterp.component_names import head_label, parse_component
from mlxterp.core import interventions
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MetricError, NoGap, SweepError
from mlxterp.measurements import recorder
from mlxterp.metrics import Floats, Metric
from mlxterp.progress import ProgressOption, reporting
from mlxterp.results import AblationResult, AblationRow
from mlxterp.statistics.clusters import clusters
from mlxterp.statistics.effects import effects

Member: TypeAlias = str | tuple[int, int]
"""A head as (layer, head) or `"L9.H6"`; any other component as `"L3.mlp_out"` or `"L3.attn"`."""


@dataclass(frozen=True)
class Part:
    """One member of a set: a head of a layer (its point is z), or a whole component."""

    name: str
    layer: int
    head: int | None = None

    @property
    def point(self) -> HookPoint:
        return HookPoint(self.name, self.layer)

    def __str__(self) -> str:
        return str(self.point) if self.head is None else head_label(self.layer, self.head)


def parse_parts(model: InterpretableModel, members: Sequence[Member]) -> tuple[Part, ...]:
    """The parts of a set; SweepError for an empty set, a member twice, or one that does not exist."""
    if not members or isinstance(members, str):
        raise SweepError(
            f"{members!r} is not a set of heads. Give for instance [(9, 6), 'L10.H0', 'L3.mlp_out']."
        )
    parts = tuple(_parse_member(model, member) for member in members)
    if len(set(parts)) != len(parts):
        raise SweepError(f"the set {list(members)} names a member twice. List each once.")
    return parts


def complement_of(model: InterpretableModel, parts: Sequence[Part]) -> tuple[Part, ...]:
    """Everything of the kinds that occur in the set, without the set: for heads, all other heads."""
    every: list[Part] = []
    for name, per_head in sorted({(part.name, part.head is not None) for part in parts}):
        for layer in model.architecture.layers_with(name):
            every += [Part(name, layer, h) for h in range(model.n_heads)] if per_head else [Part(name, layer)]
    others = tuple(part for part in every if part not in set(parts))
    if not others:
        raise SweepError(
            "keep=True with a set that holds every component of its kind: there is nothing to ablate."
        )
    return others


def random_head_sets(
    model: InterpretableModel, k: int, n: int, *, seed: int = 0, exclude: Sequence[Member] = ()
) -> list[tuple[tuple[int, int], ...]]:
    """`n` random sets of `k` heads `(layer, head)` each, without the excluded ones; two sets may share
    heads."""
    require_model(model)
    left_out = {(part.layer, part.head) for part in (parse_parts(model, exclude) if exclude else ())}
    model.architecture.require_in_some_layer("z")
    layers = model.architecture.layers_with("z")
    pool = [(la, h) for la in layers for h in range(model.n_heads) if (la, h) not in left_out]
    if not 1 <= k <= len(pool):
        raise SweepError(
            f"sets of {k} heads: of the model's {len(layers) * model.n_heads} heads, {len(pool)} are not "
            "excluded. Ask for smaller sets, or exclude fewer heads."
        )
    rng = np.random.default_rng(seed)
    return [tuple(sorted(pool[i] for i in rng.choice(len(pool), size=k, replace=False))) for _ in range(n)]


_DRAWS_A_SET = 50


def draw_parts(
    model: InterpretableModel, sets: Sequence[Sequence[Part]], n: int, *, seed: int, exclude: Sequence[Member]
) -> list[tuple[Part, ...]]:
    """`n` different random sets with as many heads in each layer as the first of `sets`, disjoint from all of
    them and from `exclude`; fewer where so many do not exist, or are not found in 50·n draws."""
    if any(part.head is None for part in sets[0]):
        raise SweepError(
            f"{n} random sets of heads are asked for beside a set of whole components. Leave them out."
        )
    taken = {(part.layer, part.head) for parts in sets for part in parts if part.head is not None}
    taken |= {
        (part.layer, part.head)
        for part in (parse_parts(model, exclude) if exclude else ())
        if part.head is not None
    }
    layers = [part.layer for part in sets[0]]
    rng = np.random.default_rng(seed)
    drawn: dict[tuple[tuple[int, int], ...], None] = {}
    for _ in range(_DRAWS_A_SET * n):
        drawn[_matched_heads(model, layers, taken, rng)] = None
        if len(drawn) == n:
            break
    return [parse_parts(model, heads) for heads in drawn]


def _matched_heads(
    model: InterpretableModel,
    layers: Sequence[int],
    taken: Collection[tuple[int, int]],
    rng: np.random.Generator,
) -> tuple[tuple[int, int], ...]:
    """A random head of each of these layers, none taken and none twice; where a layer has no other head left,
    one of the nearest layers that have."""
    free = [(la, h) for la in range(model.n_layers) for h in range(model.n_heads) if (la, h) not in taken]
    if len(layers) > len(free):
        raise SweepError(
            f"sets of {len(layers)} heads: of the model's {model.n_layers * model.n_heads} heads, "
            f"{len(free)} are not excluded. Ask for smaller sets, or exclude fewer heads."
        )
    drawn: list[tuple[int, int]] = []
    for layer in layers:
        nearest = min(abs(la - layer) for la, _ in free)
        pool = [each for each in free if abs(each[0] - layer) == nearest]
        drawn.append(pool[int(rng.integers(len(pool)))])
        free.remove(drawn[-1])
    return tuple(sorted(drawn))


def _parse_member(model: InterpretableModel, member: Member) -> Part:
    name, head = "z", None
    if not isinstance(member, str):
        layer, head = int(member[0]), int(member[1])
    else:
        name, layer, head = _parse_name(member)
    if not 0 <= layer < model.n_layers or (head is not None and not 0 <= head < model.n_heads):
        heads = "" if head is None else f", each with heads 0 to {model.n_heads - 1}"
        raise SweepError(f"{member!r} does not exist: the model has layers 0 to {model.n_layers - 1}{heads}.")
    model.architecture.require_in_layer(name, layer)
    return Part(name, layer, head)


def _parse_name(member: str) -> tuple[str, int, int | None]:
    try:
        named = parse_component(member)
    except ValueError as problem:
        why = str(problem)
    else:
        if named.layer is not None and named.pos is None and (named.head is None or named.name == "z"):
            return named.name, named.layer, named.head
        why = "a set has heads and components of layers, at all positions"
    raise SweepError(f"{member!r}: {why}. Write a head as 'L9.H6' or (9, 6), a component as 'L3.mlp_out'.")


Kind: TypeAlias = Literal["mean", "zero", "resample"]


@dataclass(frozen=True)
class _Subjects:
    """The prompts of an ablation as tokens, the metric, and its baselines."""

    tokens: Ids
    others: Ids | None  # the corrupted prompts, position to position
    positions: tuple[tuple[int, int], ...]  # (clean, corrupted)
    metric: Metric
    targets: metrics.Targets
    clean_metric: Floats
    corrupted_metric: Floats | None
    measured_on: dict[str, Any]
    run: sweep.BaseRun | None  # of the prompts, and of the corrupted ones, if they were kept
    others_run: sweep.BaseRun | None

    @property
    def clusters(self) -> tuple[str, ...]:
        """Which prompts, or pairs of them, are one independent observation."""
        others = self.tokens if self.others is None else self.others
        rows = zip(self.tokens.tolist(), others.tolist(), strict=True)
        return clusters([{"clean": clean, "corrupted": corrupted} for clean, corrupted in rows]).of_pair


def ablate(
    model: InterpretableModel,
    prompts: Pairs | Prompt | Sequence[Prompt],
    heads: Sequence[Member] | Mapping[str, Sequence[Member]],
    *,
    kind: Kind = "mean",
    keep: bool = False,
    metric: MetricLike = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    align: Align = "strict",
    label: str = "found set",
    group: Literal["found", "random", "null"] = "found",
    random_sets: int = 0,
    exclude: Sequence[Member] = (),
    seed: int = 0,
    progress: ProgressOption = None,
) -> AblationResult:
    """The metric on the clean prompts with each set ablated (necessity), or with only it kept (sufficiency).

    Args:
        prompts: pairs, prepared or not; or prompts alone, for "zero" and "mean" and a metric that needs no
            corrupted run.
        heads: one set of heads `(9, 6)`, `"L9.H6"` or components `"L3.mlp_out"`; or several sets by label.
        kind: what stands in for an ablated activation. "zero"; "mean": its mean at the same position over all
            prompts given, clean and corrupted; "resample": the corrupted run's, at the aligned position.
        keep: ablate everything *else* of the kinds in the set: all other heads for a set of heads, all other
            MLPs for MLPs.
        metric, answer, foil, align: as for `activation_patching`.
        label: of a single set.
        group: of the given sets, for the result: "found", or "null" for sets predicted not to matter.
        random_sets: this many different random sets, or as many as exist, disjoint from all sets given: as
            many heads in each layer as the first set has there, or in the nearest layers that have some left.
            A set's rank among them is its p-value (`AblationResult.p_among_random`); 0.05 takes 19.
        exclude: heads that random sets leave out too.
        seed: of the random sets.
        progress: called with (rows done, rows in all); by default a bar after two seconds, False for none.

    Returns:
        one row per set. What is left of the metric, as a share: m / m_clean for mean and zero ablation and a
        metric that is 0 where the behaviour is absent (`logit_diff`, `prob`); else, and for resampling,
        (m − m_corrupted) / (m_clean − m_corrupted).

    Raises:
        SweepError: an unknown head, an empty set, an ablation that has nothing to put in.

    Source: Wang et al. 2022 (2211.00593), mean ablation, faithfulness; Chan et al. 2022, resampling.
    """
    require_model(model)
    if kind not in get_args(Kind):
        raise SweepError(f"kind={kind!r} is not known. Choose one of: {', '.join(get_args(Kind))}.")
    sets_given = heads if isinstance(heads, Mapping) else {label: heads}
    named = {name: parse_parts(model, members) for name, members in sets_given.items()}
    subjects = _read_subjects(model, prompts, metric, answer, foil, align)
    sets = [(name, group, parts) for name, parts in named.items()]
    if random_sets:
        drawn = draw_parts(model, list(named.values()), random_sets, seed=seed, exclude=exclude)
        sets += [(f"random set {i + 1}", "random", parts) for i, parts in enumerate(drawn)]
    nothing_left = _metric_of_nothing(subjects, kind)
    ablated = [complement_of(model, parts) if keep else parts for _, _, parts in sets]
    values = _measure(model, subjects, ablated, kind, progress)
    require_finite(
        values,
        lambda i: sets[i][0],
        f"{subjects.metric.name} with sets ablated",
        "Ablate another way (kind=), or load the model with dtype=mx.float32.",
    )
    zero = np.zeros_like(subjects.clean_metric) if nothing_left is None else nothing_left
    found = effects(values, one=subjects.clean_metric, zero=zero, clusters=subjects.clusters, seed=seed)
    rows = [
        AblationRow(
            label=name,
            components=tuple(str(part) for part in parts),
            value=float(values[:, i].mean()),
            share=float(found.effects[i]),
            keep=keep,
            group=its_group,
            ci=None
            if found.low is None or found.high is None
            else (float(found.low[i]), float(found.high[i])),
        )
        for i, (name, its_group, parts) in enumerate(sets)
    ]
    recorder.add_method("ablate", pairs=len(subjects.tokens))
    return AblationResult(
        rows=tuple(rows),
        ablation=kind,
        metric=subjects.metric.name,
        clean_metric=float(subjects.clean_metric.mean()),
        corrupted_metric=None if nothing_left is None else float(nothing_left.mean()),
        measured_on=subjects.measured_on | {"ablation": kind, "seed": seed} | found.facts(),
    )


def _metric_of_nothing(subjects: _Subjects, kind: Kind) -> Floats | None:
    """The metric that counts as nothing left, per example; None if that is 0."""
    metric, n = subjects.metric, len(subjects.tokens)
    if kind == "resample" and subjects.others is None:
        raise SweepError("kind='resample' puts in the corrupted run's activations: give PromptPairs.")
    if metric.absent is not None and kind != "resample":
        clean = subjects.clean_metric.mean()
        if clean - metric.absent <= metric.tolerance:
            raise NoGap(
                f"{metric.name} is {clean:.2g} on these {n} prompts without ablation, so there is nothing "
                "of which a share could be left. Choose an answer that the model prefers."
            )
        return None
    if subjects.corrupted_metric is None:
        raise MetricError(
            f"metric {metric.name!r} is not 0 where the behaviour is absent, so a share of it needs a "
            "corrupted run. Give PromptPairs, or use 'logit_diff' or 'prob'."
        )
    return subjects.corrupted_metric


def _measure(
    model: InterpretableModel,
    subjects: _Subjects,
    ablated: Sequence[tuple[Part, ...]],
    kind: Kind,
    progress: ProgressOption,
) -> Floats:
    """The metric `[n_examples, n_sets]` with each set ablated."""
    points = sorted({part.point for parts in ablated for part in parts})
    n = len(subjects.tokens)
    stand_ins = _replacements(model, subjects, points, kind)
    rows = [
        sweep.Row(example, tuple(edits))
        for parts in ablated
        for example, edits in enumerate(_edits(parts, stand_ins, subjects, kind))
    ]
    with reporting(progress, "ablation") as shown:
        values = sweep.run_rows(
            model,
            subjects.tokens,
            rows,
            lambda logits, examples: read_rows(subjects.metric, subjects.targets, logits, examples),
            vocabulary=vocabulary_of(subjects.metric, subjects.targets),
            base=subjects.run,
            progress=shown,
        )
    return np.asarray(values.reshape(len(ablated), n).T)


def _replacements(
    model: InterpretableModel, subjects: _Subjects, points: Sequence[HookPoint], kind: Kind
) -> dict[HookPoint, mx.array]:
    """The activations put in: per point the mean over prompts `[1, …]`, or each corrupted prompt's."""
    if kind == "zero":
        return {}
    if kind == "resample":
        assert subjects.others is not None, "refused before"
        return sweep.capture(model, subjects.others, points, base=subjects.others_run)
    runs = [(subjects.tokens, subjects.run)]
    if subjects.others is not None and subjects.others.shape[1] == subjects.tokens.shape[1]:
        runs.append((subjects.others, subjects.others_run))
    prompts, first = np.unique(np.concatenate([tokens for tokens, _ in runs]), axis=0, return_index=True)
    if len(prompts) < 2:
        raise SweepError(
            "kind='mean' over a single prompt puts in what is already there. Give several prompts of one "
            "length, or pairs, or use kind='zero' or 'resample'."
        )
    acts = _kept_activations([run for _, run in runs], points, first) or sweep.capture(model, prompts, points)
    return {point: mx.mean(x.astype(mx.float32), axis=0, keepdims=True) for point, x in acts.items()}


def _kept_activations(
    runs: Sequence[sweep.BaseRun | None], points: Sequence[HookPoint], chosen: Ids
) -> dict[HookPoint, mx.array] | None:
    """Activations of the chosen of all these runs' prompts; None if not all were kept."""
    found = {}
    for point in points:
        kept = [x for run in runs if run is not None and (x := run.activation(point)) is not None]
        if len(kept) < len(runs):
            return None
        found[point] = mx.concatenate(kept)[mx.array(chosen)]
    return found


def _edits(
    parts: tuple[Part, ...], stand_ins: dict[HookPoint, mx.array], subjects: _Subjects, kind: Kind
) -> list[list[Intervention]]:
    """Per example, the edits that ablate the set. Examples share an edit where it is the same, so that it is
    made once."""
    n = len(subjects.tokens)
    by_point: dict[HookPoint, list[int] | None] = {}
    for part in parts:
        if part.head is None:
            by_point[part.point] = None
        elif (known := by_point.setdefault(part.point, [])) is not None:
            known.append(part.head)
    per_example: list[list[Intervention]] = [[] for _ in range(n)]
    for point, heads in by_point.items():
        if kind == "resample":
            own = [p for p, _ in subjects.positions]
            source = mx.take(stand_ins[point], mx.array([s for _, s in subjects.positions]), axis=1)
            for i, edits in enumerate(per_example):
                edits.append(interventions.replace(point, source[i : i + 1], positions=own, heads=heads))
            continue
        if kind == "zero":
            shared = interventions.zero(point, heads=heads)
        else:
            shared = interventions.mean(point, stand_ins[point], heads=heads)
        for edits in per_example:
            edits.append(shared)
    return per_example


def _read_subjects(
    model: InterpretableModel,
    prompts: Any,
    metric: MetricLike,
    answer: str | int | None,
    foil: str | int | None,
    align: Align,
) -> _Subjects:
    if isinstance(prompts, str) or not hasattr(prompts, "__len__"):
        prompts = prompts if isinstance(prompts, PromptPair | Prepared) else frozen(prompts)
    several = isinstance(prompts, Sequence) and not isinstance(prompts, str) and len(prompts) > 0
    first = prompts[0] if several else prompts
    if not isinstance(first, PromptPair | Prepared):
        listed = list(prompts) if several and not isinstance(first, int | np.integer) else [prompts]
        return _read_prompts(model, listed, metric, answer, foil)
    prepared = prepare(model, as_pairs(prompts, answer=answer, foil=foil), metric, align=align)
    return _Subjects(
        tokens=prepared.clean,
        others=prepared.corrupted,
        positions=prepared.alignment.positions,
        metric=prepared.metric,
        targets=prepared.targets,
        clean_metric=prepared.clean_metric,
        corrupted_metric=prepared.corrupted_metric,
        measured_on=prepared.measured_on(model),
        run=prepared.clean_run,
        others_run=prepared.corrupted_run,
    )


def _read_prompts(
    model: InterpretableModel,
    prompts: Sequence[Prompt],
    metric: MetricLike,
    answer: str | int | None,
    foil: str | int | None,
) -> _Subjects:
    tokens = token_rows(model, prompts, "given")
    resolved = metrics.resolve(metric, answer=answer is not None, foil=foil is not None)
    n = len(prompts)
    logits = sweep.answer_logits(model, tokens)
    require_finite_runs(model, logits, tokens, "given")
    limits = [text for row in logits for text in of_form(model, row, answer, "answer")]
    clean = logits if "clean_logits" in resolved.needs else None
    targets = metrics.Targets(
        token_ids(model, [answer] * n, "answer"), token_ids(model, [foil] * n, "foil"), clean
    )
    values = resolved(logits, targets)
    return _Subjects(
        tokens=tokens,
        others=None,
        positions=(),
        metric=resolved,
        targets=targets,
        clean_metric=values,
        corrupted_metric=None,
        measured_on=facts_of(model)
        | {"prompts": [{"text": prompt_text(model, p)} for p in prompts], "metric": resolved.name}
        | ({"cautions": list(dict.fromkeys(limits))} if limits else {}),
        run=None,
        others_run=None,
    )
