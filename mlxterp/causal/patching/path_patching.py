"""Path patching: what senders do through the paths into some receivers (Wang et al. 2022, appendix B).

    A  the corrupted run gives the senders' outputs
    B  the clean run gives everything else
    C  the clean run, its senders replaced by A, all other heads frozen to B, MLPs recomputed (or frozen too):
       what arrives at the receivers' inputs is recorded
    D  the clean run, the receivers' inputs replaced by what was recorded, nothing frozen: the metric is read

With MLPs frozen in C, only the direct edges are left: in(C) = in(B) + Σ_senders out(A) − out(B).

Steps A, B and D are `edge_patching.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.circuits.edge_patching import EdgeRun, Input
from mlxterp.causal.circuits.graph import (
    Graph,
    Node,
    input_name,
    parse_node,
)
from mlxterp.causal.finite import require_finite
from mlxterp.causal.prompts.encoding import Prompt
from mlxterp.causal.prompts.pair import MetricLike, Pairs, as_pairs, prepare
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError
from mlxterp.measurements import recorder
from mlxterp.progress import ProgressOption, reporting
from mlxterp.results import PathPatchingResult
from mlxterp.statistics.effects import effects


def path_patching(
    model: InterpretableModel,
    clean: Prompt | Pairs,
    corrupted: Prompt | None = None,
    *,
    receivers: str | Sequence[str],
    senders: str | Sequence[str | Sequence[str]] | None = None,
    freeze_mlps: bool = False,
    positions: int | Sequence[int] | None = None,
    metric: MetricLike = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    token_budget: int | None = None,
    seed: int = 0,
    progress: ProgressOption = None,
) -> PathPatchingResult:
    """The share of the gap between clean and corrupted that senders carry into these receivers.

    Args:
        clean: a prompt with `corrupted`, a PromptPair, a list of them, or prepared pairs; all of one length.
        receivers: the inputs that the change reaches, together: `L9.H6.q` (or `.k`, `.v`), `L9.H6` for all
            three, `L3.mlp`, `logits`. Where query heads share keys, `L9.KV2.k`.
        senders: each entry is measured by itself: `L5.H5`, `L3.mlp`, `input`, or a list of these that send
            together. By default every node that comes before a receiver, one at a time.
        freeze_mlps: leaves the direct edges only; else MLPs between sender and receiver pass the change on.
        positions: where the senders are replaced; all by default.
        metric: see `mlxterp.metrics.resolve`.
        token_budget: bounds the memory of a batch.
        seed: kept for callers of earlier versions; intervals are no longer drawn.
        progress: called with (senders done, senders in all); by default a bar after two seconds, False for
            none.

    Returns:
        a sender that comes after the receivers has an effect of exactly 0.

    Raises:
        SweepError: a name that is no node or input of this model, a position that does not exist, prompts of
            different lengths.
        CapabilityUnavailable: this architecture's nodes cannot be run one by one.
    """
    prepared = prepare(model, as_pairs(clean, corrupted, answer=answer, foil=foil), metric)
    run = EdgeRun(model, prepared.clean, prepared.corrupted, token_budget=token_budget)
    names = (receivers,) if isinstance(receivers, str) else tuple(receivers)
    inputs = list(dict.fromkeys(each for name in names for each in _inputs(run.graph, name, model.name)))
    if not inputs:
        raise SweepError("no receivers were given. Name inputs such as L9.H6.q, L3.mlp or logits.")
    sets = _sender_sets(run.graph, senders, inputs, model.name)
    where = _where(positions, run.length)
    values = np.empty((run.n, len(sets)))
    with reporting(progress, "path patching") as shown:
        for first in range(0, len(sets), run.rows_at_once):
            some = sets[first : first + run.rows_at_once]
            logits = run.logits_given(
                _Arrivals(run, some, inputs, where, freeze_mlps=freeze_mlps).at_receivers()
            )
            for i, rows in enumerate(logits):
                values[:, first + i] = prepared.metric(rows, prepared.targets)
            if shown is not None:
                shown(first + len(some), len(sets))
    require_finite(
        values,
        lambda i: " + ".join(str(node) for node in sets[i]),
        f"{prepared.metric.name} with the senders' change at the receivers",
        "Leave these senders out with senders=, or load the model with dtype=mx.float32.",
    )
    # The clean run as these runs compute it, so that a change that reaches no receiver is exactly 0.
    unchanged = prepared.metric(run.logits([()])[0], prepared.targets)
    found = effects(
        values,
        one=prepared.corrupted_metric,
        zero=unchanged,
        clusters=prepared.clusters,
        search=len(sets) > 1,
        seed=seed,
    )
    recorder.add_method("path_patching", pairs=len(prepared.pairs))
    return PathPatchingResult(
        senders=tuple(" + ".join(str(node) for node in nodes) for nodes in sets),
        effects=found.effects,
        receivers=tuple(input_name(*each) for each in inputs),
        through="nothing" if freeze_mlps or not run.graph.has_mlp else "mlps",
        metric=prepared.metric.name,
        clean_metric=float(prepared.clean_metric.mean()),
        corrupted_metric=float(prepared.corrupted_metric.mean()),
        per_example=found.per_example if len(prepared.pairs) > 1 else None,
        ci_low=found.low,
        ci_high=found.high,
        simultaneous_low=None if found.search is None else found.search.low,
        simultaneous_high=None if found.search is None else found.search.high,
        measured_on=prepared.measured_on(model)
        | {"direction": "noising", "positions": "all" if positions is None else where.tolist()}
        | found.facts(),
    )


@dataclass(frozen=True, eq=False)
class _Arrivals:
    """Step C: how the stream that each receiver reads changes, one row per set of senders."""

    run: EdgeRun
    sets: Sequence[tuple[Node, ...]]
    inputs: Sequence[Input]
    where: NDArray[np.int64]
    freeze_mlps: bool

    def at_receivers(self) -> dict[Input, mx.array]:
        graph = self.run.graph
        total = mx.zeros((len(self.sets), *self.run.corruption(graph.senders[0]).shape))
        read = {graph.n_senders_to(node) for node, _ in self.inputs}
        mlps = {graph.n_senders_to(node) for node in graph.senders if node.kind == "mlp"}
        streams: dict[int, mx.array] = {}  # how the stream has changed behind so many senders
        for count, node in enumerate(graph.senders[: max(read)]):
            if count in read | mlps:
                streams[count] = total
            change = self._output(node, streams[graph.n_senders_to(node)] if node.kind == "mlp" else total)
            total = total if change is None else total + change
            mx.eval(total)
        streams[max(read)] = total
        return {each: streams[graph.n_senders_to(each[0])] for each in self.inputs}

    def _output(self, node: Node, stream: mx.array) -> mx.array | None:
        """How this node's output changes when its stream has changed so; None where it does not."""
        sends = np.array([node in nodes for nodes in self.sets])
        change = None
        if node.kind == "mlp" and not self.freeze_mlps:
            changed = mx.any(stream != 0, axis=(1, 2, 3), keepdims=True)  # an unchanged row stays exactly 0
            if mx.any(changed).item():
                change = mx.where(changed, self.run.mlp_change(node.layer, stream), 0.0)
        if not sends.any():
            return change
        kept = self.run.corruption(node)
        mask = np.zeros(self.run.length, dtype=np.float32)
        mask[self.where] = 1.0
        at = mx.array(mask)[None, None, :, None]
        replaces = mx.array(sends.astype(np.float32))[:, None, None, None] * at
        own = replaces * kept[None]
        return own if change is None else own + (1.0 - replaces) * change


def _inputs(graph: Graph, name: str, model: str) -> list[Input]:
    """The inputs that a receiver's name means."""
    node_name, _, last = name.rpartition(".")
    every: dict[tuple[str, str], Input] = {(str(node), into): (node, into) for node, into in graph.receivers}
    if last in ("q", "k", "v") and (node_name, last) in every:
        return [every[node_name, last]]
    if last not in ("q", "k", "v"):
        node = parse_node(name)
        found = [each for each in graph.receivers if each[0] == node]
        if node.kind == "head" and node in graph.senders:
            found = list(graph.inputs_of(node))
        if found:
            return found
    keys = f"L0.KV0.k to L{graph.n_layers - 1}.KV{graph.n_kv_heads - 1}.v" if graph.shared else "…k and …v"
    raise SweepError(
        f"{model} has no receiver {name!r}. Its receivers are L0.H0.q to "
        f"L{graph.n_layers - 1}.H{graph.n_heads - 1}.q, {keys}"
        f"{f', L0.mlp to L{graph.n_layers - 1}.mlp' if graph.has_mlp else ''}, and logits."
    )


def _sender_sets(
    graph: Graph, senders: str | Sequence[str | Sequence[str]] | None, inputs: Sequence[Input], model: str
) -> list[tuple[Node, ...]]:
    if senders is None:
        last = max(graph.n_senders_to(node) for node, _ in inputs)
        return [(node,) for node in graph.senders[:last]]
    listed = [senders] if isinstance(senders, str) else list(senders)
    sets = [tuple(parse_node(n) for n in ([each] if isinstance(each, str) else each)) for each in listed]
    if not sets or not all(sets):
        raise SweepError("no senders were given. Name nodes such as L5.H5, L3.mlp or input, or leave it out.")
    unknown = [node for nodes in sets for node in nodes if node not in graph.senders]
    if unknown:
        raise SweepError(
            f"{model} has no sender {unknown[0]}. Senders are input, L0.H0 to "
            f"L{graph.n_layers - 1}.H{graph.n_heads - 1}"
            f"{f', L0.mlp to L{graph.n_layers - 1}.mlp' if graph.has_mlp else ''}."
        )
    return sets


def _where(positions: int | Sequence[int] | None, length: int) -> NDArray[np.int64]:
    if positions is None:
        return np.arange(length)
    wanted = np.atleast_1d(np.array(positions, dtype=np.int64))
    outside = wanted[(wanted < -length) | (wanted >= length)]
    if len(outside) or not len(wanted):
        raise SweepError(
            f"positions={positions} for prompts of {length} tokens. Give some of 0 to {length - 1}, or "
            f"-{length} to -1."
        )
    return np.asarray(np.unique(wanted % length))
