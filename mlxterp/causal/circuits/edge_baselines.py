"""The two runs that runs with patched edges start from: what every node reads and writes in the clean one,
and what its patched edges carry instead.

Lives here: these runs, once. What doesn't: what is made of them (`edge_patching.py`), one node
(`node_outputs.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxterp.causal.batching import one_pass
from mlxterp.causal.batching.prefix_caches import CommonPrefix
from mlxterp.causal.batching.rows import Ids
from mlxterp.causal.circuits.edge_ablation import EdgeAblation, carried, different
from mlxterp.causal.circuits.graph import Graph
from mlxterp.causal.circuits.node_outputs import NodeOutputs
from mlxterp.causal.prompts.alignment import at_clean_positions
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel


class Baselines(NamedTuple):
    """Of n prompts, from the first computed position on.

    Attributes:
        clean: activations of the clean run [n, pos, …], float32.
        corruption: what each sender's patched edges carry, minus what it writes: [senders, n, pos, d_model].
    """

    clean: dict[HookPoint, mx.array]
    corruption: mx.array


def baselines(
    model: InterpretableModel,
    graph: Graph,
    nodes: NodeOutputs,
    clean: Ids,
    corrupted: Ids,
    *,
    positions: Sequence[tuple[int, int]] | None,
    ablation: EdgeAblation,
    start: int,
) -> Baselines:
    """Runs both prompts and compares what their nodes write; `start` is the first position that is kept."""
    names = ["z", "resid_pre", *(["mlp_out"] if graph.has_mlp else [])]
    names += ["resid_mid"] if graph.has_mlp and not graph.parallel else []
    last = HookPoint("resid_post", graph.n_layers - 1)
    n, mean_over = len(clean), different(clean, corrupted)

    def run(tokens: Ids) -> dict[HookPoint, mx.array]:
        _, seen = model.run(mx.array(tokens), capture=[*names, last, "embed"])
        return {point: x.astype(mx.float32) for point, x in seen.items()}

    def changed(both: mx.array) -> mx.array:
        return carried(ablation, both[:n], both[n:], mean_over) - both[:n]

    if positions is None:
        both = run(np.concatenate([clean, corrupted]))
    else:
        own, other = run(clean), run(corrupted)
        both = {
            point: mx.concatenate([x, at_clean_positions(x, other[point], positions)])
            for point, x in own.items()
        }
    both = {point: x[:, start:] for point, x in both.items()}
    change = [changed(both[HookPoint("embed")])[None]]
    for layer in range(graph.n_layers):
        z = both[HookPoint("z", layer)]
        written = nodes.all_written(layer, z)
        if ablation == "zero":  # the head at zero: its share of the output bias stays
            of_heads = nodes.all_written(layer, mx.zeros_like(z[:n])) - written[:n]
        else:
            of_heads = changed(written)
        change.append(mx.moveaxis(of_heads, 2, 0))
        if graph.has_mlp:
            change.append(changed(both[HookPoint("mlp_out", layer)])[None])
    found = Baselines({point: x[:n] for point, x in both.items()}, mx.concatenate(change))
    mx.eval(found.clean, found.corruption)
    return found


def common_prefix(
    model: InterpretableModel, clean: Ids, corrupted: Ids
) -> tuple[int, list[CommonPrefix] | None]:
    """The first position at which any pair differs, and what attention sees before it; 0 where that is not
    known, because this architecture keeps something else than keys and values."""
    start = int(np.argmax((clean != corrupted).any(axis=0)))
    if not start:
        return 0, None
    try:
        caches = one_pass.run_base(model, clean).caches
    except one_pass.CannotJoin:
        caches = None
    if caches is None:
        return 0, None
    return start, [CommonPrefix(start, recorded) for recorded in caches]
