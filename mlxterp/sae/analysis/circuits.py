"""Feature circuits: which features of several SAEs do the work, and through which others.

What lives here: putting a circuit together. What doesn't: choosing its nodes and edges (`circuit_search.py`),
running the model with only some nodes kept (`kept_nodes.py`), features of one SAE (`effects.py`, `attribution.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlxterp.causal.gradients.backward import refuse_at_its_minimum
from mlxterp.core.hook_points import LAYER_NAMES, HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.core.selection import Positions
from mlxterp.errors import SAEError
from mlxterp.metrics import Metric, MetricFunction
from mlxterp.results import FeatureCircuitResult
from mlxterp.sae.analysis.attribution import (
    STEPS,
    Method,
    path,
    refuse_behind_the_blocks,
    refuse_method,
)
from mlxterp.sae.analysis.circuit_search import Search
from mlxterp.sae.analysis.interventions import refuse_transcoder
from mlxterp.sae.analysis.kept_nodes import Keep, kept_metric
from mlxterp.sae.analysis.runs import Ablation, chosen_ablation, prepare
from mlxterp.sae.analysis.texts import Given
from mlxterp.sae.sae import SAE


def feature_circuit(
    model: InterpretableModel,
    saes: Sequence[SAE],
    text: Given,
    *,
    node_threshold: float = 0.1,
    edge_threshold: float = 0.01,
    method: Method = "gradient",
    steps: int | None = None,
    metric: str | MetricFunction | Metric | None = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    ablation: Ablation | None = None,
    positions: Positions = None,
    max_nodes: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureCircuitResult:
    """A circuit of features across layers: nodes, edges, and its faithfulness by exact ablation.

    Each SAE splits its activation into features and an error, and the error is a node like the features, so
    nothing of the model is left out.

        node      Δ_u ∂m/∂u: the change of the metric when u is ablated (`feature_attribution`)
        edge u→d  Δ_u · ∂d/∂u · ∂m/∂d, with the SAEs between the two held: u's effect directly through d

    By "gradient" everything is taken in the unchanged run, and the edges that leave a node, those into errors
    and the metric included, add up to the node's effect. By "ig" each slope is a mean along the path from
    there to where the SAE is ablated: ∂m/∂u and ∂d/∂u along u's, ∂m/∂d along d's. That sees through
    saturated attention, whose slope in the unchanged run is near 0.

    Args:
        saes: at different hook points, in any order; two or more, or one.
        text, answer, foil, ablation, positions, method, steps, metric, seed: as for `feature_attribution`.
        node_threshold, edge_threshold: the least magnitude kept, in units of the metric; the paper's values.
        max_nodes: at most this many features of one SAE; what is left out is counted.
        progress: called with (passes done, passes in all).

    Costs a node attribution per SAE, a forward and a backward for every kept node and every SAE before it
    (each once per step), and three forwards for the faithfulness.

    Raises:
        SAEError: two SAEs at one hook point; a transcoder.

    Source: Marks et al. 2024 (2403.19647). Nodes are summed over positions. A receiver that does not fire in
    the unchanged run has no slope, so no edges into it, as there. Faithfulness is between the unchanged run
    and the run with all nodes ablated; what is ablated is "zero" or "corrupted", not a mean.
    """
    refuse_method(method, steps)
    stages = in_order(saes)
    runs = prepare(
        model, text, metric, answer=answer, foil=foil, positions=positions, own_answer=metric is None
    )
    chosen = chosen_ablation(ablation, runs.texts)
    if method == "gradient":
        refuse_at_its_minimum(runs.metric, "clean")
    points = path(STEPS if steps is None else steps) if method == "ig" else (0.0,)
    search = Search(model, stages, runs, chosen, points)
    nodes, left_out, n_nodes = search.nodes(node_threshold, max_nodes, seed)
    edges = search.edges(nodes, edge_threshold, progress)
    keep = [Keep.of(nodes, sae) for sae in stages]
    clean, empty, circuit, rest = (
        float(kept_metric(model, stages, runs, each, chosen).mean())
        for each in (None, [Keep.nothing()] * len(stages), keep, [each.others() for each in keep])
    )
    options: dict[str, Any] = {"ablation": chosen, "method": method, "steps": len(points)}
    return FeatureCircuitResult(
        nodes=nodes,
        edges=edges,
        hook_points=tuple(sae.hook_point for sae in stages),
        method=method,
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        metric=runs.metric.name,
        clean_metric=clean,
        circuit_metric=circuit,
        empty_metric=empty,
        rest_metric=rest,
        n_nodes=n_nodes,
        n_left_out=left_out,
        ablation=chosen,
        measured_on=runs.measured_on(model, *stages) | options,
    )


def in_order(saes: Sequence[SAE]) -> list[SAE]:
    """The SAEs as a forward comes to them; SAEError for two at one hook point, or a transcoder."""
    if not saes:
        raise SAEError("a feature circuit without SAEs. Pass at least one, in a list.")
    for sae in saes:
        refuse_transcoder(sae, "a node of a circuit")
        refuse_behind_the_blocks(sae)
    points = [sae.hook_point for sae in saes]
    if len(set(points)) < len(points):
        raise SAEError(f"SAEs at {', '.join(points)}: two at one hook point split the same activation twice.")
    return sorted(saes, key=lambda sae: _place(sae.point))


def _place(point: HookPoint) -> tuple[int, int]:
    if point.layer is None:
        if point.name != "embed":
            raise SAEError(f"an SAE at {point}: where a module stands in the forward order is not known.")
        return -1, 0
    return point.layer, LAYER_NAMES.index(point.name)
