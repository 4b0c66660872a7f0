"""Nodes and edges of a feature circuit, by gradients: how much each matters, and through which others.

What lives here: what one search measures once, and reads for nodes and edges. What doesn't: what a circuit
is, and how faithful (`circuits.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxterp.causal.gradients.backward import (
    Plus,
    differentiable,
    gradients,
    slopes,
)
from mlxterp.core import interventions
from mlxterp.core.interventions import Intervention
from mlxterp.core.model import InterpretableModel
from mlxterp.metrics import Floats
from mlxterp.results import FeatureEdge, FeatureNode
from mlxterp.sae.analysis.attribution import (
    Move,
    as_written,
    mean_slope,
    move,
)
from mlxterp.sae.analysis.interventions import flat
from mlxterp.sae.analysis.runs import Ablation, Runs, intervals
from mlxterp.sae.analysis.texts import BATCH_TOKENS, Batch
from mlxterp.sae.sae import SAE

BOTTLENECKS = ("embed", "resid_pre", "resid_mid", "resid_post")
"""Hook points that everything before must pass: nothing goes around them."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """A batch in the unchanged run: per SAE, how ablation moves its nodes, and the metric's slope there."""

    batch: Batch
    moved: list[Move]
    slopes: list[mx.array]


class Search:
    """One search: what is measured once and read by nodes and edges."""

    def __init__(
        self,
        model: InterpretableModel,
        stages: list[SAE],
        runs: Runs,
        ablation: Ablation,
        points: Sequence[float],
    ) -> None:
        self._model, self._stages, self._runs, self._points = model, stages, runs, points
        self._seen = [self._look(batch, ablation) for batch in runs.texts.batches]

    def _look(self, batch: Batch, ablation: Ablation) -> _Seen:
        moved = [move(self._model, sae, batch, ablation) for sae in self._stages]
        found = [
            mean_slope(self._model, sae, self._runs, batch, each, self._points)
            for sae, each in zip(self._stages, moved, strict=True)
        ]
        return _Seen(batch, moved, found)

    def nodes(self, threshold: float, most: int, seed: int) -> tuple[tuple[FeatureNode, ...], int, int]:
        """The nodes kept, how many more were above the threshold, and how many have an effect at all."""
        kept: list[FeatureNode] = []
        left_out = n_nodes = 0
        n = len(self._runs.texts.examples)
        for i, sae in enumerate(self._stages):
            effects = np.zeros((n, sae.d_sae + 1))  # the error last
            for seen in self._seen:
                of_features, of_error = seen.moved[i].products(sae, seen.slopes[i])
                effects[seen.batch.examples] = np.concatenate([of_features, of_error[:, None]], axis=1)
            mean, bounds = effects.mean(axis=0), intervals(effects, seed)
            n_nodes += int((mean != 0).sum())
            strong = np.flatnonzero(np.abs(mean) > threshold)
            order = strong[np.argsort(-np.abs(mean[strong]), kind="stable")].tolist()
            features = [f for f in order if f < sae.d_sae]
            left_out += max(0, len(features) - most)
            for f in [*features[:most], *([sae.d_sae] if sae.d_sae in order else [])]:
                ci = None if bounds is None else (float(bounds[0][f]), float(bounds[1][f]))
                kept.append(
                    FeatureNode(
                        hook_point=sae.hook_point,
                        feature=f if f < sae.d_sae else None,
                        effect=float(mean[f]),
                        ci=ci,
                    )
                )
        return tuple(kept), left_out, n_nodes

    def edges(
        self,
        nodes: Sequence[FeatureNode],
        threshold: float,
        progress: Callable[[int, int], None] | None,
    ) -> tuple[FeatureEdge, ...]:
        """The edges above the threshold among these nodes, and from them into the metric."""
        own = [[node for node in nodes if node.hook_point == sae.hook_point] for sae in self._stages]
        pairs = [
            (i, j)
            for j in range(len(own) + 1)
            for i in range(j)
            if own[i] and not self._blocked(i, j) and (j == len(own) or own[j])
        ]
        found: list[FeatureEdge] = []
        for done, (i, j) in enumerate(pairs, start=1):
            receivers = ["metric"] if j == len(own) else [node.label for node in own[j]]
            weights = self._into_metric(i, own[i]) if j == len(own) else self._between(i, j, own[i], own[j])
            found += [
                FeatureEdge(sender=sender.label, receiver=receiver, weight=float(weights[u, d]))
                for u, sender in enumerate(own[i])
                for d, receiver in enumerate(receivers)
                if abs(weights[u, d]) > threshold
            ]
            if progress is not None:
                progress(done, len(pairs))
        return tuple(found)

    def _blocked(self, i: int, j: int) -> bool:
        """Whether everything from SAE i to SAE j passes an SAE between them."""
        return any(sae.point.name in BOTTLENECKS for sae in self._stages[i + 1 : j])

    def _held(self, i: int, j: int) -> list[Intervention]:
        """The SAEs between i and j, held at their values."""
        return [interventions.edit(sae.point, mx.stop_gradient) for sae in self._stages[i + 1 : j]]

    def _into_metric(self, i: int, senders: Sequence[FeatureNode]) -> Floats:
        """`[senders, 1]`, the effects that pass no later SAE."""
        sae, held = self._stages[i], self._held(i, len(self._stages))
        total = np.zeros((len(self._runs.texts.examples), len(senders)))
        for seen in self._seen:
            slope = seen.slopes[i]
            if held:
                targets = self._runs.targets.take(seen.batch.examples)
                metric = differentiable(self._runs.given_metric, self._runs.metric, targets)
                by_point, _ = gradients(self._model, seen.batch.clean, [sae.point], metric, edits=held)
                slope = flat(by_point[sae.point], sae)
            total[seen.batch.examples] = _effects(seen.moved[i], sae, slope, senders)
        return np.asarray(total.mean(axis=0)[:, None])

    def _between(
        self, i: int, j: int, senders: Sequence[FeatureNode], receivers: Sequence[FeatureNode]
    ) -> Floats:
        """`[senders, receivers]`, the mean over examples."""
        sae = self._stages[i]
        total = np.zeros((len(senders), len(receivers)))
        for seen in self._seen:
            rows = [(d, point) for d in range(len(receivers)) for point in self._points]
            at_once = max(1, BATCH_TOKENS // seen.batch.clean.size)
            readings = [self._reading(seen, j, node) for node in receivers]
            n = len(seen.batch.clean)
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                reading = mx.concatenate([readings[d] for d, _ in some])
                slope = self._back(i, j, seen, [point for _, point in some], reading)
                for k, (d, _) in enumerate(some):
                    total[:, d] += _effects(seen.moved[i], sae, slope[k * n : (k + 1) * n], senders).sum(
                        axis=0
                    )
        return total / (len(self._runs.texts.examples) * len(self._points))

    def _reading(self, seen: _Seen, j: int, node: FeatureNode) -> mx.array:
        """∂m/∂d · ∂d/∂x `[n, length, d_in]` of a receiver d, at the activation x that its SAE reads.

        A feature that fires is linear in x. What all features leave of ∂m/∂x is the error's, because
        error = x − reconstruction(x).
        """
        sae, moved, slope = self._stages[j], seen.moved[j], seen.slopes[j]
        counts = mx.array(seen.batch.counted[..., None])
        fires = (moved.seen.acts > 0).astype(mx.float32)
        if node.feature is not None:
            f = node.feature
            by_feature = mx.sum(slope * sae.W_dec[f], axis=-1) * fires[..., f]
            return mx.where(counts, by_feature[..., None] * sae.W_enc[:, f], 0.0)
        return mx.where(counts, slope - ((slope @ sae.W_dec.T) * fires) @ sae.W_enc.T, 0.0)

    def _back(self, i: int, j: int, seen: _Seen, points: Sequence[float], reading: mx.array) -> mx.array:
        """The gradient `[rows, length, d]` at SAE i of what is read at SAE j, at these points of i's path."""
        start, end = self._stages[i], self._stages[j]
        edits = self._held(i, j)
        if any(points):
            shift = mx.concatenate([point * seen.moved[i].written for point in points])
            edits.append(interventions.add(start.point, as_written(self._model, start, shift)))
        tokens = mx.array(np.tile(seen.batch.clean, (len(points), 1)))

        def run(plus: Plus) -> tuple[mx.array, None]:
            added = interventions.edit(start.point, lambda x: plus(start.point, x))
            _, captured = self._model.run(tokens, interventions=[added, *edits], capture=[end.point])
            return mx.sum(flat(captured[end.point], end).astype(mx.float32) * reading), None

        found = flat(slopes(run)[0][start.point], start)
        mx.eval(found)
        return found


def _effects(moved: Move, sae: SAE, slope: mx.array, nodes: Sequence[FeatureNode]) -> Floats:
    """Change times slope of these nodes of one SAE, `[n, nodes]`."""
    of_features, of_error = moved.products(sae, slope)
    columns = [of_error if node.feature is None else of_features[:, node.feature] for node in nodes]
    return np.stack(columns, axis=1)
