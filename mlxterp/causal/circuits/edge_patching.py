"""Runs of a model in which chosen edges carry the value that their sender has on the corrupted prompt, zero,
or its mean.

What lives here: the prompts that such runs start from, and their edges by name. What doesn't: the runs of
a batch of sets of edges (`edge_batches.py`), one node (`node_outputs.py`), which edges to patch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.batching.rows import Ids
from mlxterp.causal.circuits.edge_ablation import EdgeAblation, check_ablation
from mlxterp.causal.circuits.edge_baselines import baselines, common_prefix
from mlxterp.causal.circuits.edge_batches import EdgeBatches, Input, Mask
from mlxterp.causal.circuits.graph import (
    Edge,
    Graph,
    Node,
    graph_of,
)
from mlxterp.causal.circuits.node_outputs import NodeOutputs
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError

NUMBER_BUDGET = 1 << 27
"""Most numbers in what the nodes of a batch changed: 0.5 GiB, reached only if every node of a run changes."""
LOGIT_BUDGET = 1 << 26
"""Logits of one batch, at the answer position: 0.25 GiB."""


class EdgeRun:
    """Clean and corrupted prompts, run once, from which runs with patched edges are made.

    Args:
        clean, corrupted: token ids `[n, length]`, position to position.
        positions: (clean, corrupted) positions that correspond, for prompts of different lengths; the last
            ones do. At the others nothing is patched: each edge carries the current run's value there.
        ablation: what a patched edge carries: "corrupted", the sender's value on the corrupted prompt;
            "zero"; "mean", its mean at the same position over all prompts given, clean and corrupted. A
            head at zero still has its share of the output bias, and an embedding at zero leaves the first
            norms nothing but rounding to scale up.
        suffix_only: compute no position before the first at which the prompts differ: nothing changes there.
            What goes in and comes out then begins at `start`.
        token_budget: most tokens in a batch; by default as many as `NUMBER_BUDGET` holds.

    Attributes:
        graph: of the model; `n_edges` its edges, which masks `[rows, n_edges]` are about, in its order.
        start, length: the first position that is computed, and how many.
    """

    def __init__(
        self,
        model: InterpretableModel,
        clean: Ids,
        corrupted: Ids,
        *,
        positions: Sequence[tuple[int, int]] | None = None,
        ablation: EdgeAblation = "corrupted",
        suffix_only: bool = False,
        token_budget: int | None = None,
    ) -> None:
        check_ablation(ablation, clean, corrupted)
        if positions is not None and (clean.shape[1] - 1, corrupted.shape[1] - 1) not in positions:
            raise SweepError(
                f"the map {list(positions)} leaves out the last position, where the answer is read, so no "
                "patched edge could change it there. Map the last positions to each other too."
            )
        if positions is None and clean.shape != corrupted.shape:
            raise SweepError(
                f"clean tokens have shape {clean.shape} and corrupted ones {corrupted.shape}. An edge "
                "carries a value from one position of the corrupted prompt to the same one of the clean "
                "prompt: give prompts of the same length, or state which positions correspond."
            )
        self.model = model
        self.ablation: EdgeAblation = ablation
        self.graph: Graph = graph_of(model)
        self.n, whole = clean.shape
        changes = ablation == "corrupted" and positions is None
        self.start, before = common_prefix(model, clean, corrupted) if suffix_only and changes else (0, None)
        self.length = whole - self.start
        self.n_edges = self.graph.n_edges
        nodes = NodeOutputs(model, self.length, before)
        per_token = model.d_model * len(self.graph.senders)
        self._budget = NUMBER_BUDGET // per_token if token_budget is None else token_budget
        self._at = {node: i for i, node in enumerate(self.graph.senders)}
        self._edges_into: dict[Input, slice] = {}
        first = 0
        for receiver in self.graph.receivers:
            count = self.graph.n_senders_to(receiver[0])
            self._edges_into[receiver] = slice(first, first + count)
            first += count
        clean_run, self._corruption = baselines(
            model,
            self.graph,
            nodes,
            clean,
            corrupted,
            positions=positions,
            ablation=ablation,
            start=self.start,
        )
        self._batches = EdgeBatches(self.graph, nodes, clean_run, self._corruption, self._edges_into)

    @property
    def rows_at_once(self) -> int:
        """How many rows one batch holds."""
        by_logits = LOGIT_BUDGET // (self.n * self.model.d_vocab)
        return int(max(1, min(by_logits, self._budget // (self.n * self.length))))

    def index(self, edge: Edge) -> int:
        """An edge's place in a mask.

        Raises:
            SweepError: this model has no such edge.
        """
        into = self._edges_into.get((edge.receiver, edge.into))
        sender = self._at.get(edge.sender)
        if into is None or sender is None or into.start + sender >= into.stop:
            raise SweepError(
                f"{self.model.name} has no edge {edge}. Its edges run from input, heads L0.H0 to "
                f"L{self.graph.n_layers - 1}.H{self.graph.n_heads - 1}"
                f"{' and MLPs' if self.graph.has_mlp else ''} to later q, k, v"
                f"{f' (of KV0 to KV{self.graph.n_kv_heads - 1} for k and v)' if self.graph.shared else ''}"
                f"{', MLP' if self.graph.has_mlp else ''} and logits inputs."
            )
        return int(into.start) + sender

    def mask(self, edges: Iterable[Edge]) -> Mask:
        """`[n_edges]`, true where one of these edges is."""
        mask = np.zeros(self.n_edges, dtype=bool)
        mask[[self.index(edge) for edge in edges]] = True
        return mask

    def logits(self, patched: Collection[Iterable[Edge]] | Mask) -> NDArray[np.float32]:
        """Logits `[rows, n, d_vocab]` at the last position, one row per set of patched edges.

        Args:
            patched: sets of edges, or a mask `[rows, n_edges]`.
        """
        masks = patched if isinstance(patched, np.ndarray) else np.stack([self.mask(e) for e in patched])
        size = self.rows_at_once
        parts = [self._batches.logits(masks[i : i + size], {}) for i in range(0, len(masks), size)]
        return np.concatenate(parts)

    def logits_given(self, inputs: Mapping[Input, mx.array]) -> NDArray[np.float32]:
        """Logits `[rows, n, d_vocab]` where these inputs read what they read in the clean run plus `inputs`.

        Every other input reads the current run. Each change is `[rows, n, pos, d_model]`; many rows are for
        the caller to split (`rows_at_once`).
        """
        rows = max(len(change) for change in inputs.values())
        fixed = np.zeros((rows, self.n_edges), dtype=bool)
        for receiver in inputs:
            fixed[:, self._edges_into[receiver]] = True  # what they would read otherwise does not matter
        return self._batches.logits(fixed, inputs)

    def corruption(self, sender: Node) -> mx.array:
        """What a patched edge of this sender carries, minus out(clean): [n, pos, d_model]."""
        return self._corruption[self._at[sender]]

    def mlp_change(self, layer: int, change: mx.array) -> mx.array:
        """How an MLP's output changes [rows, n, pos, d_model] when its input does."""
        return self._batches.mlp_change(layer, change)
