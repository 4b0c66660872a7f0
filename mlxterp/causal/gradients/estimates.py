"""Estimates of patching to first order: a gradient at each site, times the change that a patch would make.

Examples are taken in batches small enough for one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import mlx.core as mx
import numpy as np

from mlxterp.causal.batching import sweep
from mlxterp.causal.gradients import qk_fix
from mlxterp.causal.gradients.backward import TOKEN_BUDGET, differentiable, gradients
from mlxterp.causal.patching.sites import Grid, Runs
from mlxterp.causal.prompts.encoding import Ids
from mlxterp.causal.prompts.pair import Prepared
from mlxterp.core import interventions
from mlxterp.core.hook_points import HookPoint, axes
from mlxterp.core.interventions import Intervention
from mlxterp.core.model import InterpretableModel
from mlxterp.metrics import Floats

EMBED = HookPoint("embed")
Activations: TypeAlias = dict[HookPoint, mx.array]
Reduce: TypeAlias = Callable[[mx.array], mx.array]
"""A gradient [rows, …] → estimates [rows, pos, head]; pos or head is 1 where there is no such axis.

Rows are the examples, or several times the examples, one time after the other.
"""


@dataclass(frozen=True)
class ComponentRequest:
    """A component to estimate: its grid, and whether its queries or keys go through the softmax exactly."""

    name: str
    grid: Grid
    exact_softmax: bool

    @property
    def read(self) -> list[HookPoint]:
        """The activations that its estimates are made of."""
        names = ("q", "k") if self.exact_softmax else (self.name,)
        return [HookPoint(name, layer) for layer in self.grid.layers for name in names]

    @property
    def differentiated(self) -> list[HookPoint]:
        """Where it needs the gradient, layer by layer."""
        name = "pattern" if self.exact_softmax else self.name
        return [HookPoint(name, layer) for layer in self.grid.layers]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is estimated on.

    Attributes:
        whole_input: also estimate patching the whole embedding, whose true effect is known to be the gap.
    """

    model: InterpretableModel
    prepared: Prepared
    runs: Runs
    whole_input: bool


class Estimates(NamedTuple):
    """Changes of the metric: per component `[n, *grid]`, and for the whole input `[n]` (NaN if not asked).

    `by_step` has each step's own, `[n, steps, *grid]`, where there are several.
    """

    of_sites: list[Floats]
    of_input: Floats
    by_step: list[Floats]


def estimates(
    subject: Subject, wanted: Sequence[ComponentRequest], *, grad_drop: bool, steps: int
) -> Estimates:
    """What patching each site would add to the metric; with `grad_drop` and `steps` see
    `attribution_patching`."""
    n, length = subject.runs.base.shape
    at_once = max(1, TOKEN_BUDGET // length)
    parts: list[Estimates] = []
    for start in range(0, n, at_once):
        some = _ExampleBatch(subject, wanted, np.arange(start, min(start + at_once, n)))
        if grad_drop:
            parts.append(some.dropping_each_layer())
        else:
            parts.append(some.plain() if steps == 1 else some.along_the_path(steps))
    sites, by_step = (
        [np.concatenate(each) for each in zip(*of_each, strict=True)]
        for of_each in ([part.of_sites for part in parts], [part.by_step for part in parts])
    )
    return Estimates(sites, np.concatenate([part.of_input for part in parts]), by_step)


class _ExampleBatch:
    """Some examples of a dataset, few enough for one backward pass."""

    def __init__(self, subject: Subject, wanted: Sequence[ComponentRequest], examples: Ids) -> None:
        self._subject, self._wanted, self._examples = subject, wanted, examples
        self._model = subject.model
        self._tokens = subject.runs.base[examples]
        self._input = [EMBED] if subject.whole_input else []
        self._read = list(dict.fromkeys([*self._input, *(p for each in wanted for p in each.read)]))
        self._at = list(dict.fromkeys(p for each in wanted for p in each.differentiated))
        self._exact_softmax = any(each.exact_softmax for each in wanted)
        self._source = sweep.capture(self._model, subject.runs.source[examples], self._read)
        # All components of a call are swept over the same positions.
        positions = wanted[0].grid.positions
        self._own, self._other = zip(*positions, strict=True)
        self._changes = mx.array([subject.runs.changes(each) for each in positions])[:, None]

    def plain(self) -> Estimates:
        """By one backward pass, whose forward shows the base run's activations as well."""
        at = [*self._at, *self._input]
        if self._exact_softmax:
            base, attended = self._base_run()
            slopes, _ = self._gradients(self._tokens, at, self._examples)
        else:
            attended = []
            slopes, base = self._gradients(self._tokens, at, self._examples, capture=self._read)
        found = [self._on_grid(each, self._reductions(each, base, attended), slopes) for each in self._wanted]
        of_input = self._of_input(base, slopes)
        mx.eval(found, of_input)
        return Estimates([_floats(each) for each in found], _floats(of_input), [])

    def along_the_path(self, steps: int) -> Estimates:
        """By a backward pass per step from the source run's input to the base run's, which share batches."""
        base, attended = self._base_run()
        reductions = [self._reductions(each, base, attended) for each in self._wanted]
        to_source = self._source[EMBED].astype(mx.float32) - base[EMBED].astype(mx.float32)
        n, at = len(self._examples), [*self._at, *self._input]
        at_once = max(1, TOKEN_BUDGET // self._tokens.size)
        by_step: list[list[Floats]] = [[] for _ in self._wanted]
        of_input = np.zeros(n)
        for start in range(0, steps, at_once):
            some = range(start, min(start + at_once, steps))
            # The last step is the base run itself: its input is not moved.
            moved = mx.concatenate([(1 - (k + 1) / steps) * to_source for k in some])
            slopes, _ = self._gradients(
                np.tile(self._tokens, (len(some), 1)),
                at,
                np.tile(self._examples, len(some)),
                edits=[interventions.add(EMBED, moved)],
            )
            for each, reduce, found in zip(self._wanted, reductions, by_step, strict=True):
                rows = _floats(self._on_grid(each, reduce, slopes))
                found += list(rows.reshape(len(some), n, *each.grid.shape))
            of_input += _floats(self._of_input(base, slopes)).reshape(len(some), n).sum(axis=0)
        whole = [np.stack(found, axis=1) for found in by_step]
        return Estimates([found.mean(axis=1) for found in whole], of_input / steps, whole)

    def dropping_each_layer(self) -> Estimates:
        """By a backward pass per layer, with what that layer adds held fixed; layers share batches."""
        base, attended = self._base_run()
        reductions = [self._reductions(each, base, attended) for each in self._wanted]
        n_layers, n = self._model.n_layers, len(self._examples)
        at_once = max(1, TOKEN_BUDGET // self._tokens.size)
        totals = [np.zeros((n, *each.grid.shape)) for each in self._wanted]
        for start in range(0, n_layers, at_once):
            layers = range(start, min(start + at_once, n_layers))
            slopes, _ = self._gradients(
                np.tile(self._tokens, (len(layers), 1)),
                self._at,
                np.tile(self._examples, len(layers)),
                edits=self._holding(layers),
            )
            for total, each, reduce in zip(totals, self._wanted, reductions, strict=True):
                size = mx.abs(self._on_grid(each, reduce, slopes))
                total += _floats(size.reshape(len(layers), *total.shape).sum(axis=0))
        plain, _ = self._gradients(self._tokens, [*self._at, *self._input], self._examples)
        signs = [
            np.where(_floats(self._on_grid(each, reduce, plain)) < 0, -1.0, 1.0)
            for each, reduce in zip(self._wanted, reductions, strict=True)
        ]
        found = [sign * total / (n_layers - 1) for sign, total in zip(signs, totals, strict=True)]
        return Estimates(found, _floats(self._of_input(base, plain)), [])

    def _gradients(
        self,
        tokens: Ids,
        points: Sequence[HookPoint],
        examples: Ids,
        *,
        edits: Sequence[Intervention] = (),
        capture: Sequence[HookPoint] = (),
    ) -> tuple[Activations, Activations]:
        prepared = self._subject.prepared
        metric = differentiable(prepared.metric, prepared.metric, prepared.targets.take(examples))
        return gradients(self._model, tokens, points, metric, edits=edits, capture=capture)

    def _base_run(self) -> tuple[Activations, list[qk_fix.Scores]]:
        """The base run's activations, and how each layer computes its attention."""
        if not self._exact_softmax:
            return sweep.capture(self._model, self._tokens, self._read), []
        with qk_fix.record_scores(self._model) as attended:
            captured = sweep.capture(self._model, self._tokens, self._read, token_budget=self._tokens.size)
        return captured, attended

    def _holding(self, layers: Sequence[int]) -> list[Intervention]:
        """In the i-th group of rows, no gradient passes what `layers[i]` adds to the stream."""
        names = ["attn_out", "mlp_out"] if self._model.capabilities["mlp_out"].available else ["attn_out"]
        n = len(self._examples)
        group = np.arange(n * len(layers))[:, None, None] // n
        return [
            interventions.edit(HookPoint(name, layer), partial(_held, where=mx.array(group == i)))
            for i, layer in enumerate(layers)
            for name in names
        ]

    def _of_input(self, base: Activations, slopes: Activations) -> mx.array:
        """Of the whole input [rows], where the rows of `slopes` are the examples, once or several times."""
        if not self._input:
            return mx.full((len(self._examples),), mx.nan)
        change = self._source[EMBED].astype(mx.float32) - base[EMBED].astype(mx.float32)
        return mx.sum(_product(change, slopes[EMBED]), axis=(1, 2))

    def _on_grid(
        self, wanted: ComponentRequest, reductions: Sequence[Reduce], slopes: Activations
    ) -> mx.array:
        """Estimates [rows, *grid]: summed over the positions or heads that are patched all at once."""
        pairs = zip(wanted.differentiated, reductions, strict=True)
        found = mx.stack([reduce(slopes[at]) for at, reduce in pairs], axis=1)  # [rows, layer, pos, head]
        if found.shape[2] == len(self._own):  # where both runs are the same, the estimate is exactly 0
            found = mx.where(self._changes, found, 0.0)
        together = [axis for axis, name in ((2, "pos"), (3, "head")) if name not in wanted.grid.axes]
        return mx.sum(found, axis=together).reshape(len(found), *wanted.grid.shape)

    def _reductions(
        self, wanted: ComponentRequest, base: Activations, attended: Sequence[qk_fix.Scores]
    ) -> list[Reduce]:
        if wanted.exact_softmax:
            return [
                self._through_softmax(wanted, layer, base, attended[layer]) for layer in wanted.grid.layers
            ]
        return [self._linear(point, base) for point in wanted.differentiated]

    def _linear(self, point: HookPoint, base: Activations) -> Reduce:
        pos, head = axes(point).pos, axes(point).head
        own = mx.array(self._own)
        change = self._theirs(point).astype(mx.float32) - mx.take(base[point], own, axis=pos).astype(
            mx.float32
        )

        def reduce(slope: mx.array) -> mx.array:
            found = _product(change, mx.take(slope, own, axis=pos)).sum(axis=-1)
            if head is None:
                return found[..., None]
            return found if pos < head else found.swapaxes(1, 2)

        return reduce

    def _theirs(self, point: HookPoint) -> mx.array:
        """The source run's activation at the aligned positions."""
        return mx.take(self._source[point], mx.array(self._other), axis=axes(point).pos)

    def _through_softmax(
        self, wanted: ComponentRequest, layer: int, base: Activations, attended: qk_fix.Scores
    ) -> Reduce:
        """Of a gradient at the pattern [rows, n_heads, dest, src]."""
        q, k = base[HookPoint("q", layer)], base[HookPoint("k", layer)]
        theirs = self._theirs(HookPoint(wanted.name, layer))
        own, n_kv = mx.array(self._own), k.shape[2]
        if wanted.name == "k" and "pos" in wanted.grid.axes:
            p, w = qk_fix.one_key_each(attended, q, k, theirs, self._own)

            def one_key(slope: mx.array) -> mx.array:
                above_mean = slope - _product(p, slope).sum(axis=-1, keepdims=True)
                per_head = _product(w, mx.take(above_mean, own, axis=-1)).sum(axis=2)
                return _by_kv_head(per_head, n_kv).swapaxes(1, 2)

            return one_key
        mixed = q if wanted.name == "q" else k
        mixed = mixed[...]
        mixed[:, own] = theirs.astype(mixed.dtype)
        moved = attended.pattern(mixed, k) if wanted.name == "q" else attended.pattern(q, mixed)
        change = moved - attended.pattern(q, k)

        def queries(slope: mx.array) -> mx.array:
            return mx.take(_product(change, slope).sum(axis=-1), own, axis=2).swapaxes(1, 2)

        def all_keys(slope: mx.array) -> mx.array:
            return _by_kv_head(_product(change, slope).sum(axis=(2, 3))[:, :, None], n_kv).swapaxes(1, 2)

        return queries if wanted.name == "q" else all_keys


def _held(x: mx.array, *, where: mx.array) -> mx.array:
    return mx.where(where, mx.stop_gradient(x), x)


def _product(change: mx.array, slope: mx.array) -> mx.array:
    """`change` of each example times the gradients of its rows."""
    return (slope.reshape(-1, *change.shape) * change).reshape(slope.shape)


def _by_kv_head(per_head: mx.array, n_kv: int) -> mx.array:
    """Sums [rows, n_heads, …] over the heads that share a key/value head."""
    rows, n_heads, *rest = per_head.shape
    return per_head.reshape(rows, n_kv, n_heads // n_kv, *rest).sum(axis=2)


def _floats(x: mx.array) -> Floats:
    return np.array(x.astype(mx.float32), dtype=np.float64)
