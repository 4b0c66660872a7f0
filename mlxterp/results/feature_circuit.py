"""`FeatureCircuitResult`: features of several SAEs, their errors, and the edges between them.
`mlxterp.sae.analysis.circuits` finds them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult
from mlxterp.results.features import feature_component, feature_label
from mlxterp.results.views import Component, Interval, Link, Network, Note, Show, Table, cautions, listed
from mlxterp.text import number, percent

_MOST_ROWS, _MOST_IN_A_ROW = 100, 20


@dataclass(frozen=True, kw_only=True)
class FeatureNode:
    """A feature, or the error, of one SAE, at all counted positions together.

    Attributes:
        hook_point: of its SAE. feature: its index; None for the error.
        effect: the estimated change of the metric when it is ablated. ci: an interval over examples.
    """

    hook_point: str
    feature: int | None
    effect: float = math.nan
    ci: Interval | None = None

    @property
    def label(self) -> str:
        """`L3.resid_post/f42`, or `L3.resid_post/error`."""
        return f"{self.hook_point}/{self.name}"

    @property
    def name(self) -> str:
        """`f42`, or `error`."""
        return "error" if self.feature is None else feature_label(self.feature)


@dataclass(frozen=True, kw_only=True)
class FeatureEdge:
    """The part of the sender's effect that goes through the receiver directly; both are labels of nodes, or
    the receiver is "metric"."""

    sender: str
    receiver: str
    weight: float

    def __str__(self) -> str:
        return f"{self.sender}→{self.receiver}"


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureCircuitResult(AnalysisResult):
    """A circuit of features: what is left after pruning, and how faithful it is.

    Attributes:
        nodes: in forward order, strongest first within an SAE. edges: between them and into the metric.
        hook_points: of the SAEs, in forward order.
        method, node_threshold, edge_threshold: how they were chosen: at least this magnitude, in units of the
            metric.
        metric, clean_metric: what was measured, and its value in the unchanged run.
        circuit_metric, empty_metric, rest_metric: measured with every node outside of the circuit ablated;
            with all nodes ablated; with the nodes of the circuit ablated.
        n_nodes: nodes with an effect other than 0. n_left_out: those above the threshold beyond `max_nodes`.
        ablation: "zero" or "corrupted".
    """

    kind: ClassVar[str] = "feature_circuit"
    nodes: tuple[FeatureNode, ...]
    edges: tuple[FeatureEdge, ...]
    hook_points: tuple[str, ...]
    method: str
    node_threshold: float
    edge_threshold: float
    metric: str
    clean_metric: float
    circuit_metric: float
    empty_metric: float
    rest_metric: float
    n_nodes: int
    n_left_out: int = 0
    ablation: str

    def _check(self) -> None:
        labels = [node.label for node in self.nodes]
        if len(set(labels)) < len(labels):
            raise ResultError("a feature circuit names one node twice. Name each once.")
        known = {*labels, "metric"}
        for edge in self.edges:
            if edge.sender not in known or edge.receiver not in known:
                raise ResultError(f"the edge {edge} joins something that is no node of this circuit.")

    @property
    def faithfulness(self) -> float:
        """(circuit − empty) / (clean − empty): 1 = the circuit does what the model does, 0 = nothing of it.
        NaN where ablating everything changes nothing."""
        return self._share(self.circuit_metric)

    @property
    def rest(self) -> float:
        """The same with the circuit ablated and all else kept: 0 = nothing outside of it does the work."""
        return self._share(self.rest_metric)

    def _share(self, value: float) -> float:
        gap = self.clean_metric - self.empty_metric
        return (value - self.empty_metric) / gap if gap else math.nan

    @property
    def title(self) -> str:
        return f"Feature circuit of {len(self.nodes)} nodes and {len(self.edges)} edges"

    def weight(self, sender: str, receiver: str) -> float:
        """The weight of an edge by the labels of its ends; 0 for one that was pruned."""
        known = {*(node.label for node in self.nodes), "metric"}
        for end in (sender, receiver):
            if end not in known:
                raise ResultError(f"there is no node {end!r}. There are: {', '.join(sorted(known))}.")
        return next((e.weight for e in self.edges if (e.sender, e.receiver) == (sender, receiver)), 0.0)

    def components(self) -> tuple[Component, ...]:
        """The nodes, with their estimated effects."""
        return tuple(
            Component(node.label, node.effect, base.name, base.layer, ci=node.ci)
            for node in self.nodes
            for base in (feature_component(node.feature or 0, node.effect, node.hook_point),)
        )

    def summary(self) -> str:
        errors = sum(node.feature is None for node in self.nodes)
        lines = [
            f"{self._headline()}, {errors} of the nodes errors, at "
            f"{', '.join(self.hook_points)}; {self.n_nodes:,} nodes have an effect.",
            f"{self.metric} is {number(self.clean_metric)} in the unchanged run, "
            f"{number(self.circuit_metric)} with everything outside of the circuit ablated, "
            f"{number(self.empty_metric)} with all ablated, {number(self.rest_metric)} with only the circuit "
            "ablated.",
            f"Faithfulness {percent(self.faithfulness)}; the rest alone {percent(self.rest)}.",
        ]
        top = self.top_components(6)
        if top:
            lines.append(f"Strongest: {listed(top)}.")
        return self._with_limits(*lines, *self._limits())

    def _limits(self) -> tuple[str, ...]:
        found: tuple[str, ...] = ()
        if math.isnan(self.faithfulness):
            found += ("Ablating every node changes nothing, so faithfulness is undefined here.",)
        if self.n_left_out:
            found += (
                f"{self.n_left_out:,} nodes above the threshold were left out: more than `max_nodes` in one "
                "SAE.",
            )
        errors = sum(abs(node.effect) for node in self.nodes if node.feature is None)
        total = sum(abs(node.effect) for node in self.nodes)
        if total and errors > 0.5 * total:
            found += (
                f"Errors carry {percent(errors / total)} of the nodes' effects: much of what happens here is "
                "in no feature.",
            )
        return found

    def shows(self) -> tuple[Show, ...]:
        nodes = sorted(self.nodes, key=lambda node: -abs(node.effect))[:_MOST_ROWS]
        edges = sorted(self.edges, key=lambda edge: -abs(edge.weight))[:_MOST_ROWS]
        drawn: list[Show] = [
            self.network(),
            Table(
                title="Nodes",
                columns=("SAE", "node", "effect"),
                rows=tuple((node.hook_point, node.name, node.effect) for node in nodes),
                caption=f"The strongest {len(nodes)} of {len(self.nodes)}: estimated change when ablated.",
            ),
            Table(
                title="Edges",
                columns=("from", "to", "weight"),
                rows=tuple((edge.sender, edge.receiver, edge.weight) for edge in edges),
                caption=f"The strongest {len(edges)} of {len(self.edges)}.",
            ),
            Note(
                "Nodes and edges were chosen by gradients; faithfulness was measured by ablating everything "
                f"else ({self.ablation} ablation, thresholds {number(self.node_threshold)} and "
                f"{number(self.edge_threshold)})."
            ),
        ]
        return (*drawn, *cautions(self._limits()))

    def network(self) -> Network:
        """The circuit as a graph: a row per SAE, the metric on top; of each SAE the strongest nodes."""
        nodes = [
            node
            for point in self.hook_points
            for node in sorted(
                (each for each in self.nodes if each.hook_point == point), key=lambda n: -abs(n.effect)
            )[:_MOST_IN_A_ROW]
        ]
        at = {node.label: i for i, node in enumerate(nodes)} | {"metric": len(nodes)}
        some = f" (the strongest {len(nodes)} nodes)" if len(nodes) < len(self.nodes) else ""
        return Network(
            title=f"{self.title}{some}",
            labels=(*(node.name for node in nodes), "metric"),
            rows=(*(self._row(node.hook_point) for node in nodes), "metric"),
            links=tuple(
                Link(at[e.sender], at[e.receiver], e.weight)
                for e in self.edges
                if e.sender in at and e.receiver in at
            ),
            unit="estimated change of the metric",
            reading="Each line is the part of its lower node's effect that goes through its upper node.",
        )

    def _row(self, hook_point: str) -> str:
        """A hook point as a narrow row names it: by its layer, if no other SAE is in it."""
        layer, _, name = hook_point.rpartition(".")
        alone = sum(each.rpartition(".")[0] == layer for each in self.hook_points) == 1
        return layer or name if alone else f"{layer} {name.removesuffix('_out').removeprefix('resid_')}"
