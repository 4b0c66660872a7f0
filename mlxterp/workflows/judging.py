"""How faithful a found circuit is, beside what it has to be compared with.

Lives here: which circuits are run. Does not live here: running them (`mlxterp.causal.circuits.faithfulness`).
"""

from __future__ import annotations

import numpy as np

from mlxterp.causal.circuits.circuit import Circuit
from mlxterp.causal.circuits.faithfulness import faithfulnesses
from mlxterp.causal.circuits.graph import Graph
from mlxterp.results import CircuitResult, EdgeScoresResult, FaithfulnessResult, FaithfulnessRow
from mlxterp.workflows.request import Asked

RANDOM_SETS = 3


def faithfulness_of(
    asked: Asked,
    circuit: CircuitResult,
    scores: EdgeScoresResult | None,
    graph: Graph,
    *,
    seed: int,
    token_budget: int | None,
) -> FaithfulnessResult:
    """The circuit, the model without it, as many edges chosen by estimate alone, and as many at random.

    Faithfulness is measured with the metric of the search, on the same pairs: it says how well the search
    did, not whether the circuit holds on other prompts.
    """
    edges = tuple(graph.edges())
    found = Circuit.of(circuit)
    size, rng = len(found), np.random.default_rng(seed)
    sets: list[tuple[str, str, Circuit]] = [
        ("the circuit", "found", found),
        ("all but the circuit", "without", Circuit(frozenset(edges) - found.edges)),
    ]
    if scores is not None and size:
        best = Circuit.of([component.label for component in scores.top_components(size)])
        sets.append(("as many edges by attribution", "comparison", best))
    for i in range(RANDOM_SETS if 0 < size < len(edges) else 0):
        drawn = rng.choice(len(edges), size=size, replace=False)
        sets.append((f"random edges {i + 1}", "random", Circuit(frozenset(edges[j] for j in drawn))))
    prepared = asked.prepared
    measured = faithfulnesses(
        asked.model,
        asked.pairs,
        [each for _, _, each in sets],
        metric=asked.metric,
        align=asked.align,
        token_budget=token_budget,
        seed=seed,
    )
    one, zero = float(prepared.clean_metric.mean()), float(prepared.corrupted_metric.mean())
    rows = []
    for i, (label, group, each) in enumerate(sets):
        f = float(measured.effects[i])
        ci = None
        if measured.low is not None and measured.high is not None:
            ci = (float(measured.low[i]), float(measured.high[i]))
        rows.append(
            FaithfulnessRow(
                label=label,
                n_edges=len(each),
                value=zero + f * (one - zero),
                faithfulness=f,
                group=group,
                ci=ci,
            )
        )
    return FaithfulnessResult(
        rows=tuple(rows),
        metric=prepared.metric.name,
        clean_metric=one,
        corrupted_metric=zero,
        n_edges=graph.n_edges,
        measured_on=prepared.measured_on(asked.model)
        | {"ablation": "other edges carry the corrupted prompt's value (resample)", "seed": seed},
    )
