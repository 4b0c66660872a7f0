"""How well a circuit does the work of its model: faithfulness, completeness, minimality.

Faithfulness f(C) is defined where it is measured (`circuit_runs.py`). It is sensitive to what is ablated and
how (Miller et al. 2024): numbers from other ablations are other numbers.

What lives here: which circuits these measures compare. What doesn't: circuits of growing size, CPR and CMD
(`faithfulness_curve.py`), the runs (`circuit_runs.py`), the circuit (`circuit.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlxterp.causal.circuits.circuit import Circuit
from mlxterp.causal.circuits.circuit_runs import (
    Evaluation,
    MetricLike,
    Pairs,
    SomeCircuit,
)
from mlxterp.causal.circuits.edge_ablation import EdgeAblation
from mlxterp.causal.circuits.graph import Node
from mlxterp.causal.prompts.alignment import Align
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError
from mlxterp.statistics.effects import Effects


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
    """f(C) as a ratio of means over pairs, with each pair's own value and a bootstrap interval.

    Its arrays have one entry, for the circuit: `faithfulness(…).effects[0]`.

    Args:
        circuit: edges, their names, or what `acdc` found.
        metric: see `mlxterp.metrics.resolve`.
        align: as for `activation_patching`; as in `acdc`, positions without a counterpart are not ablated.
        ablation: what removed edges carry, as for `acdc`; f is 0 where all carry that.
        seed: of the bootstrap.

    Raises:
        SweepError: an edge that this model does not have.
    """
    several = [circuit]
    return faithfulnesses(
        model,
        pairs,
        several,
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
    drawn = [
        tuple(n for n, taken in zip(nodes, row, strict=True) if taken)
        for row in rng.random((samples, len(nodes))) < 0.5
    ]

    def measured(sets: Sequence[tuple[Node, ...]]) -> list[Completeness]:
        gone = [on.removed_nodes(each) for each in sets]
        found = on.f([base | g for g in gone] + gone)
        halves = zip(sets, found[: len(sets)].tolist(), found[len(sets) :].tolist(), strict=True)
        return [Completeness(each, in_circuit, in_model) for each, in_circuit, in_model in halves]

    rows = measured([(), *drawn])
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
        sets = [()] + [
            tuple(n for n, taken in zip(others, row, strict=True) if taken)
            for row in rng.random((samples, len(others))) < 0.5
        ]
        without = [base | on.removed_nodes(each) for each in sets]
        also = [base | on.removed_nodes((*each, node)) for each in sets]
        f = on.f(without + also)
        change = np.abs(f[: len(sets)] - f[len(sets) :])
        at = int(np.argmax(change))
        found.append(Minimality(node, float(change[at]), sets[at]))
    return tuple(found)
