"""A model as a graph of values: what writes to the residual stream, and what reads from it.

Nodes write: the `input` (the embedding), each head `L3.H2`, each MLP `L3.mlp`; `logits` only reads. An edge
runs from a writer to one input of a later reader: a head's queries `q`, keys `k` or values `v`, an MLP, the
logits. Keys and values have one input per key/value head; where several query heads share one, it is a node
of its own, written `L3.KV1`, which feeds those heads. The graph is complete: the residual stream adds
everything up (Elhage et al. 2021), so each writer reaches each later reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from mlxterp.causal.prompts.encoding import require_model
from mlxterp.core.model import InterpretableModel
from mlxterp.core.self_check import PARALLEL
from mlxterp.errors import CapabilityUnavailable, SweepError

Into: TypeAlias = Literal["q", "k", "v", "mlp", "logits"]
Kind: TypeAlias = Literal["input", "head", "kv", "mlp", "logits"]

ARROW = "→"
_NODE = re.compile(r"L(\d+)\.(?:(mlp)|(H|KV)(\d+))")


@dataclass(frozen=True, order=True)
class Node:
    """One node; −1 where there is no layer or index. A "kv" node only reads, through `k` and `v`."""

    layer: int
    kind: Kind
    index: int = -1

    def __str__(self) -> str:
        if self.kind in ("input", "logits"):
            return self.kind
        if self.kind == "mlp":
            return f"L{self.layer}.mlp"
        return f"L{self.layer}.{'H' if self.kind == 'head' else 'KV'}{self.index}"


INPUT = Node(-1, "input")
LOGITS = Node(-1, "logits")


def head(layer: int, index: int) -> Node:
    """The node of a head."""
    return Node(layer, "head", index)


def mlp(layer: int) -> Node:
    """The node of an MLP."""
    return Node(layer, "mlp")


@dataclass(frozen=True, order=True)
class Edge:
    """One edge, written `L0.H2→L1.H1.k`, `input→L3.mlp`, `L1.H1→logits`."""

    sender: Node
    receiver: Node
    into: Into

    def __str__(self) -> str:
        return f"{self.sender}{ARROW}{input_name(self.receiver, self.into)}"


def input_name(receiver: Node, into: Into) -> str:
    """`L1.H1.k`; where a node has one input only, the node's name."""
    return str(receiver) if into in ("mlp", "logits") else f"{receiver}.{into}"


def parse_node(text: str) -> Node:
    """The node of this name; SweepError says how nodes are written."""
    if text in ("input", "logits"):
        return INPUT if text == "input" else LOGITS
    found = _NODE.fullmatch(text)
    if found is None:
        raise SweepError(f"{text!r} is no node of a graph. Nodes are: input, L3.H2, L3.KV1, L3.mlp, logits.")
    layer, is_mlp, kind, index = found.groups()
    if is_mlp:
        return mlp(int(layer))
    return Node(int(layer), "head" if kind == "H" else "kv", int(index))


def parse_edge(text: str) -> Edge:
    """The edge that `str(edge)` wrote; `->` is read as an arrow too."""
    sender, arrow, end = text.replace("->", ARROW).partition(ARROW)
    name, _, last = end.rpartition(".")
    if last in ("q", "k", "v"):
        receiver, into = parse_node(name), last
    else:
        receiver, into = parse_node(end), end if end == "logits" else "mlp"
    fits = {"head": ("q", "k", "v"), "kv": ("k", "v"), "mlp": ("mlp",), "logits": ("logits",), "input": ()}
    if not arrow or into not in fits[receiver.kind]:
        raise SweepError(
            f"{text!r} is no edge. Edges are written as in L0.H2{ARROW}L1.H1.k, input{ARROW}L3.mlp, "
            f"L1.H1{ARROW}logits."
        )
    return Edge(parse_node(sender), receiver, into)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Graph:
    """The complete graph of a model.

    Attributes:
        has_mlp: whether blocks have an MLP.
        parallel: whether attention and MLP of a block read the same stream: then no edge runs between them.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    has_mlp: bool = True
    parallel: bool = False

    @property
    def shared(self) -> bool:
        """Whether several query heads share a key/value head."""
        return self.n_kv_heads != self.n_heads

    @cached_property
    def senders(self) -> tuple[Node, ...]:
        """Every writer, in the order in which a forward computes them: input, then per layer heads, MLP."""
        nodes = [INPUT]
        for layer in range(self.n_layers):
            nodes += [head(layer, i) for i in range(self.n_heads)]
            nodes += [mlp(layer)] if self.has_mlp else []
        return tuple(nodes)

    @cached_property
    def receivers(self) -> tuple[tuple[Node, Into], ...]:
        """Every input, in forward order: per layer q, k, v of all heads, then the MLP; at last the logits."""
        inputs: list[tuple[Node, Into]] = []
        for layer in range(self.n_layers):
            inputs += [(head(layer, i), "q") for i in range(self.n_heads)]
            inputs += [(self.kv_node(layer, i), "k") for i in range(self.n_kv_heads)]
            inputs += [(self.kv_node(layer, i), "v") for i in range(self.n_kv_heads)]
            inputs += [(mlp(layer), "mlp")] if self.has_mlp else []
        return (*inputs, (LOGITS, "logits"))

    def kv_node(self, layer: int, index: int) -> Node:
        """Where keys and values of a key/value head are read: the head itself unless several share it."""
        return Node(layer, "kv" if self.shared else "head", index)

    def n_senders_to(self, receiver: Node) -> int:
        """How many of `senders`, from the first on, write before this node reads."""
        per_layer = self.n_heads + self.has_mlp
        if receiver.kind == "logits":
            return len(self.senders)
        before = 1 + receiver.layer * per_layer
        return before + (self.n_heads if receiver.kind == "mlp" and not self.parallel else 0)

    def readers(self, receiver: Node) -> tuple[Node, ...]:
        """The writers that an input of this node feeds: of a shared key/value head, all its query heads."""
        if receiver.kind != "kv":
            return () if receiver.kind == "logits" else (receiver,)
        group = self.n_heads // self.n_kv_heads
        return tuple(head(receiver.layer, receiver.index * group + i) for i in range(group))

    def inputs_of(self, node: Node) -> tuple[tuple[Node, Into], ...]:
        """The inputs that a head, an MLP or the logits reads through."""
        if node.kind == "head":
            kv = self.kv_node(node.layer, node.index * self.n_kv_heads // self.n_heads)
            return ((node, "q"), (kv, "k"), (kv, "v"))
        return {"mlp": ((node, "mlp"),), "logits": ((node, "logits"),)}.get(node.kind, ())  # type: ignore[return-value]

    def edges(self) -> Iterator[Edge]:
        """Every edge, by receiver in forward order, then by sender in forward order."""
        for receiver, into in self.receivers:
            for sender in self.senders[: self.n_senders_to(receiver)]:
                yield Edge(sender, receiver, into)

    @property
    def n_edges(self) -> int:
        return sum(self.n_senders_to(receiver) for receiver, _ in self.receivers)


def graph_of(model: InterpretableModel) -> Graph:
    """The graph of a model.

    Raises:
        CapabilityUnavailable: what its heads or MLPs add to the residual stream is not known.
    """
    require_model(model)
    architecture = model.architecture
    architecture.require("head_outputs", "decomposed")
    has_mlp = any(layer.mlp is not None for layer in architecture.layers)
    parallel = False
    if has_mlp:
        architecture.require("mlp_out")
        between = architecture.capabilities["resid_mid"]
        parallel = between.reason == PARALLEL
        if not between.available and not parallel:
            raise CapabilityUnavailable(
                f"{model.name}: whether its MLPs read what the heads of the same block write is not known: "
                f"{between.reason} So there is no graph of it. Use component='mlp_out' and 'z' sweeps."
            )
    return Graph(model.n_layers, model.n_heads, model.n_kv_heads, has_mlp, parallel)


def all_edges(model: InterpretableModel) -> tuple[Edge, ...]:
    """Every edge of a model, in forward order of the receivers: 70,651 for SmolLM2-135M."""
    return tuple(graph_of(model).edges())
