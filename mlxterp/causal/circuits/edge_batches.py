"""Batches of runs in which chosen edges are patched, layer by layer.

Each input of each head, MLP and the logits reads its own residual stream: what every sender writes in the
current run, but for patched edges what the sender writes in the corrupted run (path patching in its direct
form, Goldowsky-Dill et al. 2023; the runs of ACDC, Conmy et al. 2023). With D_u = out_u(corrupted) −
out_u(clean), and δ_u = out_u(current) − out_u(clean),

    in_v = in_v(clean) + Σ_{u→v patched} D_u + Σ_{u→v not patched} δ_u

So a node is computed only where its input differs from the clean run's and where its output still matters:
a run resumes at the first patched receiver by itself, and costs as much as the paths that are left.

What lives here: one batch, from which senders matter to the logits. What doesn't: the prompts' own runs
(`edge_baselines.py`), how one node is computed (`node_outputs.py`), naming edges (`edge_patching.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.circuits.graph import (
    Graph,
    Into,
    Node,
    head,
    mlp,
)
from mlxterp.causal.circuits.node_outputs import NodeOutputs
from mlxterp.core.hook_points import HookPoint

Mask: TypeAlias = NDArray[np.bool_]
Input: TypeAlias = tuple[Node, Into]


class EdgeBatches:
    """Clean and corrupted runs, from which batches of runs with patched edges are made.

    Args:
        clean: activations of the clean run `[n, pos, …]`, by hook point.
        corruption: per sender what a patched edge carries, minus what it carries in the clean run.
        edges_into: per input, the places of its edges in a mask.
    """

    def __init__(
        self,
        graph: Graph,
        nodes: NodeOutputs,
        clean: Mapping[HookPoint, mx.array],
        corruption: mx.array,
        edges_into: Mapping[Input, slice],
    ) -> None:
        self.graph, self._nodes = graph, nodes
        self._clean, self._corruption, self._edges_into = clean, corruption, edges_into
        self._at = {node: i for i, node in enumerate(graph.senders)}
        self.n = corruption.shape[1]

    def logits(self, patched: Mask, given: Mapping[Input, mx.array]) -> NDArray[np.float32]:
        """Logits `[rows, n, d_vocab]` at the last position, one row per row of patched edges.

        Args:
            given: inputs that read what they read in the clean run plus this, `[rows, n, pos, d_model]`.
        """
        changes = {receiver: (change, _nonzero(change)) for receiver, change in given.items()}
        run = _Rows(patched, self._needed(patched), changes)
        for layer in range(self.graph.n_layers):
            self._attend(run, layer)
            if self.graph.has_mlp:
                self._read_and_write(run, layer)
        receiver = self.graph.receivers[-1]
        rows = np.flatnonzero(self._touched(run, receiver))
        clean = self._nodes.logits(self._clean_input(receiver[0]))
        logits = np.broadcast_to(clean, (len(run.patched), *clean.shape)).copy()
        if len(rows):
            h = self._input(run, receiver, rows)
            found = self._nodes.logits(h[..., -1:, :].reshape(-1, 1, h.shape[-1]))
            logits[rows] = found.reshape(len(h), self.n, -1)
        return np.asarray(logits)

    def mlp_change(self, layer: int, change: mx.array) -> mx.array:
        """How an MLP's output changes [rows, n, pos, d_model] when its input does."""
        h = self._clean_input(mlp(layer)) + change
        out = self._nodes.mlp(layer, h.reshape(-1, *h.shape[2:])).reshape(h.shape)
        return out - self._clean[HookPoint("mlp_out", layer)]

    def _clean_input(self, receiver: Node) -> mx.array:
        if receiver.kind == "logits":
            return self._clean[HookPoint("resid_post", self.graph.n_layers - 1)]
        middle = receiver.kind == "mlp" and not self.graph.parallel
        return self._clean[HookPoint("resid_mid" if middle else "resid_pre", receiver.layer)]

    def _needed(self, patched: Mask) -> Mask:
        """[rows, senders]: whether a change of this sender still reaches the logits."""
        needed = np.zeros((len(patched), len(self.graph.senders)), dtype=bool)
        for receiver in reversed(self.graph.receivers):
            into = self._edges_into[receiver]
            readers = [self._at[node] for node in self.graph.readers(receiver[0])]
            if receiver[1] == "v" and receiver[0].index == self.graph.n_kv_heads - 1:
                self._need_together(needed, receiver[0].layer)
            wanted = np.ones(len(patched), dtype=bool)
            if readers:
                wanted = np.asarray(needed[:, readers].any(axis=1))
            if wanted.any():
                needed[:, : into.stop - into.start] |= wanted[:, None] & ~patched[:, into]
        return needed

    def _need_together(self, needed: Mask, layer: int) -> None:
        if self._nodes.heads_interact(layer):
            heads = self._heads(layer)
            needed[:, heads] = needed[:, heads].any(axis=1, keepdims=True)

    def _heads(self, layer: int) -> slice:
        first = self._at[head(layer, 0)]
        return slice(first, first + self.graph.n_heads)

    def _touched(self, run: _Rows, receiver: Input) -> Mask:
        """[rows]: whether this input differs from the clean run's."""
        if receiver in run.given:
            return run.given[receiver][1]
        patched = run.patched[:, self._edges_into[receiver]]
        touched: Mask = np.asarray(patched.any(axis=1))
        for sender, live in run.live.items():
            if sender < patched.shape[1]:
                touched |= live & ~patched[:, sender]
        return touched

    def _input(self, run: _Rows, receiver: Input, rows: NDArray[np.int64]) -> mx.array:
        """What this input reads in these rows [rows, n, pos, d_model]; [1, …] where it is the same in all."""
        if receiver in run.given:
            return self._clean_input(receiver[0]) + run.given[receiver][0][mx.array(rows)]
        patched = run.patched[rows, self._edges_into[receiver]]
        count = patched.shape[1]
        same = bool((patched == patched[0]).all())
        weights = mx.array((patched[:1] if same else patched).astype(np.float32))
        used = np.flatnonzero(patched.any(axis=0))
        h = self._clean_input(receiver[0])[None]
        if len(used):
            index = mx.array(used)
            d = self._corruption[:count] if len(used) == count else self._corruption[index]
            weights = weights if len(used) == count else weights[:, index]
            h = h + (weights @ d.reshape(len(used), -1)).reshape(-1, *d.shape[1:])
        for sender, live in run.live.items():
            if sender >= count:
                continue
            follows = live[rows] & ~patched[:, sender]
            if follows.any():
                own = run.deltas[sender]
                own = own if len(rows) == len(run.patched) or len(own) == 1 else own[mx.array(rows)]
                keep = mx.array(follows.astype(np.float32))[:, None, None, None]
                h = h + (own if follows.all() else own * keep)
        return h

    def _attend(self, run: _Rows, layer: int) -> None:
        changed: dict[int, tuple[NDArray[np.int64], mx.array]] = {}
        for i in range(self.graph.n_heads):
            node = head(layer, i)
            inputs = self.graph.inputs_of(node)
            rows = self._rows_of(run, node, inputs)
            if len(rows):
                q, k, v = (self._flat(self._input(run, receiver, rows), len(rows)) for receiver in inputs)
                z = self._nodes.head(layer, i, q, k, v).astype(mx.float32)
                changed[i] = rows, self._unflat(z, len(rows))
        clean = self._clean[HookPoint("z", layer)]
        if changed and self._nodes.heads_interact(layer):
            self._write_together(run, layer, changed)
            return
        for i, (rows, z) in changed.items():
            delta = self._nodes.written(layer, i, z - clean[..., i, :])
            run.write(self._at[head(layer, i)], rows, delta)

    def _write_together(
        self, run: _Rows, layer: int, changed: dict[int, tuple[NDArray[np.int64], mx.array]]
    ) -> None:
        clean = self._clean[HookPoint("z", layer)]
        rows = np.unique(np.concatenate([own for own, _ in changed.values()]))
        columns = []
        for i in range(self.graph.n_heads):
            column = mx.broadcast_to(clean[..., i, :], (len(rows), *clean[..., i, :].shape))
            if i in changed:
                own, z = changed[i]
                column = column[...]
                column[mx.array(np.searchsorted(rows, own))] = mx.broadcast_to(z, (len(own), *z.shape[1:]))
            columns.append(column)
        delta = self._nodes.all_written(layer, mx.stack(columns, axis=-2)) - self._nodes.all_written(
            layer, clean
        )
        for i in range(self.graph.n_heads):
            run.write(self._at[head(layer, i)], rows, delta[..., i, :])

    def _read_and_write(self, run: _Rows, layer: int) -> None:
        node = mlp(layer)
        (receiver,) = self.graph.inputs_of(node)
        rows = self._rows_of(run, node, (receiver,))
        if len(rows):
            change = self._input(run, receiver, rows) - self._clean_input(node)
            run.write(self._at[node], rows, self.mlp_change(layer, change))

    def _rows_of(self, run: _Rows, node: Node, inputs: Sequence[Input]) -> NDArray[np.int64]:
        """The rows in which this node has to be computed."""
        needed = run.needed[:, self._at[node]]
        if not needed.any():
            return np.empty(0, dtype=np.int64)
        touched = np.stack([self._touched(run, receiver) for receiver in inputs]).any(axis=0)
        return np.flatnonzero(needed & touched)

    def _flat(self, h: mx.array, rows: int) -> mx.array:
        """[rows, n, …] as one batch; with one prompt, an input that is the same in all rows stays one row."""
        if len(h) != rows and self.n > 1:
            h = mx.broadcast_to(h, (rows, *h.shape[1:]))
        return h.reshape(-1, *h.shape[2:])

    def _unflat(self, z: mx.array, rows: int) -> mx.array:
        return z.reshape(-1 if len(z) != rows * self.n else rows, self.n, *z.shape[1:])


class _Rows:
    """One batch: what is patched, which senders matter, and how the senders computed so far have changed."""

    def __init__(self, patched: Mask, needed: Mask, given: Mapping[Input, tuple[mx.array, Mask]]) -> None:
        self.patched, self.needed = patched, needed
        self.given = given  # inputs that read the clean run plus this, and the rows in which it is not 0
        self.live: dict[int, Mask] = {}  # sender → the rows in which it differs from the clean run
        self.deltas: dict[int, mx.array] = {}  # sender → [rows or 1, n, pos, d_model], 0 where it does not

    def write(self, sender: int, rows: NDArray[np.int64], delta: mx.array) -> None:
        """Notes what a sender's output has changed by in these rows."""
        live = np.zeros(len(self.patched), dtype=bool)
        live[rows] = True
        if len(rows) < len(live):
            whole = mx.zeros((len(live), *delta.shape[1:]), dtype=delta.dtype)
            whole[mx.array(rows)] = mx.broadcast_to(delta, (len(rows), *delta.shape[1:]))
            delta = whole
        self.live[sender], self.deltas[sender] = live, delta


def _nonzero(change: mx.array) -> Mask:
    return np.array(mx.any(change.reshape(len(change), -1) != 0, axis=1))
