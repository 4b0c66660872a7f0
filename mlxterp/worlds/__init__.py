"""Worlds with known truth, planted and null, on which whatever makes and judges claims is measured.

Planted: the hand-built toy, the toy with moved heads, programs compiled into weights, two heads that back
each other up, SmolLM2 with a planted direction. Inert: heads that are cut off. Null: random weights with
selected answers or with the model's own first tokens as answers, shuffled labels, the weight-shuffled twin.
Null effects with the spread of real heads are made from measured numbers (`null_effect`).
"""

from __future__ import annotations

from mlxterp.worlds.null import (
    llama_with_preferred_answers,
    null_effect,
    random_llama,
    shuffled_labels,
    weight_shuffled,
    with_effect,
)
from mlxterp.worlds.planted import (
    backup_heads,
    compiled_program,
    smollm2_with_direction,
    toy_induction,
    toy_with_moved_heads,
    with_inert_heads,
    with_planted_direction,
)
from mlxterp.worlds.programs import PROGRAMS
from mlxterp.worlds.twin import shuffled_twin
from mlxterp.worlds.world import SiteTruth, World

__all__ = [
    "PROGRAMS",
    "SiteTruth",
    "World",
    "backup_heads",
    "compiled_program",
    "llama_with_preferred_answers",
    "null_effect",
    "random_llama",
    "shuffled_labels",
    "shuffled_twin",
    "smollm2_with_direction",
    "toy_induction",
    "toy_with_moved_heads",
    "weight_shuffled",
    "with_effect",
    "with_inert_heads",
    "with_planted_direction",
]
