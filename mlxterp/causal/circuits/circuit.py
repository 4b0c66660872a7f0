"""A circuit: a set of edges, and what follows from it without running a model.

Its nodes, its connected part, and how well scores rank known edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxterp.causal.circuits.graph import (
    Edge,
    Graph,
    Node,
    parse_edge,
    parse_node,
)
from mlxterp.errors import SweepError
from mlxterp.results import CircuitResult
from mlxterp.results.circuit import node_order
from mlxterp.statistics.intervals import auroc

EdgeScores: TypeAlias = Mapping[Edge, float] | Mapping[str, float] | ArrayLike
"""A number per edge of a model: a mapping from every edge, or an array in the order of `Graph.edges()`."""


@dataclass(frozen=True)
class Circuit:
    """A set of edges."""

    edges: frozenset[Edge]

    @classmethod
    def of(cls, edges: Circuit | CircuitResult | Iterable[Edge | str]) -> Circuit:
        """From edges, their names (`L0.H2→L1.H1.k`), or what `acdc` found."""
        if isinstance(edges, Circuit):
            return edges
        listed = [str(e) for e in edges.edges] if isinstance(edges, CircuitResult) else list(edges)
        return cls(frozenset(parse_edge(e) if isinstance(e, str) else e for e in listed))

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes that the edges join, in forward order."""
        ends = {end for edge in self.edges for end in (edge.sender, edge.receiver)}
        return tuple(sorted(ends, key=lambda node: node_order(str(node))))

    @property
    def components(self) -> tuple[Node, ...]:
        """The heads and MLPs that write something, in forward order."""
        senders = {edge.sender for edge in self.edges}
        return tuple(node for node in self.nodes if node in senders and node.kind != "input")

    def without(self, nodes: Iterable[Node | str]) -> Circuit:
        """The circuit without these nodes: without every edge out of or into them."""
        gone = {parse_node(node) if isinstance(node, str) else node for node in nodes}
        return Circuit(frozenset(e for e in self.edges if e.sender not in gone and e.receiver not in gone))

    def connected(self, graph: Graph) -> Circuit:
        """The edges that lie on a path from the input to the logits: the others change nothing, or nothing
        reads what they change."""
        into: dict[Node, list[Edge]] = {}
        for edge in self.edges:
            into.setdefault(edge.receiver, []).append(edge)
        reached = {graph.senders[0]}
        inputs = dict.fromkeys(node for node, _ in graph.receivers)
        for receiver in inputs:
            if any(edge.sender in reached for edge in into.get(receiver, ())):
                reached.update(graph.readers(receiver))
        leads: set[Node] = set()
        kept: set[Edge] = set()
        for receiver in reversed(inputs):
            readers = graph.readers(receiver)
            if not readers or not leads.isdisjoint(readers):
                found = [edge for edge in into.get(receiver, ()) if edge.sender in reached]
                kept.update(found)
                leads.update(edge.sender for edge in found)
        return Circuit(frozenset(kept))

    def __len__(self) -> int:
        return len(self.edges)

    def __contains__(self, edge: Edge | str) -> bool:
        return (parse_edge(edge) if isinstance(edge, str) else edge) in self.edges


def scores_in_order(graph: Graph, scores: EdgeScores) -> NDArray[np.float64]:
    """`[n_edges]` in the order of `graph.edges()`.

    Raises:
        SweepError: an edge without a score, a score of no edge, or one that is no number.
    """
    if isinstance(scores, Mapping):
        given = {str(edge): float(score) for edge, score in scores.items()}
        names = [str(edge) for edge in graph.edges()]
        missing = [name for name in names if name not in given]
        unknown = sorted(set(given) - set(names))
        if missing or unknown:
            what = f"{missing[0]} has no score" if missing else f"{unknown[0]} is no edge of this model"
            raise SweepError(
                f"{len(given)} scores for {len(names)} edges: {what}. Give every edge one score."
            )
        values = np.array([given[name] for name in names])
    else:
        values = np.asarray(scores, dtype=np.float64)
        if values.shape != (graph.n_edges,):
            raise SweepError(
                f"scores of shape {values.shape} for {graph.n_edges} edges. Give one number per edge, in the "
                "order of Graph.edges(), or a mapping."
            )
    if not np.isfinite(values).all():
        raise SweepError("a score is not finite, so it has no rank. Give finite scores.")
    return values


def roc_auc(
    scores: Sequence[float] | NDArray[np.float64], known: Sequence[bool] | NDArray[np.bool_]
) -> float:
    """The probability that a known edge scores higher than another one; ties count half.

    The rank statistic of Mann and Whitney, which is the whole area under the ROC curve. 0.5 = chance.

    Raises:
        SweepError: no known edge, or no other.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(known, dtype=bool)
    if values.shape != truth.shape or values.ndim != 1:
        raise SweepError(f"{values.shape} scores and {truth.shape} known edges. Give one of each per edge.")
    n_true, n_false = int(truth.sum()), int((~truth).sum())
    if not n_true or not n_false:
        raise SweepError(
            f"{n_true} known edges among {len(truth)}: an area needs known edges and others. Give both."
        )
    return auroc(values[truth], values[~truth]).value
