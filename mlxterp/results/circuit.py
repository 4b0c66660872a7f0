"""`CircuitResult`: the edges of a model that a method kept, with the nodes they join. `mlxterp.causal` finds
them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import Component, Link, Network, Note, Show, Table, number
from mlxterp.results.values import NUMBER, converted, to_number

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


def _to_edges(edges: Iterable[CircuitEdge | Mapping[str, Any]]) -> tuple[CircuitEdge, ...]:
    return tuple(_to_edge(edge) for edge in edges)


def _to_edge(edge: CircuitEdge | Mapping[str, Any]) -> CircuitEdge:
    data = dict(vars(edge) if isinstance(edge, CircuitEdge) else edge)
    return CircuitEdge(**data | {"effect": to_number(data["effect"])})


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
    edges: tuple[CircuitEdge, ...] = field(metadata=converted(_to_edges))
    method: str
    threshold: float = field(metadata=NUMBER)
    metric: str
    clean_metric: float = field(metadata=NUMBER)
    corrupted_metric: float = field(metadata=NUMBER)
    circuit_metric: float = field(metadata=NUMBER)
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
        how = f"{self.method}, threshold {number(self.threshold)}"
        return f"Circuit of {len(self.edges)} edges ({how})"

    def components(self) -> tuple[Component, ...]:
        """Every edge, with what removing it added to the loss."""
        return tuple(Component(str(edge), edge.effect, name=edge.into) for edge in self.edges)

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        lines = [
            f"{self.title}{f' ({on})' if on else ''}, of {self.n_edges:,} in the model; "
            f"{self.n_tested:,} were tested.",
            f"{self.metric} is {number(self.circuit_metric)} with these edges only, "
            f"{number(self.clean_metric)} with all, {number(self.corrupted_metric)} with none.",
        ]
        if self.edges:
            lines.append(f"Nodes: {', '.join(self.nodes)}.")
        return "\n".join(lines)

    def shows(self) -> tuple[Show, ...]:
        strongest = sorted(self.edges, key=lambda e: -abs(e.effect) if e.effect == e.effect else 0.0)
        shown = strongest[:_MOST_ROWS]
        table = Table(
            title="Edges",
            columns=("from", "to", "input", "loss added by removing it"),
            rows=tuple((e.sender, e.receiver, e.into, e.effect) for e in shown),
            caption=f"The {len(shown)} strongest of {len(self.edges)}." if shown != strongest else "",
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
        rows, labels = zip(*(_row_and_label(node) for node in nodes), strict=True) if nodes else ((), ())
        return Network(
            title=self.title,
            labels=labels,
            rows=rows,
            links=tuple(
                Link(at[e.sender], at[e.receiver], e.effect, e.into if e.into in _INPUTS else "")
                for e in self.edges
            ),
            unit="loss added by removing it",
            reading="Each line is an edge that was kept: the stronger, the more loss without it.",
        )


def _row_and_label(node: str) -> tuple[str, str]:
    layer, _, name = node.partition(".")
    return (f"{layer} MLP" if name == "mlp" else layer, name or node)


def node_order(node: str) -> tuple[int, int, int]:
    """Sorts names of nodes as a forward computes them."""
    if node in ("input", "logits"):
        return (-1 if node == "input" else 1 << 30, 0, 0)
    layer, _, name = node.partition(".")
    if not (layer[:1] == "L" and layer[1:].isdecimal() and name):
        raise ResultError(f"{node!r} is no node. Nodes are: input, L3.H2, L3.KV1, L3.mlp, logits.")
    kind = 2 if name == "mlp" else 1 if name.startswith("H") else 0
    index = "".join(c for c in name if c.isdecimal())
    return int(layer[1:]), kind, int(index or 0)
