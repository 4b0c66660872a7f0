"""Workflows: several analyses of one question, in order, with the sentences that join them.

Lives here: which analyses run, what they share, what they say together. Does not live here: the analyses
(`mlxterp.causal`, `mlxterp.sae`), the kind of result (`mlxterp.results.workflow`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxterp.workflows.discovery import circuit_discovery as circuit_discovery
    from mlxterp.workflows.features import feature_investigation as feature_investigation
    from mlxterp.workflows.localization import behavior_localization as behavior_localization
    from mlxterp.workflows.progress import StepProgress as StepProgress
    from mlxterp.workflows.prompt_check import check_prompts as check_prompts

_WHERE = {
    "StepProgress": "mlxterp.workflows.progress",
    "behavior_localization": "mlxterp.workflows.localization",
    "check_prompts": "mlxterp.workflows.prompt_check",
    "circuit_discovery": "mlxterp.workflows.discovery",
    "feature_investigation": "mlxterp.workflows.features",
}

__all__ = [
    "StepProgress",
    "behavior_localization",
    "check_prompts",
    "circuit_discovery",
    "feature_investigation",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(
            f"module 'mlxterp.workflows' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
