"""Runs of a model in which chosen edges carry the value that their sender has on the corrupted prompt, zero,
or its mean.

The runs of a batch share one that is known, the clean run unless `start_from` chose another: only nodes whose
inputs differ from its own, and whose output still reaches the logits, are computed again (`node_outputs.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.batching.base_run import CannotJoin, PrefixCache, run_base
from mlxterp.causal.circuits.graph import (
    Edge,
    Graph,
    Into,
    Node,
    graph_of,
    head,
    mlp,
)
from mlxterp.causal.circuits.node_outputs import NodeOutputs
from mlxterp.causal.finite import require_finite
from mlxterp.causal.prompts.alignment import at_clean_positions
from mlxterp.causal.prompts.encoding import Ids
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError

EdgeAblation: TypeAlias = Literal["corrupted", "zero", "mean"]

DESCRIBED = {
    "corrupted": "removed edges carry the corrupted prompt's value (resample)",
    "zero": "removed edges carry zero",
    "mean": "removed edges carry the sender's mean over all prompts, clean and corrupted, per position",
}


Activations: TypeAlias = dict[HookPoint, mx.array]


@dataclass(frozen=True, eq=False)
class EdgePrompts:
    """The prompts of runs with patched edges, and what a patched edge carries.

    Attributes:
        clean, corrupted: token ids `[n, length]`.
        positions: (clean, corrupted) positions that correspond; None where each corresponds to itself.
    """

    clean: Ids
    corrupted: Ids
    positions: Sequence[tuple[int, int]] | None = None
    ablation: EdgeAblation = "corrupted"

    def check_ablation(self) -> None:
        """SweepError for an unknown kind of ablation, or a mean over a single prompt."""
        if self.ablation not in get_args(EdgeAblation):
            raise SweepError(
                f"ablation={self.ablation!r} is not known. Choose one of: "
                f"{', '.join(get_args(EdgeAblation))}."
            )
        if self.ablation == "mean" and self.clean.shape == self.corrupted.shape and len(self.distinct()) < 2:
            raise SweepError(
                "ablation='mean' over a single prompt carries what is already there. Give several."
            )

    def distinct(self) -> Ids:
        """Which of all prompts, clean then corrupted, are the first of their kind; all of them where lengths
        differ."""
        if self.clean.shape != self.corrupted.shape:
            return np.arange(len(self.clean) + len(self.corrupted))
        both = np.concatenate([self.clean, self.corrupted])
        return np.sort(np.unique(both, axis=0, return_index=True)[1])

    def run_both(self, run: Callable[[Ids], Activations]) -> tuple[Activations, Activations]:
        """Activations [n, pos, …] of the clean prompts, and of the corrupted ones at the clean positions."""
        if self.positions is None:
            both, n = run(np.concatenate([self.clean, self.corrupted])), len(self.clean)
            return {p: x[:n] for p, x in both.items()}, {p: x[n:] for p, x in both.items()}
        own, other = run(self.clean), run(self.corrupted)
        return own, {p: at_clean_positions(x, other[p], self.positions) for p, x in own.items()}

    def carried(self, clean: mx.array, corrupted: mx.array) -> mx.array:
        """The values [n, …] that patched edges carry, from a sender's values in both runs [n, …]."""
        if self.ablation == "zero":
            return mx.zeros_like(clean)
        if self.ablation == "mean":
            every = mx.concatenate([clean, corrupted])[mx.array(self.distinct())]
            mean = mx.mean(every.astype(mx.float32), axis=0, keepdims=True).astype(clean.dtype)
            return mx.broadcast_to(mean, clean.shape)
        return corrupted


Mask: TypeAlias = NDArray[np.bool_]
Input: TypeAlias = tuple[Node, Into]


class _Start:
    """The run that others are computed from: the clean one, and what differs from it with edges patched.

    Attributes:
        patched: the edges.
        inputs: what an input reads [n, pos, d_model]. writes: a sender's output minus that of the clean run.
            z: of (layer, head) [n, pos, d_head]. Each holds what differs from the clean run, as far as it
            still reaches the logits.
        logits: [n, d_vocab] at the last position.
    """

    def __init__(self, n_edges: int) -> None:
        self.patched: Mask = np.zeros(n_edges, dtype=bool)
        self.inputs: dict[Input, mx.array] = {}
        self.writes: dict[int, mx.array] = {}
        self.z: dict[tuple[int, int], mx.array] = {}
        self.logits: NDArray[np.float32] | None = None


class _Rows:
    """One batch: what is patched, which senders matter, and how the senders computed so far have changed."""

    def __init__(
        self,
        patched: Mask,
        needed: Mask,
        given: Mapping[Input, tuple[mx.array, Mask]],
        new: Mask,
        *,
        recorded: bool = False,
    ) -> None:
        self.patched, self.needed = patched, needed
        self.new = new  # edges that are patched here, and not in the run that this batch is computed from
        self.given = given  # inputs that read the clean run plus this, and the rows in which it is not 0
        self.live: dict[int, Mask] = {}  # sender → the rows in which it differs from that run
        self.deltas: dict[int, mx.array] = {}  # sender → [rows or 1, n, pos, d_model], 0 where it does not
        self.recorded = recorded  # whether `inputs` and `z` are filled: what computed nodes read, heads' z
        self.inputs: dict[Input, mx.array] = {}  # [rows or 1, n, pos, d_model]
        self.z: dict[tuple[int, int], mx.array] = {}  # [rows, n, pos, d_head]

    def write(self, sender: int, rows: NDArray[np.int64], delta: mx.array) -> None:
        """Records the change of a sender's output in these rows."""
        live = np.zeros(len(self.patched), dtype=bool)
        live[rows] = True
        if len(rows) < len(live):
            whole = mx.zeros((len(live), *delta.shape[1:]), dtype=delta.dtype)
            whole[mx.array(rows)] = mx.broadcast_to(delta, (len(rows), *delta.shape[1:]))
            delta = whole
        self.live[sender], self.deltas[sender] = live, delta


def _nonzero(change: mx.array) -> Mask:
    return np.array(mx.any(change.reshape(len(change), -1) != 0, axis=1))


class Baselines(NamedTuple):
    """Of n prompts, from the first computed position on.

    Attributes:
        clean: activations of the clean run [n, pos, …], float32.
        corruption: what each sender's patched edges carry, minus what it writes: [senders, n, pos, d_model].
    """

    clean: dict[HookPoint, mx.array]
    corruption: mx.array


def baselines(
    model: InterpretableModel, graph: Graph, nodes: NodeOutputs, prompts: EdgePrompts, start: int
) -> Baselines:
    """Runs both prompts and compares what their nodes write, from position `start` on."""
    names = ["z", "resid_pre", *(["mlp_out"] if graph.has_mlp else [])]
    names += ["resid_mid"] if graph.has_mlp and not graph.parallel else []
    last = HookPoint("resid_post", graph.n_layers - 1)

    def run(tokens: Ids) -> Activations:
        with model.architecture.float32_stream():
            _, captured = model.run(mx.array(tokens), capture=[*names, last, "embed"])
        return {point: x.astype(mx.float32) for point, x in captured.items()}

    clean, corrupted = ({point: x[:, start:] for point, x in own.items()} for own in prompts.run_both(run))

    def change(point: HookPoint) -> mx.array:
        return prompts.carried(clean[point], corrupted[point]) - clean[point]

    changes = [change(HookPoint("embed"))[None]]
    for layer in range(graph.n_layers):
        z = HookPoint("z", layer)
        written = nodes.all_written(layer, clean[z])
        if prompts.ablation == "zero":  # the head at zero: its share of the output bias stays
            carried = nodes.all_written(layer, mx.zeros_like(clean[z]))
        else:
            carried = prompts.carried(written, nodes.all_written(layer, corrupted[z]))
        changes.append(mx.moveaxis(carried - written, 2, 0))
        if graph.has_mlp:
            changes.append(change(HookPoint("mlp_out", layer))[None])
    found = Baselines(clean, mx.concatenate(changes))
    mx.eval(found.clean, found.corruption)
    return found


def common_prefix(
    model: InterpretableModel, clean: Ids, corrupted: Ids
) -> tuple[int, list[PrefixCache] | None]:
    """The first position at which any pair differs, and caches of what attention sees before it.

    0 where it is not known, because this architecture caches more than keys and values.
    """
    start = int(np.argmax((clean != corrupted).any(axis=0)))
    if not start:
        return 0, None
    try:
        caches = run_base(model, clean).caches
    except CannotJoin:
        caches = None
    if caches is None:
        return 0, None
    return start, [PrefixCache(start, recorded) for recorded in caches]


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
        prompts = EdgePrompts(clean, corrupted, positions, ablation)
        prompts.check_ablation()
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
        self._nodes = NodeOutputs(model, self.length, before)
        per_token = model.d_model * len(self.graph.senders)
        self._budget = NUMBER_BUDGET // per_token if token_budget is None else token_budget
        self._at = {node: i for i, node in enumerate(self.graph.senders)}
        self._edges_into: dict[Input, slice] = {}
        first = 0
        for receiver in self.graph.receivers:
            count = self.graph.n_senders_to(receiver[0])
            self._edges_into[receiver] = slice(first, first + count)
            first += count
        self._clean, self._corruption = baselines(model, self.graph, self._nodes, prompts, self.start)
        self._start = _Start(self.n_edges)
        self._holds_inputs = self.n * self.length * model.d_model * len(self.graph.receivers) <= NUMBER_BUDGET

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
        self._start_from_clean_unless_in(masks)
        size = self.rows_at_once
        parts = [self._batch_logits(masks[i : i + size], {}) for i in range(0, len(masks), size)]
        found = np.concatenate(parts)
        require_finite(
            np.moveaxis(found, 0, -1),
            lambda i: self._described(masks[i]),
            "logits with edges patched",
            "Load the model with dtype=mx.float32, or look what a node writes with model.trace.",
        )
        return found

    def start_from(self, patched: Mask) -> None:
        """Has later runs computed from the one with these edges patched, which costs a run.

        Runs that patch these edges and a few more are then computed as far as they differ from it. One that
        does not patch them all starts from the clean run again. Inputs of more than `NUMBER_BUDGET` numbers
        are not held: then nothing changes.
        """
        if not self._holds_inputs or (patched == self._start.patched).all():
            return
        self._start_from_clean_unless_in(patched)
        start = self._start
        run, found = self._run_rows(patched[None], {}, recorded=True)
        for sender, delta in run.deltas.items():
            start.writes[sender] = start.writes[sender] + delta[0] if sender in start.writes else delta[0]
        start.inputs |= {receiver: h[0] for receiver, h in run.inputs.items()}
        start.z |= {which: z[0] for which, z in run.z.items()}
        start.patched, start.logits = patched.copy(), found[0]
        mx.eval(start.writes, start.inputs, start.z)

    def _start_from_clean_unless_in(self, patched: Mask) -> None:
        """Runs are computed from one that patches no edge which they do not."""
        if (self._start.patched & ~patched).any():
            self._start = _Start(self.n_edges)

    def _described(self, mask: Mask) -> str:
        """`3 edges patched, as input→L0.H1.q`."""
        patched = np.flatnonzero(mask)
        if not len(patched):
            return "no edge patched"
        edge = next(itertools.islice(self.graph.edges(), int(patched[-1]), None))
        return f"{len(patched):,} edges patched, as {edge}"

    def logits_given(self, inputs: Mapping[Input, mx.array]) -> NDArray[np.float32]:
        """Logits `[rows, n, d_vocab]` where these inputs read what they read in the clean run plus `inputs`.

        Every other input reads the current run. Each change is `[rows, n, pos, d_model]`; many rows are for
        the caller to split (`rows_at_once`).
        """
        rows = max(len(change) for change in inputs.values())
        fixed = np.zeros((rows, self.n_edges), dtype=bool)
        self._start_from_clean_unless_in(fixed)
        for receiver in inputs:
            fixed[:, self._edges_into[receiver]] = True  # what they would read otherwise does not matter
        return self._batch_logits(fixed, inputs)

    def corruption(self, sender: Node) -> mx.array:
        """What a patched edge of this sender carries, minus out(clean): [n, pos, d_model]."""
        return self._corruption[self._at[sender]]

    # one batch of rows

    def _batch_logits(self, patched: Mask, given: Mapping[Input, mx.array]) -> NDArray[np.float32]:
        """Logits `[rows, n, d_vocab]` at the last position, one row per row of patched edges.

        Args:
            given: inputs that read what they read in the clean run plus this, `[rows, n, pos, d_model]`.
        """
        return self._run_rows(patched, given)[1]

    def _run_rows(
        self, patched: Mask, given: Mapping[Input, mx.array], *, recorded: bool = False
    ) -> tuple[_Rows, NDArray[np.float32]]:
        changes = {receiver: (change, _nonzero(change)) for receiver, change in given.items()}
        run = _Rows(
            patched, self._needed(patched), changes, patched & ~self._start.patched, recorded=recorded
        )
        for layer in range(self.graph.n_layers):
            self._attend(run, layer)
            if self.graph.has_mlp:
                self._read_and_write(run, layer)
        receiver = self.graph.receivers[-1]
        rows = np.flatnonzero(self._touched(run, receiver))
        if self._start.logits is None:
            self._start.logits = self._nodes.logits(self._clean_input(receiver[0]))
        logits = np.broadcast_to(self._start.logits, (len(run.patched), *self._start.logits.shape)).copy()
        if len(rows):
            h = self._input(run, receiver, rows)
            found = self._nodes.logits(h[..., -1:, :].reshape(-1, 1, h.shape[-1]))
            logits[rows] = found.reshape(len(h), self.n, -1)
        return run, np.asarray(logits)

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
        into = self._edges_into[receiver]
        patched = run.patched[:, into]
        touched: Mask = np.asarray(run.new[:, into].any(axis=1))
        for sender, live in run.live.items():
            if sender < patched.shape[1]:
                touched |= live & ~patched[:, sender]
        return touched

    def _input(self, run: _Rows, receiver: Input, rows: NDArray[np.int64]) -> mx.array:
        """What this input reads in these rows [rows, n, pos, d_model]; [1, …] where it is the same in all."""
        if receiver in run.given:
            return self._clean_input(receiver[0]) + run.given[receiver][0][mx.array(rows)]
        into, start = self._edges_into[receiver], self._start
        patched, new = run.patched[rows, into], run.new[rows, into]
        count = patched.shape[1]
        same = bool((new == new[0]).all())
        used = np.flatnonzero(new.any(axis=0))
        h = start.inputs.get(receiver, self._clean_input(receiver[0]))[None]
        if len(used):
            weights = mx.array((new[:1] if same else new)[:, used].astype(np.float32))
            d = self._corruption[:count] if len(used) == count else self._corruption[mx.array(used)]
            if start.writes:
                zero = mx.zeros_like(d[0])
                d = d - mx.stack([start.writes.get(sender, zero) for sender in used.tolist()])
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
        if run.recorded:
            run.inputs[receiver] = h
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
                if run.recorded:
                    run.z[layer, i] = changed[i][1]
        if changed and self._nodes.heads_interact(layer):
            self._write_together(run, layer, changed)
            return
        for i, (rows, z) in changed.items():
            run.write(self._at[head(layer, i)], rows, self._nodes.written(layer, i, z - self._z(layer, i)))

    def _z(self, layer: int, i: int) -> mx.array:
        """z of a head in the run that others are computed from: [n, pos, d_head]."""
        return self._start.z.get((layer, i), self._clean[HookPoint("z", layer)][..., i, :])

    def _write_together(
        self, run: _Rows, layer: int, changed: dict[int, tuple[NDArray[np.int64], mx.array]]
    ) -> None:
        start = [self._z(layer, i) for i in range(self.graph.n_heads)]
        rows = np.unique(np.concatenate([own for own, _ in changed.values()]))
        columns = []
        for i in range(self.graph.n_heads):
            column = mx.broadcast_to(start[i], (len(rows), *start[i].shape))
            if i in changed:
                own, z = changed[i]
                column = column[...]
                column[mx.array(np.searchsorted(rows, own))] = mx.broadcast_to(z, (len(own), *z.shape[1:]))
            columns.append(column)
        delta = self._nodes.all_written(layer, mx.stack(columns, axis=-2)) - self._nodes.all_written(
            layer, mx.stack(start, axis=-2)
        )
        for i in range(self.graph.n_heads):
            run.write(self._at[head(layer, i)], rows, delta[..., i, :])

    def _read_and_write(self, run: _Rows, layer: int) -> None:
        node = mlp(layer)
        (receiver,) = self.graph.inputs_of(node)
        rows = self._rows_of(run, node, (receiver,))
        if len(rows):
            change = self._input(run, receiver, rows) - self._clean_input(node)
            delta, before = self.mlp_change(layer, change), self._start.writes.get(self._at[node])
            run.write(self._at[node], rows, delta if before is None else delta - before)

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
