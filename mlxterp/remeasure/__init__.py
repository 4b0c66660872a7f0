"""A declared claim, measured again as data and without the researcher's code: effects, controls, placebos.

`python -m mlxterp.remeasure` is the process that a supervisor's judge starts (`job.py`). Decides nothing:
levels, intervals and verdicts are the judge's.
"""

from __future__ import annotations

from mlxterp.remeasure.behaviour_gate import BehaviourCells, GateCells, gate_cells
from mlxterp.remeasure.edits import Resources
from mlxterp.remeasure.measurement import (
    Measurement,
    SetCells,
    SiteSet,
    drop_one,
    measure,
    measure_placebos,
)
from mlxterp.remeasure.pairs import MeasuredPairs, run_pairs
from mlxterp.remeasure.placebos import other_heads, placebo_sites
from mlxterp.remeasure.roles import RoleMeasurement, measure_role

__all__ = [
    "BehaviourCells",
    "GateCells",
    "MeasuredPairs",
    "Measurement",
    "Resources",
    "RoleMeasurement",
    "SetCells",
    "SiteSet",
    "drop_one",
    "gate_cells",
    "measure",
    "measure_placebos",
    "measure_role",
    "other_heads",
    "placebo_sites",
    "run_pairs",
]
