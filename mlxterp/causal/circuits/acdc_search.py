"""The decisions of ACDC: which edges are tested next, in one batch, and which of them stay removed.

Several edges are tested in one batch, by assuming that each before them was removed: row i of the batch lacks
edges 1 … i. The rows up to the first edge that has to be kept are exactly the runs that testing one by one
would make; those after it are thrown away. So the decisions are the same, whatever the batch.

What lives here: the search's state and its steps. What doesn't: the runs (`edge_patching.py`), how often it is
saved and who is told (`acdc.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.circuits.edge_ablation import DESCRIBED
from mlxterp.causal.circuits.edge_batches import Mask
from mlxterp.causal.circuits.edge_patching import EdgeRun
from mlxterp.causal.circuits.graph import Edge
from mlxterp.causal.prompts.pair import Prepared
from mlxterp.results import CircuitEdge, CircuitResult

FIRST_BATCH = 4
"""Edges in the first batch; a batch doubles after one without a kept edge, and halves after one cut short."""


class Search:
    """The decisions made so far: edges before `position` of `order`. Edges not `searched` are removed
    first."""

    def __init__(
        self, run: EdgeRun, prepared: Prepared, threshold: float, most: int, searched: Mask | None
    ) -> None:
        graph = run.graph
        self.run, self.prepared, self.threshold, self.most = run, prepared, threshold, most
        self.edges: tuple[Edge, ...] = tuple(graph.edges())
        self.searched = np.ones(run.n_edges, dtype=bool) if searched is None else searched
        self.order = np.flatnonzero(self.searched)[::-1]
        at = {node: i for i, node in enumerate(graph.senders)}
        readers = {r: [at[n] for n in graph.readers(r)] for r, _ in graph.receivers}
        self.sender = np.array([at[edge.sender] for edge in self.edges])
        self.readers = [readers[edge.receiver] for edge in self.edges]
        self.position = 0
        self.removed: Mask = ~self.searched
        # edges left out of each sender
        self.uses = np.bincount(self.sender[self.order], minlength=len(graph.senders))
        self.effects: dict[int, float] = {}
        self.tested = 0
        self.size = min(FIRST_BATCH, most)
        self.loss = self.first_loss = float(self.losses(self.removed[None])[0])

    def losses(self, removed: Mask) -> NDArray[np.float64]:
        """The loss of each row of removed edges, as a mean over the pairs."""
        metric, targets = self.prepared.metric, self.prepared.targets
        values = [float(metric(logits, targets).mean()) for logits in self.run.logits(removed)]
        return np.array(values) if "clean_logits" in metric.needs else -np.array(values)

    def step(self) -> None:
        """Tests one batch of edges, and decides up to the first that is kept."""
        places = self._next(self.size)
        candidates = self.order[places]
        rows = np.repeat(self.removed[None], len(places), axis=0)
        for i, edge in enumerate(candidates):
            rows[i:, edge] = True
        losses = self.losses(rows) if len(places) else np.empty(0)
        end = len(self.order) if len(places) < self.size else int(places[-1]) + 1
        kept = -1
        for place, edge, loss in zip(places, candidates, losses.tolist(), strict=True):
            self.tested += 1
            if not loss - self.loss < self.threshold:
                kept, end = int(edge), int(place) + 1
                self.effects[kept] = loss - self.loss
                break
            self.loss = loss
        cut_short = kept >= 0
        for edge in self.order[self.position : end].tolist():
            if edge != kept:
                self.remove(edge)
        self.position = end
        self.size = max(1, self.size // 2) if cut_short else min(self.most, self.size * 2)

    def remove(self, edge: int) -> None:
        """Notes that an edge is left out."""
        self.removed[edge] = True
        self.uses[self.sender[edge]] -= 1

    def _next(self, count: int) -> NDArray[np.int64]:
        """Places in `order` of the next edges to test, if each of them is removed.

        Edges into nodes that nothing reads any more are passed over.
        """
        uses, places = self.uses.copy(), []
        for place in range(self.position, len(self.order)):
            edge = self.order[place]
            readers = self.readers[edge]
            if not readers or any(uses[r] for r in readers):  # the logits have no readers: they always matter
                places.append(place)
            uses[self.sender[edge]] -= 1
            if len(places) == count:
                break
        return np.array(places, dtype=np.int64)

    def result(self) -> CircuitResult:
        """The edges that are left, with what their removal would have added to the loss."""
        prepared, metric = self.prepared, self.prepared.metric
        left = np.flatnonzero(~self.removed)
        distance = "clean_logits" in metric.needs
        edges = [self.edges[i] for i in left]
        return CircuitResult(
            edges=tuple(
                CircuitEdge(
                    sender=str(e.sender), receiver=str(e.receiver), into=e.into, effect=self.effects[int(i)]
                )
                for i, e in zip(left, edges, strict=True)
            ),
            method="acdc",
            threshold=self.threshold,
            metric=metric.name,
            clean_metric=float(prepared.clean_metric.mean()),
            corrupted_metric=float(prepared.corrupted_metric.mean()),
            circuit_metric=self.loss if distance else -self.loss,
            n_edges=len(self.edges),
            n_tested=self.tested,
            measured_on=prepared.measured_on(self.run.model)
            | {"ablation": DESCRIBED[self.run.ablation]}
            | self._searched_facts(),
        )

    def _searched_facts(self) -> dict[str, Any]:
        if self.searched.all():
            return {}
        return {
            "searched_edges": int(self.searched.sum()),
            "loss_of_all_searched_edges": self.first_loss,
        }
