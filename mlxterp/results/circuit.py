"""Edges of a model's graph: the circuit that a method kept, a score for every edge, and how well circuits do
the work of their model. `mlxterp.causal.circuits` and `mlxterp.causal.gradients` measure them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult
from mlxterp.results.search import SEARCHED, MeasuredAgain, measured_again_text
from mlxterp.results.views import (
    Component,
    Floats,
    Heatmap,
    Interval,
    Link,
    Network,
    Note,
    Show,
    Table,
    bars,
    cautions,
    heatmap,
    intervals,
    listed,
)
from mlxterp.statistics.significance import p_among_controls
from mlxterp.text import number

_MOST_ROWS = 200
_INPUTS = ("q", "k", "v")


@dataclass(frozen=True, kw_only=True)
class CircuitEdge:
    """One edge, written `L0.H2→L1.H1.k`.

    Attributes:
        sender: `input`, `L0.H2` or `L0.mlp`.
        receiver: `L1.H1`, `L1.mlp`, `logits`; where query heads share keys and values, `L1.KV0`.
        into: which input of the receiver: "q", "k", "v", "mlp" or "logits".
        effect: what removing the edge added to the loss when the method tested it; NaN if it was not tested.
    """

    sender: str
    receiver: str
    into: str
    effect: float = float("nan")

    def __str__(self) -> str:
        return f"{self.sender}→{self.receiver}{f'.{self.into}' if self.into in _INPUTS else ''}"


@dataclass(frozen=True, eq=False, kw_only=True)
class CircuitResult(AnalysisResult):
    """A circuit: the edges that are left, the others carrying the corrupted prompt's values.

    Attributes:
        edges: what is left, in forward order of the receivers.
        method, threshold: how they were chosen: "acdc" and its τ.
        metric, clean_metric, corrupted_metric: what was measured, with all edges and with none.
        circuit_metric: the same with these edges only.
        n_edges: of the whole model. n_tested: how many of them the method tested one by one.
    """

    kind: ClassVar[str] = "circuit"
    edges: tuple[CircuitEdge, ...]
    method: str
    threshold: float
    metric: str
    clean_metric: float
    corrupted_metric: float
    circuit_metric: float
    n_edges: int
    n_tested: int

    def _check(self) -> None:
        if len({str(edge) for edge in self.edges}) < len(self.edges):
            raise ResultError("a circuit names one edge twice. Name each once.")
        if len(self.edges) > self.n_edges:
            raise ResultError(f"a circuit of {len(self.edges)} edges in a model of {self.n_edges}.")

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that the edges join, in forward order: input, heads and MLPs by layer, logits."""
        return tuple(sorted({end for e in self.edges for end in (e.sender, e.receiver)}, key=node_order))

    @property
    def heads(self) -> tuple[str, ...]:
        """The attention heads among the nodes."""
        return tuple(node for node in self.nodes if ".H" in node)

    @property
    def title(self) -> str:
        return f"Circuit of {len(self.edges)} edges ({self.method}, threshold {number(self.threshold)})"

    def components(self) -> tuple[Component, ...]:
        """Every edge, with what removing it added to the loss."""
        return tuple(Component(str(edge), edge.effect, name=edge.into) for edge in self.edges)

    def summary(self) -> str:
        lines = [
            f"{self._headline()}, of {self.n_edges:,} in the model; {self.n_tested:,} were tested.",
            f"{self.metric} is {number(self.circuit_metric)} with these edges only, "
            f"{number(self.clean_metric)} with all, {number(self.corrupted_metric)} with none.",
        ]
        if self.edges:
            lines.append(f"Nodes: {', '.join(self.nodes)}.")
        return self._with_limits(*lines)

    def shows(self) -> tuple[Show, ...]:
        ranked = sorted(self.edges, key=lambda e: -abs(e.effect) if e.effect == e.effect else 0.0)
        shown = ranked[:_MOST_ROWS]
        table = Table(
            title="Edges",
            columns=("from", "to", "input", "loss added by removing it"),
            rows=tuple((e.sender, e.receiver, e.into, e.effect) for e in shown),
            caption=f"The {len(shown)} strongest of {len(ranked)}." if len(shown) < len(ranked) else "",
        )
        text = (
            f"All other edges carry what they carry on the corrupted prompt. Another ablation, or another "
            f"corrupted prompt, can give another circuit ({self.metric}, threshold {number(self.threshold)})."
        )
        return self.network(), table, Note(text)

    def network(self) -> Network:
        """The circuit as nodes in rows, one row for a layer's heads and one for its MLP."""
        nodes = self.nodes
        at = {node: i for i, node in enumerate(nodes)}
        parts = [(layer, name or layer) for layer, _, name in (node.partition(".") for node in nodes)]
        return Network(
            title=self.title,
            labels=tuple(name for _, name in parts),
            rows=tuple(f"{layer} MLP" if name == "mlp" else layer for layer, name in parts),
            links=tuple(
                Link(at[e.sender], at[e.receiver], e.effect, e.into if e.into in _INPUTS else "")
                for e in self.edges
            ),
            unit="loss added by removing it",
            reading="Each line is an edge that was kept: the stronger, the more loss without it.",
        )


def node_order(node: str) -> tuple[int, int, int]:
    """Sorts names of nodes as a forward computes them: the layer, 1 for a head and 2 for an MLP, the head."""
    if node in ("input", "logits"):
        return (-1 if node == "input" else 1 << 30, 0, 0)
    layer, _, name = node.partition(".")
    if not (layer[:1] == "L" and layer[1:].isdecimal() and name):
        raise ResultError(f"{node!r} is no node. Nodes are: input, L3.H2, L3.KV1, L3.mlp, logits.")
    kind = 2 if name == "mlp" else 1 if name.startswith("H") else 0
    index = "".join(c for c in name if c.isdecimal())
    return int(layer[1:]), kind, int(index or 0)


_METHODS = {
    "eap": "Edge attribution patching (EAP)",
    "eap-ig": "Edge attribution patching with integrated gradients (EAP-IG)",
    "clean-corrupted": "Edge attribution patching with gradients at both ends",
}
_LAYER = re.compile(r"L(\d+)\.")


@dataclass(frozen=True, eq=False, kw_only=True)
class EdgeScoresResult(AnalysisResult):
    """Scores of edges, as `causal.graph` names them: `L0.H2→L1.H1.k`, `input→L3.mlp`, `L1.H1→logits`.

    Attributes:
        edges: every edge, by receiver in forward order, then by sender.
        scores: one per edge: the estimated share of the gap (clean − corrupted metric) that goes when the
            edge carries its sender's corrupted value. Positive: the edge supports the behaviour.
        method: "eap", "eap-ig" or "clean-corrupted"; `steps` are those of "eap-ig".
        metric, clean_metric, corrupted_metric: what was measured, and both baselines.
        per_example: [n_examples, n_edges] when several pairs were measured.
        ci_low, ci_high: an interval around each score, for itself: not for all edges at once.
        measured_again: the strongest edges of half of the pairs, estimated on the other half.
        chosen_on: which pairs, from 0, chose them.
    """

    kind: ClassVar[str] = "edge_scores"
    edges: tuple[str, ...]
    scores: Floats
    method: str
    steps: int | None = None
    metric: str
    clean_metric: float
    corrupted_metric: float
    per_example: Floats | None = None
    ci_low: Floats | None = None
    ci_high: Floats | None = None
    measured_again: tuple[MeasuredAgain, ...] = ()
    chosen_on: tuple[int, ...] = ()

    def _check(self) -> None:
        self._require_one_of("method", _METHODS)
        n = len(self.edges)
        wrong = [edge for edge in self.edges if edge.count("→") != 1]
        if wrong:
            raise ResultError(f"the edge {wrong[0]!r} has no two ends. Write it as in 'L0.H2→L1.H1.k'.")
        self._require_shape(("scores", "ci_low", "ci_high"), (n,), f"{n} edges")
        if self.per_example is not None and self.per_example.shape[1:] != (n,):
            raise ResultError(
                f"per_example of shape {self.per_example.shape} for {n} edges; it is [n_examples, n_edges]."
            )

    @property
    def title(self) -> str:
        steps = f", {self.steps} steps" if self.steps else ""
        return f"{_METHODS[self.method]}{steps}: {len(self.edges):,} edges"

    @property
    def metric_changes(self) -> Floats:
        """The estimates in units of the metric, as the papers write them: negative where an edge supports the
        metric."""
        return -self.scores * (self.clean_metric - self.corrupted_metric)

    @property
    def whole_input(self) -> float:
        """The sum over the edges that leave the input: the estimate of corrupting all of it, truly 1."""
        return float(sum(s for edge, s in zip(self.edges, self.scores, strict=True) if edge[:6] == "input→"))

    def score(self, edge: str) -> float:
        """The score of one edge, by its name; `->` is read as an arrow too."""
        name = edge.replace("->", "→")
        if name not in self.edges:
            raise ResultError(
                f"there is no edge {edge!r}. Edges are written as in {self.edges[0]} or {self.edges[-1]}; "
                f"the strongest are: {', '.join(c.label for c in self.top_components(5))}."
            )
        return float(self.scores[self.edges.index(name)])

    def components(self) -> tuple[Component, ...]:
        ends = intervals(self.ci_low, self.ci_high, len(self.edges))
        scores = self.scores.tolist()
        return tuple(
            Component(edge, score, name="edge", ci=ci)
            for edge, score, ci in zip(self.edges, scores, ends, strict=True)
        )

    def summary(self) -> str:
        lines = [
            f"{self._headline()}.",
            f"{self.metric}: clean {number(self.clean_metric)}, corrupted {number(self.corrupted_metric)}. "
            "A score is the estimated share of this gap that goes when the edge carries the corrupted value.",
        ]
        top = self.top_components(6)
        if top:
            lines.append(f"Strongest of {len(self.edges):,}: {listed(top)}.")
        return self._with_limits(*lines, *filter(None, [self.search_text()]), *self._limits())

    def search_text(self) -> str:
        """What the strongest of so many edges are worth: on pairs that did not choose them, or why that is
        not known."""
        if not self.measured_again:
            return f"Scored on {SEARCHED}." if self.edges else ""
        others = (0 if self.per_example is None else len(self.per_example)) - len(self.chosen_on)
        return measured_again_text(self.measured_again, len(self.chosen_on), others, measured="estimated")

    def _limits(self) -> tuple[str, ...]:
        first_order = (
            "Estimated to first order, no edge was patched: confirm what matters by patching. The edges from "
            f"the input add up to {number(self.whole_input)}; in a linear model, to 1."
        )
        if self.method != "eap":
            return (first_order,)
        return first_order, (
            "Where attention is saturated (one key has nearly all of it) the gradient at queries and keys is "
            "near 0, and edges into them are missed. EAP-IG sees them."
        )

    def shows(self) -> tuple[Show, ...]:
        top = self.top_components(20)
        reading = "Share of the gap lost when the edge carries the corrupted value; an estimate."
        table = Table(
            title="Strongest edges",
            columns=("sender", "receiver", "score", *(("from", "to") if top and top[0].ci else ())),
            rows=tuple((*c.label.split("→"), c.effect, *(c.ci or ())) for c in top),
            caption=f"The strongest {len(top)} of {len(self.edges):,} edges.",
        )
        drawn = bars(top, title="Strongest edges", unit="score", reading=reading)
        searched = [Note(text)] if (text := self.search_text()) else []
        return drawn, self._map(), table, *searched, *cautions(self._limits())

    def _map(self) -> Heatmap:
        """Between each two layers, the score of largest magnitude."""
        ends = [tuple(map(_layer, edge.split("→"))) for edge in self.edges]
        rows, columns = (
            {name: i for i, name in enumerate(dict.fromkeys(side))} for side in zip(*ends, strict=True)
        )
        found = np.zeros((len(rows), len(columns)))
        for (sender, receiver), score in zip(ends, self.scores.tolist(), strict=True):
            where = rows[sender], columns[receiver]
            if abs(score) > abs(found[where]):
                found[where] = score
        return heatmap(
            found,
            title="Between layers: the strongest edge",
            rows=("from", tuple(rows)),
            columns=("to", tuple(columns)),
            unit="score",
            reading="Rows write, columns read.",
        )


def _layer(name: str) -> str:
    found = _LAYER.match(name)
    return f"L{found[1]}" if found else name


_GROUPS = ("found", "searched", "without", "comparison", "random")


def rounded(faithfulness: float) -> str:
    """A faithfulness as a person reads it; what is 0 but for rounding is 0."""
    return number(0.0 if abs(faithfulness) < 1e-9 else faithfulness)


@dataclass(frozen=True, kw_only=True)
class FaithfulnessRow:
    """One circuit, run with every other edge carrying the corrupted prompt's value.

    Attributes:
        label: how a reader names it: `the circuit`, `all but the circuit`, `random edges 1`.
        n_edges: how many edges it has.
        value: the metric with these edges only, as a mean over pairs.
        faithfulness: (value − corrupted) / (clean − corrupted): 1 = as the model, 0 = as the corrupted run.
        group: "found" for the circuit itself, "searched" for the same on the pairs that the search used,
            where the others are of other pairs; "without" for the model without it, "comparison" and "random"
            for circuits of as many edges chosen otherwise.
        ci: an interval around `faithfulness`.
    """

    label: str
    n_edges: int
    value: float
    faithfulness: float
    group: str = "found"
    ci: Interval | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class FaithfulnessResult(AnalysisResult):
    """Circuits and their faithfulness (Mueller et al. 2025, MIB): f(C) = (m(C) − m(∅)) / (m(M) − m(∅)).

    Attributes:
        rows: one per circuit, the one that was found first.
        metric, clean_metric, corrupted_metric: what was measured, with every edge and with none.
        n_edges: of the whole model.
    """

    kind: ClassVar[str] = "faithfulness"
    rows: tuple[FaithfulnessRow, ...]
    metric: str
    clean_metric: float
    corrupted_metric: float
    n_edges: int

    def _check(self) -> None:
        unknown = sorted({row.group for row in self.rows} - set(_GROUPS))
        if unknown:
            raise ResultError(f"faithfulness rows in the groups {unknown}. Groups are: {', '.join(_GROUPS)}.")
        if not any(row.group == "found" for row in self.rows):
            raise ResultError("no row is in the group 'found'. Give the circuit that this is about.")

    @property
    def faithfulness(self) -> float:
        """Of the circuit that was found."""
        return next(row.faithfulness for row in self.rows if row.group == "found")

    @property
    def title(self) -> str:
        return "Faithfulness of the circuit"

    def row(self, label: str) -> FaithfulnessRow:
        """The row of this label; an unknown one raises ResultError, listing the rows."""
        for each in self.rows:
            if each.label == label:
                return each
        there = ", ".join(each.label for each in self.rows)
        raise ResultError(f"no circuit {label!r}. There are: {there}. Name one of these.")

    def of(self, group: str) -> tuple[float, ...]:
        """The faithfulness of each row of a group, those that are numbers."""
        if group not in _GROUPS:
            raise ResultError(f"no group {group!r}. Groups are: {', '.join(_GROUPS)}.")
        return tuple(r.faithfulness for r in self.rows if r.group == group and math.isfinite(r.faithfulness))

    @property
    def p_among_random(self) -> float | None:
        """The rank of the circuit among the random ones: (1 + those at least as faithful) / (1 + all). None
        without random ones; it takes 19 for p = 0.05."""
        random = self.of("random")
        return p_among_controls(self.faithfulness, random) if random else None

    def summary(self) -> str:
        lines = [
            f"{self._headline()}. {self.metric}: {number(self.clean_metric)} with all {self.n_edges:,} "
            f"edges, {number(self.corrupted_metric)} with none."
        ]
        for row in self.rows:
            if row.group != "random":
                interval = f", interval {rounded(row.ci[0])} to {rounded(row.ci[1])}" if row.ci else ""
                lines.append(
                    f"{row.label} ({row.n_edges:,} edges): faithfulness {rounded(row.faithfulness)}"
                    f"{interval} ({self.metric} {number(row.value)})."
                )
        random = self.of("random")
        if random:
            ends = f"{rounded(min(random))} to {rounded(max(random))}"
            lines.append(
                f"{len(random)} random sets of as many edges between the same layers: {ends}; the circuit's "
                f"p = {number(self.p_among_random or 1.0, 2)} by rank."
            )
        return self._with_limits(*lines)

    def shows(self) -> tuple[Show, ...]:
        drawn = bars(
            (Component(row.label, row.faithfulness, ci=row.ci) for row in self.rows),
            title=self.title,
            unit="faithfulness",
            accented=[i for i, row in enumerate(self.rows) if row.group == "found"],
            grey="what it is compared with",
            references=((1.0, "the whole model"),),
            reading="1 is as the model, 0 as the corrupted run; other edges carry the corrupted values.",
        )
        table = Table(
            title="Circuits",
            columns=("circuit", "edges", self.metric, "faithfulness", "group"),
            rows=tuple((r.label, r.n_edges, r.value, r.faithfulness, r.group) for r in self.rows),
        )
        note = (
            "Faithfulness depends on what stands in for the other edges (Miller et al. 2024): these are "
            "resampled from the corrupted prompt."
        )
        return drawn, table, Note(note)
