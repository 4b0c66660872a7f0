"""Worlds with known truth, planted and null, on which whatever makes and judges claims is measured.

Planted: the hand-built toy, the toy with moved heads, programs compiled into weights. Null: random weights
with selected answers, shuffled labels, the weight-shuffled twin. Null effects with the spread of real heads
are made from measured numbers (`null_effect`).
"""

from __future__ import annotations

from mlxterp.worlds.null import null_effect, random_llama, shuffled_labels, weight_shuffled, with_effect
from mlxterp.worlds.planted import compiled_program, toy_induction, toy_with_moved_heads
from mlxterp.worlds.programs import PROGRAMS
from mlxterp.worlds.twin import shuffled_twin
from mlxterp.worlds.world import SiteTruth, World

__all__ = [
    "PROGRAMS",
    "SiteTruth",
    "World",
    "compiled_program",
    "null_effect",
    "random_llama",
    "shuffled_labels",
    "shuffled_twin",
    "toy_induction",
    "toy_with_moved_heads",
    "weight_shuffled",
    "with_effect",
]
