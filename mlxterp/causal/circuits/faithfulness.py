"""How well a circuit does the work of its model: faithfulness, completeness, minimality, curves over sizes.

    f(C) = (m(C) − m(∅)) / (m(M) − m(∅))     m with every edge outside C ablated; M is the whole model

Faithfulness f is sensitive to the ablation (Miller et al. 2024): values under different ablations cannot be
compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.circuits.circuit import Circuit, EdgeScores, scores_in_order
from mlxterp.causal.circuits.edge_patching import EdgeAblation, EdgeRun, Mask
from mlxterp.causal.circuits.graph import Edge, Node
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.pair import MetricLike, Pairs, Prepared, prepare
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import NoGap, SweepError
from mlxterp.measurements import recorder
from mlxterp.results import CircuitResult
from mlxterp.statistics.effects import Effects, effects

SomeCircuit: TypeAlias = Circuit | CircuitResult | Iterable[Edge | str]


class Evaluation:
    """One dataset, on which many circuits are run."""

    def __init__(
        self,
        model: InterpretableModel,
        pairs: Pairs,
        metric: MetricLike,
        token_budget: int | None,
        align: Align = "strict",
        ablation: EdgeAblation = "corrupted",
    ) -> None:
        self.prepared: Prepared = prepare(model, pairs, metric, align=align)
        self.run = EdgeRun(
            model,
            self.prepared.clean,
            self.prepared.corrupted,
            positions=self.prepared.alignment.stated,
            ablation=ablation,
            suffix_only=True,
            token_budget=token_budget,
        )
        self.nothing = self.prepared.corrupted_metric
        if ablation != "corrupted":
            self.nothing = self.metric(np.ones((1, self.run.n_edges), dtype=bool))[:, 0]
            _refuse_no_gap(self.prepared, self.nothing, ablation)

    def removed(self, circuit: Circuit) -> Mask:
        """Every edge outside this circuit."""
        return ~self.run.mask(circuit.edges)

    def removed_nodes(self, nodes: Iterable[Node]) -> Mask:
        """Every edge out of these nodes."""
        gone = np.zeros(len(self.run.graph.senders), dtype=bool)
        gone[[self.run.graph.senders.index(node) for node in nodes]] = True
        counts = [self.run.graph.n_senders_to(receiver) for receiver, _ in self.run.graph.receivers]
        return np.concatenate([gone[:count] for count in counts])

    def effects(self, removed: Mask, *, seed: int = 0) -> Effects:
        """f of each row of removed edges."""
        recorder.add_method("faithfulness", pairs=len(self.prepared.pairs))
        one, zero = self.prepared.clean_metric, self.nothing
        return effects(self.metric(removed), one=one, zero=zero, clusters=self.prepared.clusters, seed=seed)

    def metric(self, removed: Mask) -> NDArray[np.float64]:
        """The metric `[n_examples, rows]` with each row of edges removed."""
        return np.stack(
            [self.prepared.metric(rows, self.prepared.targets) for rows in self.run.logits(removed)], axis=1
        )

    def f(self, removed: Sequence[Mask]) -> NDArray[np.float64]:
        """f over all pairs, one number per row of removed edges."""
        return self.effects(np.stack(list(removed))).effects


def _refuse_no_gap(prepared: Prepared, nothing: NDArray[np.float64], ablation: str) -> None:
    whole, left = float(prepared.clean_metric.mean()), float(nothing.mean())
    if abs(whole - left) <= prepared.metric.tolerance:
        raise NoGap(
            f"{prepared.metric.name} is {whole:.6g} for the model and {left:.6g} with every edge at "
            f"ablation={ablation!r}: there is nothing of which a circuit could keep a share. Choose another "
            "ablation or metric."
        )


@dataclass(frozen=True)
class Completeness:
    """What removing the nodes K does to the circuit and to the model (Wang et al. 2022, section 4.2).

    Attributes:
        nodes: K.
        circuit, model: f(C∖K) and f(M∖K); a complete circuit reacts as the model does.
    """

    nodes: tuple[Node, ...]
    circuit: float
    model: float

    @property
    def gap(self) -> float:
        """|f(C∖K) − f(M∖K)|."""
        return abs(self.circuit - self.model)


@dataclass(frozen=True)
class Minimality:
    """How much a node v of the circuit matters: the largest |f(C∖(K∪{v})) − f(C∖K)| over the K tried."""

    node: Node
    change: float
    nodes: tuple[Node, ...]  # the K of this change


def faithfulness(
    model: InterpretableModel,
    pairs: Pairs,
    circuit: SomeCircuit,
    *,
    metric: MetricLike = None,
    align: Align = "strict",
    ablation: EdgeAblation = "corrupted",
    token_budget: int | None = None,
    seed: int = 0,
) -> Effects:
    """f(C) as a ratio of means over pairs, with each pair's own value and an interval.

    Its arrays have one entry, for the circuit: `faithfulness(…).effects[0]`.

    Args:
        circuit: edges, their names, or what `acdc` found.
        metric: see `mlxterp.metrics.resolve`.
        align: as for `activation_patching`; as in `acdc`, positions without a counterpart are not ablated.
        ablation: what removed edges carry, as for `acdc`; f is 0 where all carry that.
        seed: kept for callers of earlier versions; intervals are no longer drawn.

    Raises:
        SweepError: an edge that this model does not have.
    """
    return faithfulnesses(
        model,
        pairs,
        [circuit],
        metric=metric,
        align=align,
        ablation=ablation,
        token_budget=token_budget,
        seed=seed,
    )


def faithfulnesses(
    model: InterpretableModel,
    pairs: Pairs,
    circuits: Sequence[SomeCircuit],
    *,
    metric: MetricLike = None,
    align: Align = "strict",
    ablation: EdgeAblation = "corrupted",
    token_budget: int | None = None,
    seed: int = 0,
) -> Effects:
    """`faithfulness` of several circuits in one batch: one entry for each, in their order."""
    if not circuits:
        raise SweepError("no circuits were given. Give at least one: edges, their names, or a CircuitResult.")
    on = Evaluation(model, pairs, metric, token_budget, align, ablation)
    removed = np.stack([on.removed(Circuit.of(circuit)) for circuit in circuits])
    return on.effects(removed, seed=seed)


def completeness(
    model: InterpretableModel,
    pairs: Pairs,
    circuit: SomeCircuit,
    *,
    samples: int = 10,
    greedy: int = 3,
    metric: MetricLike = None,
    token_budget: int | None = None,
    seed: int = 0,
) -> tuple[Completeness, ...]:
    """f(C∖K) and f(M∖K) for K empty, for random subsets of the circuit's nodes, and for a greedy K.

    Args:
        samples: how many random subsets; each node is in with probability one half.
        greedy: how many nodes the greedy K takes, each time the one that widens the gap most.
        seed: of the subsets.

    Returns:
        K = ∅ first, then the random subsets, then each step of the greedy one.
    """
    on = Evaluation(model, pairs, metric, token_budget)
    chosen = Circuit.of(circuit)
    nodes, rng = chosen.components, np.random.default_rng(seed)
    base = on.removed(chosen)

    def measured(sets: Sequence[tuple[Node, ...]]) -> list[Completeness]:
        gone = [on.removed_nodes(each) for each in sets]
        found = on.f([base | g for g in gone] + gone)
        halves = zip(sets, found[: len(sets)].tolist(), found[len(sets) :].tolist(), strict=True)
        return [Completeness(each, in_circuit, in_model) for each, in_circuit, in_model in halves]

    rows = measured([(), *_draw_subsets(nodes, samples, rng)])
    grown: tuple[Node, ...] = ()
    for _ in range(min(greedy, len(nodes))):
        best = max(measured([(*grown, n) for n in nodes if n not in grown]), key=lambda row: row.gap)
        grown = best.nodes
        rows.append(best)
    return tuple(rows)


def minimality(
    model: InterpretableModel,
    pairs: Pairs,
    circuit: SomeCircuit,
    *,
    samples: int = 5,
    metric: MetricLike = None,
    token_budget: int | None = None,
    seed: int = 0,
) -> tuple[Minimality, ...]:
    """For each node of the circuit, how much removing it changes f(C∖K), at the K where it changes it most.

    A node whose change is near 0 is not needed for what the circuit does, as far as these K show.

    Args:
        samples: how many random K are tried beside K = ∅; each other node is in with probability one half.
        seed: of the K.
    """
    on = Evaluation(model, pairs, metric, token_budget)
    chosen = Circuit.of(circuit)
    nodes, rng = chosen.components, np.random.default_rng(seed)
    base = on.removed(chosen)
    found = []
    for node in nodes:
        others = [n for n in nodes if n != node]
        sets = [(), *_draw_subsets(others, samples, rng)]
        without = [base | on.removed_nodes(each) for each in sets]
        also = [base | on.removed_nodes((*each, node)) for each in sets]
        f = on.f(without + also)
        change = np.abs(f[: len(sets)] - f[len(sets) :])
        at = int(np.argmax(change))
        found.append(Minimality(node, float(change[at]), sets[at]))
    return tuple(found)


def _draw_subsets(nodes: Sequence[Node], samples: int, rng: np.random.Generator) -> list[tuple[Node, ...]]:
    """Random subsets; each node is in with probability one half."""
    rows = rng.random((samples, len(nodes))) < 0.5
    return [tuple(n for n, taken in zip(nodes, row, strict=True) if taken) for row in rows]


SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of a model's edges at which MIB evaluates circuits."""


@dataclass(frozen=True)
class FaithfulnessCurve:
    """Faithfulness of circuits of growing size.

    Attributes:
        sizes: shares of the model's edges that were taken, by score.
        signed, magnitude: f of each, taken by score, and by |score|.
        n_edges: how many edges of the circuits by score, and by |score|, lie on a path to the logits.
    """

    sizes: tuple[float, ...]
    signed: tuple[float, ...]
    magnitude: tuple[float, ...]
    n_edges: tuple[tuple[int, int], ...]

    @property
    def cpr(self) -> float:
        """Circuit performance ratio: the area under f of the circuits by score. Higher is better."""
        return _area(self.sizes, self.signed)

    @property
    def cmd(self) -> float:
        """Circuit-model distance: the area under |1 − f| of the circuits by |score|. 0 is best."""
        return _area(self.sizes, [abs(1 - f) for f in self.magnitude])


def faithfulness_curve(
    model: InterpretableModel,
    pairs: Pairs,
    scores: EdgeScores,
    *,
    sizes: Sequence[float] = SIZES,
    metric: MetricLike = None,
    token_budget: int | None = None,
) -> FaithfulnessCurve:
    """f of the circuits that take the best-scored edges, with the areas CPR and CMD (Mueller et al. 2025).

    Of the `int(size · n_edges)` best edges, those on a path from the input to the logits are the circuit.

    Args:
        scores: one per edge of the model; higher = more important to the behaviour.
        sizes: ascending shares of the edges.

    Raises:
        SweepError: scores that do not fit the model, sizes that are not ascending shares.
    """
    shares = tuple(float(size) for size in sizes)
    if len(shares) < 2 or list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] <= 1:
        raise SweepError(f"sizes={sizes}. Give at least two ascending shares of the edges, above 0, up to 1.")
    on = Evaluation(model, pairs, metric, token_budget)
    graph = on.run.graph
    edges, values = tuple(graph.edges()), scores_in_order(graph, scores)
    circuits: list[Circuit] = []
    for ranked in (values, np.abs(values)):
        order = np.argsort(-ranked, kind="stable")
        circuits += [
            Circuit(frozenset(edges[i] for i in order[: int(size * len(edges))])).connected(graph)
            for size in shares
        ]
    found = on.f([on.removed(circuit) for circuit in circuits]).tolist()
    half = len(shares)
    counts = [len(circuit) for circuit in circuits]
    return FaithfulnessCurve(
        shares,
        tuple(found[:half]),
        tuple(found[half:]),
        tuple(zip(counts[:half], counts[half:], strict=True)),
    )


def _area(x: Sequence[float], y: Sequence[float]) -> float:
    """By the trapezoidal rule."""
    return float(np.sum(np.diff(x) * (np.asarray(y)[1:] + np.asarray(y)[:-1]) / 2))
