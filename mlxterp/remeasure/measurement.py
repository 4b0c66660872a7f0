"""A declared claim measured on pairs: per pair the metric of the base run (effect 0), of the source run
(effect 1) and of the patched run; and the same for other sets of sites.

What lives here: running the rows of a claim, its identity control, placebos and leave-one-out sets. What
doesn't: what an operation does (`edits.py`), which placebos there are (`placebos.py`), statistics and
verdicts (whoever judges).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from mlxterp.autointerpret.contract import digest
from mlxterp.causal.batching.rows import Ids, Row
from mlxterp.causal.patching.path_patching import path_patching
from mlxterp.causal.prompts.encoding import facts_of
from mlxterp.causal.prompts.pair import Prepared, PromptPair
from mlxterp.component_names import ComponentName, head_label
from mlxterp.core.linux_blas import blas
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError
from mlxterp.metrics import Floats, Metric, MetricFunction
from mlxterp.remeasure.edits import (
    EditMaker,
    Flags,
    GroupEdit,
    Operation,
    Resources,
    points_of,
    read_operation,
    read_sites,
)
from mlxterp.remeasure.pairs import LengthGroup, MeasuredPairs, prepared_pairs

Progress: TypeAlias = Callable[[int, int], None]
IDENTITY_TOLERANCE = 1e-3
"""Share of a pair's gap that the identity control may move the metric by."""
_NO_RESOURCES = Resources()
_NEEDS_BOTH_RUNS = ("patch", "mean", "steer")


@dataclass(frozen=True)
class SiteSet:
    """Sites intervened on together.

    Attributes:
        direction_seed: moves each site as far as the operation does, in a random direction drawn from this;
            None for the operation itself.
    """

    sites: tuple[str, ...]
    direction_seed: int | None = None


@dataclass(frozen=True, eq=False)
class Measurement:
    """A claim's numbers, one per pair, in the pairs' order. Nothing that is not finite is left out.

    Attributes:
        zero, one, patched: the metric of the run that is edited, of the other run, and of the edited run.
            Denoising: zero = corrupted, one = clean; noising and ablation the reverse.
        edited: "clean" or "corrupted": the run that is edited.
        fired: whether every hook point of the claim was computed in this pair's run, with the positions and
            heads that it names. One that the model never computes at all raises.
        changed: whether the intervention changed an activation there.
        identity: the metric with each site replaced with what is there already, minus zero.
        n_tokens: `[n, 2]` of the clean and the corrupted prompt.
        answer_rank, foil_rank: the answer's place in the clean run and the foil's in the corrupted one, 1 =
            first; None for pairs without.
        facts: model, its digest, BLAS.
    """

    sites: tuple[str, ...]
    op: str
    edited: str
    metric: str
    zero: Floats
    one: Floats
    patched: Floats
    fired: Flags
    changed: Flags
    identity: Floats
    n_tokens: Ids
    answer_rank: Ids | None
    foil_rank: Ids | None
    metric_tolerance: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def change(self) -> Floats:
        """a = patched − zero."""
        return self.patched - self.zero

    @property
    def gap(self) -> Floats:
        """g = one − zero."""
        return self.one - self.zero

    @property
    def effect(self) -> float:
        """Σ change / Σ gap over the pairs; NaN without a gap or with a number that is not finite."""
        total = float(self.gap.sum())
        return float(self.change.sum()) / total if total else float("nan")

    @property
    def finite(self) -> Flags:
        """Per pair, whether all its numbers are finite."""
        return np.asarray(
            np.isfinite(np.stack([self.zero, self.one, self.patched, self.identity])).all(axis=0)
        )

    @property
    def identity_holds(self) -> Flags:
        """Per pair, whether the identity control moves the metric by nothing but rounding: at most
        `IDENTITY_TOLERANCE` of the gap, or what the metric counts as no difference."""
        allowed = np.maximum(self.metric_tolerance, IDENTITY_TOLERANCE * np.abs(self.gap))
        return np.asarray(np.abs(self.identity) <= allowed)

    def sign_of(self, direction: str) -> int:
        """The sign that the effect has if the intervention moves the metric in this direction.

        An effect is positive where the edited run moves towards the other one; with a metric that is lower
        there, that is a decrease.

        Raises:
            ValueError: a direction other than "increase" and "decrease"; no gap, or one that is not a number.
        """
        if direction not in ("increase", "decrease"):
            raise ValueError(f"direction {direction!r} predicts no sign. Give 'increase' or 'decrease'.")
        total = float(self.gap.sum())
        if not (total > 0 or total < 0):
            raise ValueError(f"the gap of these {len(self.gap)} pairs is {total}, so an effect has no sign.")
        towards_other = 1 if total > 0 else -1
        return towards_other if direction == "increase" else -towards_other

    def to_dict(self) -> dict[str, Any]:
        """Plain values in JSON, numbers that are not finite as texts, with the sha256 of all of them."""
        values = {
            "sites": list(self.sites),
            "op": self.op,
            "edited": self.edited,
            "metric": self.metric,
            "zero": numbers(self.zero),
            "one": numbers(self.one),
            "patched": numbers(self.patched),
            "fired": self.fired.tolist(),
            "changed": self.changed.tolist(),
            "finite": self.finite.tolist(),
            "identity": numbers(self.identity),
            "identity_holds": self.identity_holds.tolist(),
            "n_tokens": self.n_tokens.tolist(),
            "answer_rank": None if self.answer_rank is None else self.answer_rank.tolist(),
            "foil_rank": None if self.foil_rank is None else self.foil_rank.tolist(),
        }
        return values | {"sha256": digest(json.dumps(values, sort_keys=True).encode()), **self.facts}


@dataclass(frozen=True, eq=False)
class SetCells:
    """The metric with each set of sites edited `[n_sets, n_pairs]`, and for each whether all its hook points
    fired and any activation changed."""

    sets: tuple[SiteSet, ...]
    patched: Floats
    fired: Flags
    changed: Flags

    def to_dict(self) -> dict[str, Any]:
        return {
            "sets": [{"sites": list(s.sites), "direction_seed": s.direction_seed} for s in self.sets],
            "patched": [numbers(row) for row in self.patched],
            "fired": self.fired.tolist(),
            "changed": self.changed.tolist(),
        }


def numbers(values: Floats) -> list[float | str]:
    """Floats of full precision; "NaN", "Infinity" or "-Infinity" where they are not finite."""
    named = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return [float(v) if np.isfinite(v) else named[str(float(v))] for v in values]


def measure(
    model: InterpretableModel,
    claim: Mapping[str, Any],
    pairs: Sequence[PromptPair] | MeasuredPairs,
    metric: str | MetricFunction | Metric | None = None,
    *,
    resources: Resources = _NO_RESOURCES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """A declared claim on these pairs. Costs two forwards per pair, and two partial ones.

    Args:
        claim: a declaration as `Hypothesis.to_dict` writes it, with an intervention.
        pairs: of any lengths, each length measured by itself; a mean ablation takes its mean per length. Or
            what `run_pairs` made of them, which several claims may share.
        metric: a name, a function or a `Metric`; None for pairs that were run already.
        resources: the SAE and the vectors that the claim may name.
        seed: of noise.
        progress: called with (rows done, rows in all) after each length.

    Raises:
        SweepError: a site or a receiver that this model does not have, a claim without an intervention.
        TokenError: a position that a prompt does not have.
        LengthMismatch: a pair whose prompts differ in length, under `align="strict"`.
    """
    task = _prepare(model, claim, pairs, metric, resources, seed)
    operation, ready = task.operation, task.pairs
    own = SiteSet(tuple(claim["site"]))
    with blas.pinned_threads():
        cells, identity = _run_sets(task, [own], identity_of=own, progress=progress)
    return Measurement(
        sites=own.sites,
        op=operation.op,
        edited=operation.edited,
        metric=ready.metric.name,
        zero=ready.metric_of[operation.edited],
        one=ready.metric_of[operation.other],
        patched=cells.patched[0],
        fired=cells.fired[0],
        changed=cells.changed[0],
        identity=identity - ready.metric_of[operation.edited],
        n_tokens=ready.n_tokens,
        answer_rank=ready.answer_rank,
        foil_rank=ready.foil_rank,
        metric_tolerance=ready.metric.tolerance,
        facts=facts_of(model),
    )


def measure_placebos(
    model: InterpretableModel,
    claim: Mapping[str, Any],
    placebos: Sequence[SiteSet],
    pairs: Sequence[PromptPair] | MeasuredPairs,
    metric: str | MetricFunction | Metric | None = None,
    *,
    resources: Resources = _NO_RESOURCES,
    seed: int = 0,
    progress: Progress | None = None,
) -> SetCells:
    """The claim's operation at each of these sets of sites instead, all in one sweep; arguments as
    `measure`."""
    task = _prepare(model, claim, pairs, metric, resources, seed)
    if not placebos:
        raise SweepError("no placebo sites were given. Draw them with `placebo_sites`.")
    with blas.pinned_threads():
        return _run_sets(task, placebos, identity_of=None, progress=progress)[0]


def drop_one(
    model: InterpretableModel,
    claim: Mapping[str, Any],
    pairs: Sequence[PromptPair] | MeasuredPairs,
    metric: str | MetricFunction | Metric | None = None,
    *,
    resources: Resources = _NO_RESOURCES,
    seed: int = 0,
    progress: Progress | None = None,
) -> SetCells:
    """A set without each of its members, in their order: what a member adds is the set's effect minus this.

    Raises:
        SweepError: a claim with fewer than two sites; else as `measure`.
    """
    sites = tuple(claim["site"])
    if len(sites) < 2:
        raise SweepError(f"a set of {len(sites)} site has no member to leave out. Name at least two.")
    sets = [SiteSet(sites[:i] + sites[i + 1 :]) for i in range(len(sites))]
    return measure_placebos(
        model, claim, sets, pairs, metric, resources=resources, seed=seed, progress=progress
    )


@dataclass(frozen=True, eq=False)
class _Task:
    """An operation, what it runs on, and the SAE and vectors that it may name."""

    model: InterpretableModel
    operation: Operation
    pairs: MeasuredPairs
    resources: Resources


def _prepare(
    model: InterpretableModel,
    claim: Mapping[str, Any],
    pairs: Sequence[PromptPair] | MeasuredPairs,
    metric: str | MetricFunction | Metric | None,
    resources: Resources,
    seed: int,
) -> _Task:
    if not claim.get("intervention"):
        raise SweepError(
            "this claim has no intervention, so there is no patched run to measure. A role is measured with "
            "`measure_role`."
        )
    operation = read_operation(claim, seed)
    with blas.pinned_threads():
        return _Task(model, operation, prepared_pairs(model, pairs, metric, operation.align), resources)


def _run_sets(
    task: _Task, sets: Sequence[SiteSet], *, identity_of: SiteSet | None, progress: Progress | None
) -> tuple[SetCells, Floats]:
    """The cells of each set, and the metric of the identity control (NaN without one)."""
    pairs = task.pairs
    sites = [read_sites(task.model, each.sites) for each in sets]
    patched = np.full((len(sets), len(pairs)), np.nan)
    fired = np.zeros((len(sets), len(pairs)), dtype=bool)
    changed = np.zeros_like(fired)
    identity = np.full(len(pairs), np.nan)
    done, total = 0, (len(sets) + (identity_of is not None)) * len(pairs)
    for group in pairs.groups:
        run = _path_patched if task.operation.op == "path_patch" else _edited
        found = run(task, group, sets, sites)
        patched[:, group.indices] = found.patched
        fired[:, group.indices], changed[:, group.indices] = found.fired, found.changed
        if identity_of is not None:
            identity[group.indices] = found.identity_of(sets.index(identity_of))
        done += (len(sets) + (identity_of is not None)) * len(group.indices)
        if progress is not None:
            progress(done, total)
    return SetCells(tuple(sets), patched, fired, changed), identity


@dataclass(frozen=True, eq=False)
class _GroupCells:
    """Cells of one group `[n_sets, n]`, and how to run the identity control of one of the sets."""

    patched: Floats
    fired: Flags
    changed: Flags
    identity_of: Callable[[int], Floats]


def _edited(
    task: _Task, group: LengthGroup, sets: Sequence[SiteSet], sites: Sequence[Sequence[ComponentName]]
) -> _GroupCells:
    model, operation = task.model, task.operation
    points = points_of([site for each in sites for site in each])
    both = operation.op in _NEEDS_BOTH_RUNS and not operation.vector
    maker = EditMaker(
        model,
        operation,
        group,
        task.resources,
        own=group.activations(model, operation.edited, points),
        other=group.activations(model, operation.other, points) if both else {},
    )
    edits = [
        maker.edits(each) if one.direction_seed is None else maker.random_directions(each, one.direction_seed)
        for one, each in zip(sets, sites, strict=True)
    ]
    n = len(group.indices)

    def run(of_sets: Sequence[Sequence[GroupEdit]]) -> Floats:
        rows = []
        for of_set in of_sets:
            listed = [edit.per_pair(n) for edit in of_set]
            rows += [Row(i, tuple(each[i] for each in listed)) for i in range(n)]
        return group.run(model, operation.edited, rows, task.pairs.metric).reshape(len(of_sets), n)

    reached = [maker.reached(each) for each in edits]
    return _GroupCells(
        run(edits),
        np.stack([fired for fired, _ in reached]),
        np.stack([changed for _, changed in reached]),
        lambda i: np.asarray(run([maker.identity(sites[i])])[0]),
    )


def _path_patched(
    task: _Task, group: LengthGroup, sets: Sequence[SiteSet], sites: Sequence[Sequence[ComponentName]]
) -> _GroupCells:
    model, operation, pairs = task.model, task.operation, task.pairs
    zero, one = pairs.metric_of[operation.edited][group.indices], operation.other

    def run(chosen: Sequence[int], source: Ids) -> Floats:
        own = source is group.tokens[operation.edited]
        # `path_patching` gives effects in shares of the gap: with a gap of 1 they are changes of the metric.
        prepared = Prepared(
            pairs=tuple(pairs.pairs[i] for i in group.indices),
            clean=group.tokens[operation.edited],
            corrupted=source,
            alignment=group.alignment,
            metric=pairs.metric,
            targets=group.targets,
            clean_metric=zero,
            corrupted_metric=zero + 1.0,
            clean_logits=group.logits[operation.edited],
            corrupted_logits=group.logits[operation.edited if own else operation.other],
        )
        found = np.empty((len(chosen), len(zero)))
        by_pos: dict[int | None, list[int]] = {}
        for i in chosen:
            by_pos.setdefault(_position_of(sites[i]), []).append(i)
        for pos, members in by_pos.items():
            result = path_patching(
                model,
                prepared,
                receivers=list(operation.receivers),
                senders=[[_node(site) for site in sites[i]] for i in members],
                positions=pos,
            )
            change = result.effects[None] if result.per_example is None else result.per_example
            for column, i in enumerate(members):
                found[list(chosen).index(i)] = zero + np.asarray(change)[:, column]
        return found

    if any(each.direction_seed is not None for each in sets):
        raise SweepError("path patching has no random directions. Use other senders as placebos.")
    points = points_of([_as_read(site) for each in sites for site in each])
    own, other = (group.activations(model, side, points) for side in (operation.edited, one))
    changed = np.stack([_senders_differ(each, own, other) for each in sites])
    return _GroupCells(
        run(range(len(sets)), group.tokens[one]),
        np.ones_like(changed),  # the senders' activations were read above, in both runs of each pair
        changed,
        lambda i: np.asarray(run([i], group.tokens[operation.edited])[0]),
    )


def _as_read(site: ComponentName) -> ComponentName:
    return replace(site, name="resid_pre", layer=0) if site.name == "embed" else site


def _senders_differ(
    sites: Sequence[ComponentName], own: Mapping[Any, mx.array], other: Mapping[Any, mx.array]
) -> Flags:
    found: Flags | None = None
    for site in map(_as_read, sites):
        (point,) = points_of([site])
        differs = own[point] != other[point]
        if site.pos is not None:
            differs = differs[:, site.pos : site.pos + 1 or None]
        if site.head is not None:
            differs = differs[:, :, site.head]
        mine = np.array(mx.any(differs.reshape(len(differs), -1), axis=1))
        found = mine if found is None else found | mine
    assert found is not None, "a claim has at least one site"
    return found


def _position_of(sites: Sequence[ComponentName]) -> int | None:
    positions = {site.pos for site in sites}
    if len(positions) > 1:
        raise SweepError(
            f"the senders {', '.join(map(str, sites))} are at different positions. Path patching sends from "
            "the same position of each: give them one, or none."
        )
    return positions.pop()


def _node(site: ComponentName) -> str:
    if site.name == "embed":
        return "input"
    if site.name == "mlp_out":
        return f"L{site.layer}.mlp"
    assert site.layer is not None, "a head is in a layer"
    return head_label(site.layer, site.head if site.head is not None else 0)
