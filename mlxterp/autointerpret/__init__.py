"""The contract of an investigation: its files, its log, its keep rule. Importable without mlx.

Not to be confused with `mlxterp.auto_interp` (an LLM labels SAE features) or `autointerp` (the command that
supervises an investigation).
"""

from __future__ import annotations

from mlxterp.autointerpret.contract import FILES, Project, ProjectConfig, load_project
from mlxterp.autointerpret.declare import declare
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.hypothesis import Hypothesis, InterventionClaim, read_hypothesis
from mlxterp.autointerpret.keep_rule import (
    Evidence,
    Measured,
    Verdict,
    decide,
)
from mlxterp.autointerpret.log import ExperimentLog
from mlxterp.autointerpret.log_file import Seal, SealProblem
from mlxterp.autointerpret.loop import AutoInterpret
from mlxterp.autointerpret.registry import MetricRegistry
from mlxterp.autointerpret.scaffold import init_autointerpret, scaffolds

__all__ = [
    "FILES",
    "AutoInterpret",
    "Evidence",
    "ExperimentEntry",
    "ExperimentLog",
    "Hypothesis",
    "InterventionClaim",
    "Measured",
    "MetricRegistry",
    "Project",
    "ProjectConfig",
    "Seal",
    "SealProblem",
    "Verdict",
    "decide",
    "declare",
    "init_autointerpret",
    "load_project",
    "read_hypothesis",
    "scaffolds",
]
