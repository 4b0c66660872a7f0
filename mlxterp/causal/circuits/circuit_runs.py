"""The runs of many circuits on one dataset, and their faithfulness.

A circuit's run is the clean run in which every edge outside the circuit carries the corrupted prompt's value
(resample ablation). With m the metric, M the whole model and ∅ no edge at all, faithfulness is

    f(C) = (m(C) − m(∅)) / (m(M) − m(∅))

so 1 is as the model and 0 as the corrupted run (Mueller et al. 2025, MIB).

What lives here: masks of what a circuit leaves out, and f of them. What doesn't: which circuits to compare
(`faithfulness.py`, `faithfulness_curve.py`), a run (`edge_patching.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxterp import metrics
from mlxterp.causal.circuits.circuit import Circuit
from mlxterp.causal.circuits.edge_ablation import EdgeAblation
from mlxterp.causal.circuits.edge_batches import Mask
from mlxterp.causal.circuits.edge_patching import EdgeRun
from mlxterp.causal.circuits.graph import Edge, Node
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.pair import Prepared, PromptPair, prepare
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import NoGap
from mlxterp.results import CircuitResult
from mlxterp.statistics.effects import Effects, effects

Pairs: TypeAlias = PromptPair | Sequence[PromptPair]
SomeCircuit: TypeAlias = Circuit | CircuitResult | Iterable[Edge | str]
MetricLike: TypeAlias = str | metrics.MetricFunction | metrics.Metric | None


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
        one, zero = self.prepared.clean_metric, self.nothing
        return effects(self.metric(removed), one=one, zero=zero, seed=seed)

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
