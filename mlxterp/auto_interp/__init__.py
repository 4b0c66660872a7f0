"""Labels for SAE features: from evidence, scored on held-out text, tested for sensitivity.

Not `mlxterp.autointerpret` (the files of an investigation), nor `autointerp` (the command that runs one).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxterp.auto_interp.api import auto_label_feature as auto_label_feature
    from mlxterp.auto_interp.api import auto_label_features as auto_label_features
    from mlxterp.auto_interp.api import labels_result as labels_result
    from mlxterp.auto_interp.dashboard import save_dashboard as save_dashboard
    from mlxterp.auto_interp.evidence.evidence import FeatureEvidence as FeatureEvidence
    from mlxterp.auto_interp.evidence.evidence import Sampling as Sampling
    from mlxterp.auto_interp.evidence.evidence import Window as Window
    from mlxterp.auto_interp.label import FeatureLabel as FeatureLabel
    from mlxterp.auto_interp.label import Proposal as Proposal
    from mlxterp.auto_interp.llm.contrast_pairs import MinimalPairs as MinimalPairs
    from mlxterp.auto_interp.llm.contrast_pairs import minimal_pairs as minimal_pairs
    from mlxterp.auto_interp.llm.labeler import LlmLabeler as LlmLabeler
    from mlxterp.auto_interp.llm.scorers import LlmScorer as LlmScorer
    from mlxterp.auto_interp.model_scorers import InterventionScorer as InterventionScorer
    from mlxterp.auto_interp.model_scorers import SurprisalScorer as SurprisalScorer
    from mlxterp.auto_interp.other_texts import recalibrate_confidence as recalibrate_confidence
    from mlxterp.auto_interp.sensitivity.sensitivity import sensitivity_test as sensitivity_test
    from mlxterp.auto_interp.sensitivity.sensitivity import sensitivity_tests as sensitivity_tests

# Loaded when first used: who only reads labels needs no mlx.
_WHERE = {
    "FeatureEvidence": "evidence.evidence",
    "FeatureLabel": "label",
    "InterventionScorer": "model_scorers",
    "LlmLabeler": "llm.labeler",
    "LlmScorer": "llm.scorers",
    "MinimalPairs": "llm.contrast_pairs",
    "Proposal": "label",
    "Sampling": "evidence.evidence",
    "SurprisalScorer": "model_scorers",
    "Window": "evidence.evidence",
    "auto_label_feature": "api",
    "auto_label_features": "api",
    "labels_result": "api",
    "minimal_pairs": "llm.contrast_pairs",
    "recalibrate_confidence": "other_texts",
    "save_dashboard": "dashboard",
    "sensitivity_test": "sensitivity.sensitivity",
    "sensitivity_tests": "sensitivity.sensitivity",
}

__all__ = [
    "FeatureEvidence",
    "FeatureLabel",
    "InterventionScorer",
    "LlmLabeler",
    "LlmScorer",
    "MinimalPairs",
    "Proposal",
    "Sampling",
    "SurprisalScorer",
    "Window",
    "auto_label_feature",
    "auto_label_features",
    "labels_result",
    "minimal_pairs",
    "recalibrate_confidence",
    "save_dashboard",
    "sensitivity_test",
    "sensitivity_tests",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(
            f"module 'mlxterp.auto_interp' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(importlib.import_module(f"mlxterp.auto_interp.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
