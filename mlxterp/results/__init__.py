"""What analyses return: numpy arrays and plain values that outlive the model. Imports no mlx.

Lives here: the kinds of results, what they show, JSON both ways. Does not live here: measuring
(`mlxterp.causal`), drawing (`mlxterp.plots`), pages (`mlxterp.reports`).
"""

from __future__ import annotations

from mlxterp.results.ablation import AblationResult, AblationRow
from mlxterp.results.attention import AttentionPatternResult, HeadScoresResult
from mlxterp.results.base import AnalysisResult, is_result, kinds
from mlxterp.results.behavior import GenerationResult, MetricsResult, MetricsRow
from mlxterp.results.circuit import (
    CircuitEdge,
    CircuitResult,
    EdgeScoresResult,
    FaithfulnessResult,
    FaithfulnessRow,
)
from mlxterp.results.feature_circuit import FeatureCircuitResult, FeatureEdge, FeatureNode
from mlxterp.results.feature_effects import FeatureAttributionResult, FeatureEffectsResult
from mlxterp.results.features import (
    ActiveFeaturesResult,
    FeatureExample,
    FeatureExamplesResult,
    FeatureLabelsResult,
)
from mlxterp.results.lens import LogitLensResult
from mlxterp.results.logit_attribution import (
    LogitAttributionResult,
    NeuronAttributionResult,
    mean_attribution,
)
from mlxterp.results.patching import (
    PatchingResult,
    PathPatchingResult,
    TurnPatchingResult,
)
from mlxterp.results.sae_quality import Quality, SAEQualityResult
from mlxterp.results.schema import json_schema
from mlxterp.results.search import MeasuredAgain
from mlxterp.results.tracing import CausalTracingResult
from mlxterp.results.values import json_safe, plain
from mlxterp.results.views import Bars, Component, Heatmap, Note, Section, Show, Table
from mlxterp.results.workflow import Step, WorkflowResult

__all__ = [
    "AblationResult",
    "AblationRow",
    "ActiveFeaturesResult",
    "AnalysisResult",
    "AttentionPatternResult",
    "Bars",
    "CausalTracingResult",
    "CircuitEdge",
    "CircuitResult",
    "Component",
    "EdgeScoresResult",
    "FaithfulnessResult",
    "FaithfulnessRow",
    "FeatureAttributionResult",
    "FeatureCircuitResult",
    "FeatureEdge",
    "FeatureEffectsResult",
    "FeatureExample",
    "FeatureExamplesResult",
    "FeatureLabelsResult",
    "FeatureNode",
    "GenerationResult",
    "HeadScoresResult",
    "Heatmap",
    "LogitAttributionResult",
    "LogitLensResult",
    "MeasuredAgain",
    "MetricsResult",
    "MetricsRow",
    "NeuronAttributionResult",
    "Note",
    "PatchingResult",
    "PathPatchingResult",
    "Quality",
    "SAEQualityResult",
    "Section",
    "Show",
    "Step",
    "Table",
    "TurnPatchingResult",
    "WorkflowResult",
    "is_result",
    "json_safe",
    "json_schema",
    "kinds",
    "mean_attribution",
    "plain",
]
