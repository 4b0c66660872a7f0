"""What analyses return: numpy arrays and plain values that outlive the model. Imports no mlx.

Lives here: the kinds of results, what they show, JSON both ways. Does not live here: measuring
(`mlxterp.causal`), drawing (`mlxterp.plots`), pages (`mlxterp.reports`).
"""

from __future__ import annotations

from mlxterp.results.ablation import AblationResult, AblationRow
from mlxterp.results.base import AnalysisResult, is_result, kinds
from mlxterp.results.circuit import CircuitEdge, CircuitResult
from mlxterp.results.edges import EdgeScoresResult
from mlxterp.results.lens import LogitLensResult
from mlxterp.results.logit_attribution import LogitAttributionResult
from mlxterp.results.neurons import NeuronAttributionResult
from mlxterp.results.patching import PatchingResult
from mlxterp.results.paths import PathPatchingResult
from mlxterp.results.scores import HeadScoresResult, MetricsResult, MetricsRow
from mlxterp.results.shows import Bars, Component, Heatmap, Note, Show, Table
from mlxterp.results.values import json_safe, plain

__all__ = [
    "AblationResult",
    "AblationRow",
    "AnalysisResult",
    "Bars",
    "CircuitEdge",
    "CircuitResult",
    "Component",
    "EdgeScoresResult",
    "HeadScoresResult",
    "Heatmap",
    "LogitAttributionResult",
    "LogitLensResult",
    "MetricsResult",
    "MetricsRow",
    "NeuronAttributionResult",
    "Note",
    "PatchingResult",
    "PathPatchingResult",
    "Show",
    "Table",
    "is_result",
    "json_safe",
    "kinds",
    "plain",
]
