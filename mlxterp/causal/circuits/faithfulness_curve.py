"""Faithfulness of circuits of growing size, by the scores of their edges, with the areas CPR and CMD (MIB).

What lives here: the curve and its areas. What doesn't: a circuit's faithfulness (`circuit_runs.py`), scores
(`edge_attribution.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlxterp.causal.circuits.circuit import Circuit, EdgeScores, scores_in_order
from mlxterp.causal.circuits.circuit_runs import Evaluation, MetricLike, Pairs
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of a model's edges at which MIB evaluates circuits."""


@dataclass(frozen=True)
class FaithfulnessCurve:
    """Faithfulness of circuits of growing size.

    Attributes:
        sizes: shares of the model's edges that were taken, by score.
        signed, magnitude: f of each, taken by score, and by |score|.
        n_edges: how many edges of the circuits by score, and by |score|, lie on a path to the logits.
    """

    sizes: tuple[float, ...]
    signed: tuple[float, ...]
    magnitude: tuple[float, ...]
    n_edges: tuple[tuple[int, int], ...]

    @property
    def cpr(self) -> float:
        """Circuit performance ratio: the area under f of the circuits by score. Higher is better."""
        return _area(self.sizes, self.signed)

    @property
    def cmd(self) -> float:
        """Circuit-model distance: the area under |1 − f| of the circuits by |score|. 0 is best."""
        return _area(self.sizes, [abs(1 - f) for f in self.magnitude])


def faithfulness_curve(
    model: InterpretableModel,
    pairs: Pairs,
    scores: EdgeScores,
    *,
    sizes: Sequence[float] = SIZES,
    metric: MetricLike = None,
    token_budget: int | None = None,
) -> FaithfulnessCurve:
    """f of the circuits that take the best-scored edges, with the areas CPR and CMD (Mueller et al. 2025).

    Of the `int(size · n_edges)` best edges, those on a path from the input to the logits are the circuit.

    Args:
        scores: one per edge of the model; higher = more important to the behaviour.
        sizes: ascending shares of the edges.

    Raises:
        SweepError: scores that do not fit the model, sizes that are not ascending shares.
    """
    shares = tuple(float(size) for size in sizes)
    if len(shares) < 2 or list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] <= 1:
        raise SweepError(f"sizes={sizes}. Give at least two ascending shares of the edges, above 0, up to 1.")
    on = Evaluation(model, pairs, metric, token_budget)
    graph = on.run.graph
    edges, values = tuple(graph.edges()), scores_in_order(graph, scores)
    circuits: list[Circuit] = []
    for ranked in (values, np.abs(values)):
        order = np.argsort(-ranked, kind="stable")
        circuits += [
            Circuit(frozenset(edges[i] for i in order[: int(size * len(edges))])).connected(graph)
            for size in shares
        ]
    found = on.f([on.removed(circuit) for circuit in circuits]).tolist()
    half = len(shares)
    counts = [len(circuit) for circuit in circuits]
    return FaithfulnessCurve(
        shares,
        tuple(found[:half]),
        tuple(found[half:]),
        tuple(zip(counts[:half], counts[half:], strict=True)),
    )


def _area(x: Sequence[float], y: Sequence[float]) -> float:
    """By the trapezoidal rule."""
    return float(np.sum(np.diff(x) * (np.asarray(y)[1:] + np.asarray(y)[:-1]) / 2))
