"""Feature circuits: the features of several SAEs that a behaviour goes through, the edges between them, and
the faithfulness of running the model with these alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp.causal.batching.rows import last, last_position_only, measuring
from mlxterp.causal.finite import require_finite
from mlxterp.causal.gradients.backward import (
    Plus,
    differentiable,
    gradients,
    refuse_at_its_minimum,
    slopes,
)
from mlxterp.component_names import LAYER_NAMES
from mlxterp.core import interventions
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention
from mlxterp.core.model import InterpretableModel
from mlxterp.core.selection import Positions
from mlxterp.errors import SAEError
from mlxterp.measurements import recorder
from mlxterp.metrics import Floats, Metric, MetricFunction
from mlxterp.results import FeatureCircuitResult, FeatureEdge, FeatureNode
from mlxterp.sae.analysis.attribution import (
    Method,
    Move,
    as_written,
    mean_slope,
    move,
    path,
    refuse_behind_the_blocks,
)
from mlxterp.sae.analysis.interventions import flat, refuse_transcoder
from mlxterp.sae.analysis.runs import Ablation, Runs, chosen_ablation, intervals, prepare
from mlxterp.sae.analysis.texts import BATCH_TOKENS, Batch, Given
from mlxterp.sae.sae import SAE


@dataclass(frozen=True)
class NodeSet:
    """Nodes of one SAE: these features or, if `inverted`, all others; and the error or not."""

    features: frozenset[int]
    error: bool
    inverted: bool = False

    @classmethod
    def of(cls, nodes: Sequence[FeatureNode], sae: SAE) -> NodeSet:
        """The nodes of a circuit that belong to this SAE."""
        own = [node.feature for node in nodes if node.hook_point == sae.hook_point]
        return cls(frozenset(f for f in own if f is not None), None in own)

    def complement(self) -> NodeSet:
        """All nodes that are not in this set."""
        return replace(self, error=not self.error, inverted=not self.inverted)

    def mask(self, d_sae: int) -> mx.array:
        """`[d_sae]`, True for the features in the set."""
        inside = np.isin(np.arange(d_sae), list(self.features))
        return mx.array(~inside if self.inverted else inside)


def metric_of_nodes(
    model: InterpretableModel,
    saes: Sequence[SAE],
    runs: Runs,
    nodes: Sequence[NodeSet] | None,
    ablation: Ablation,
) -> Floats:
    """The metric of each example `[n]` with all other nodes ablated, at the counted positions.

    The nodes given have the values that they take in this very run. None: all nodes, which is the model. One
    forward per example, besides those for the values of the ablated nodes.
    """
    values = np.empty(len(runs.texts.examples))
    for batch in runs.texts.batches:
        edits = []
        if nodes is not None:
            for sae, own in zip(saes, nodes, strict=True):
                moved = move(model, sae, batch, ablation)
                edits.append(interventions.edit(sae.point, _ablate_others(sae, own, batch, moved)))
        with measuring(model), last_position_only(model, ()):
            logits, _ = model.run(mx.array(batch.clean), interventions=edits)
            values[batch.examples] = runs.read(last(logits), batch.examples)
    return values


def _ablate_others(sae: SAE, nodes: NodeSet, batch: Batch, moved: Move) -> Callable[[mx.array], mx.array]:
    mask, counts = nodes.mask(sae.d_sae), mx.array(batch.counted[..., None])
    ablated_acts, ablated_error = moved.seen.acts + moved.acts, moved.seen.error + moved.error

    def edit(x: mx.array) -> mx.array:
        vectors = flat(x, sae).astype(mx.float32)
        acts = sae.encode(vectors)
        new = mx.where(mask, acts, ablated_acts)
        # With the error among the nodes only the features' terms change, so that all nodes change nothing.
        edited = vectors + (new - acts) @ sae.W_dec if nodes.error else sae.decode(new) + ablated_error
        return mx.where(counts, edited, vectors).reshape(x.shape)

    return edit


def _node_name(sae: SAE, index: int) -> str:
    return f"{sae.hook_point} {f'feature {index}' if index < sae.d_sae else 'error'}"


BOTTLENECKS = ("embed", "resid_pre", "resid_mid", "resid_post")
"""Hook points that no path goes around."""


@dataclass(frozen=True, eq=False)
class _BatchSlopes:
    """A batch in the unchanged run: per SAE, the change of its nodes by ablation, and the metric's slope
    there."""

    batch: Batch
    moved: list[Move]
    slopes: list[mx.array]


class CircuitSearch:
    """Measures once what nodes and edges are computed from."""

    def __init__(
        self,
        model: InterpretableModel,
        stages: list[SAE],
        runs: Runs,
        ablation: Ablation,
        points: Sequence[float],
    ) -> None:
        self._model, self._stages, self._runs, self._points = model, stages, runs, points
        self._seen = [self._slopes(batch, ablation) for batch in runs.texts.batches]

    def _slopes(self, batch: Batch, ablation: Ablation) -> _BatchSlopes:
        moved = [move(self._model, sae, batch, ablation) for sae in self._stages]
        found = [
            mean_slope(self._model, sae, self._runs, batch, each, self._points)
            for sae, each in zip(self._stages, moved, strict=True)
        ]
        return _BatchSlopes(batch, moved, found)

    def nodes(self, threshold: float, most: int) -> tuple[tuple[FeatureNode, ...], int, int]:
        """The nodes of the circuit, how many more are above the threshold, and how many have an effect at
        all."""
        found: list[FeatureNode] = []
        left_out = n_nodes = 0
        n = len(self._runs.texts.examples)
        for i, sae in enumerate(self._stages):
            effects = np.zeros((n, sae.d_sae + 1))  # the error last
            for seen in self._seen:
                of_features, of_error = seen.moved[i].products(sae, seen.slopes[i])
                effects[seen.batch.examples] = np.concatenate([of_features, of_error[:, None]], axis=1)
            require_finite(
                effects,
                partial(_node_name, sae),
                "effects of features by gradients",
                "A part of this model has no finite gradient there. Use `feature_effects`, which ablates.",
            )
            mean, bounds = effects.mean(axis=0), intervals(effects)
            n_nodes += int((mean != 0).sum())
            strong = np.flatnonzero(np.abs(mean) > threshold)
            order = strong[np.argsort(-np.abs(mean[strong]), kind="stable")].tolist()
            features = [f for f in order if f < sae.d_sae]
            left_out += max(0, len(features) - most)
            for f in [*features[:most], *([sae.d_sae] if sae.d_sae in order else [])]:
                ci = None if bounds is None else (float(bounds[0][f]), float(bounds[1][f]))
                found.append(
                    FeatureNode(
                        hook_point=sae.hook_point,
                        feature=f if f < sae.d_sae else None,
                        effect=float(mean[f]),
                        ci=ci,
                    )
                )
        return tuple(found), left_out, n_nodes

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
            require_finite(
                np.asarray(weights).T,
                [sender.label for sender in own[i]],
                f"edges into {self._stages[j].hook_point if j < len(own) else 'the metric'} by gradients",
                "A part of this model has no finite gradient there. Give SAEs that stand behind it.",
            )
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
        """Whether every path from SAE i to SAE j passes an SAE between them."""
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

    def _reading(self, seen: _BatchSlopes, j: int, node: FeatureNode) -> mx.array:
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

    def _back(
        self, i: int, j: int, seen: _BatchSlopes, points: Sequence[float], reading: mx.array
    ) -> mx.array:
        """The gradient `[rows, length, d]` at SAE i of what is read at SAE j, at these points of i's path."""
        start, end = self._stages[i], self._stages[j]
        edits = self._held(i, j)
        if any(points):
            shift = mx.concatenate([point * seen.moved[i].written for point in points])
            edits.append(interventions.add(start.point, as_written(self._model, start, shift)))
        tokens = mx.array(np.tile(seen.batch.clean, (len(points), 1)))

        def run(plus: Plus) -> tuple[mx.array, None]:
            added = interventions.edit(start.point, lambda x: plus(start.point, x))
            with self._model.architecture.float32_stream():
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


def feature_circuit(
    model: InterpretableModel,
    saes: Sequence[SAE],
    text: Given,
    *,
    node_threshold: float = 0.1,
    edge_threshold: float = 0.01,
    method: Method = "gradient",
    steps: int | None = None,
    metric: str | MetricFunction | Metric | None = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    ablation: Ablation | None = None,
    positions: Positions = None,
    max_nodes: int = 64,
    seed: int = 0,  # noqa: ARG001 - of earlier versions, whose intervals were drawn
    progress: Callable[[int, int], None] | None = None,
) -> FeatureCircuitResult:
    """A circuit of features across layers: nodes, edges, and its faithfulness by exact ablation.

    Each SAE splits its activation into features and an error, and the error is a node like the features, so
    nothing of the model is left out.

        node      Δ_u ∂m/∂u: the change of the metric when u is ablated (`feature_attribution`)
        edge u→d  Δ_u · ∂d/∂u · ∂m/∂d, with the SAEs between the two held: u's effect directly through d

    By "gradient" everything is taken in the unchanged run, and the edges that leave a node, those into errors
    and the metric included, add up to the node's effect. By "ig" each slope is a mean along the path from
    there to where the SAE is ablated: ∂m/∂u and ∂d/∂u along u's, ∂m/∂d along d's. That sees through
    saturated attention, whose slope in the unchanged run is near 0.

    Args:
        saes: at different hook points, in any order; two or more, or one.
        text, answer, foil, ablation, positions, method, steps, metric, seed: as for `feature_attribution`.
        node_threshold, edge_threshold: the least magnitude, in units of the metric; the paper's values.
        max_nodes: at most this many features of one SAE; the result counts those beyond it.
        progress: called with (passes done, passes in all).

    Costs a node attribution per SAE, a forward and a backward for every node and every SAE before it
    (each once per step), and three forwards for the faithfulness.

    Raises:
        SAEError: two SAEs at one hook point; a transcoder.

    Source: Marks et al. 2024 (2403.19647). Nodes are summed over positions. A receiver that does not fire in
    the unchanged run has no slope, so no edges into it, as there. Faithfulness is between the unchanged run
    and the run with all nodes ablated; what is ablated is "zero" or "corrupted", not a mean.
    """
    points = path(method, steps)
    stages = in_order(saes)
    runs = prepare(
        model, text, metric, answer=answer, foil=foil, positions=positions, own_answer=metric is None
    )
    chosen = chosen_ablation(ablation, runs.texts)
    if method == "gradient":
        refuse_at_its_minimum(runs.metric, "clean")
    search = CircuitSearch(model, stages, runs, chosen, points)
    nodes, left_out, n_nodes = search.nodes(node_threshold, max_nodes)
    edges = search.edges(nodes, edge_threshold, progress)
    sets = [NodeSet.of(nodes, sae) for sae in stages]
    nothing = [NodeSet.of((), sae) for sae in stages]
    clean, empty, circuit, rest = (
        float(metric_of_nodes(model, stages, runs, each, chosen).mean())
        for each in (None, nothing, sets, [each.complement() for each in sets])
    )
    options: dict[str, Any] = {"ablation": chosen, "method": method, "steps": len(points)}
    recorder.add_method("feature_circuit")
    return FeatureCircuitResult(
        nodes=nodes,
        edges=edges,
        hook_points=tuple(sae.hook_point for sae in stages),
        method=method,
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        metric=runs.metric.name,
        clean_metric=clean,
        circuit_metric=circuit,
        empty_metric=empty,
        rest_metric=rest,
        n_nodes=n_nodes,
        n_left_out=left_out,
        ablation=chosen,
        measured_on=runs.measured_on(model, *stages) | options,
    )


def in_order(saes: Sequence[SAE]) -> list[SAE]:
    """The SAEs in the order of a forward; SAEError for two at one hook point, or a transcoder."""
    if not saes:
        raise SAEError("a feature circuit without SAEs. Pass at least one, in a list.")
    for sae in saes:
        refuse_transcoder(sae, "a node of a circuit")
        refuse_behind_the_blocks(sae)
    points = [sae.hook_point for sae in saes]
    if len(set(points)) < len(points):
        raise SAEError(f"SAEs at {', '.join(points)}: two at one hook point split the same activation twice.")
    return sorted(saes, key=lambda sae: _place(sae.point))


def _place(point: HookPoint) -> tuple[int, int]:
    if point.layer is None:
        if point.name != "embed":
            raise SAEError(f"an SAE at {point}: where a module stands in the forward order is not known.")
        return -1, 0
    return point.layer, LAYER_NAMES.index(point.name)
