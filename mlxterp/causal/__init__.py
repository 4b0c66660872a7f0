"""Causal methods: patching, attribution, ablation. Every sweep runs on `causal/sweep.py`."""

from __future__ import annotations

from mlxterp.causal.ablation import ablate
from mlxterp.causal.activation_patching import activation_patching
from mlxterp.causal.behaviour import behaviour
from mlxterp.causal.direct_logit import direct_logit_attribution
from mlxterp.causal.head_sets import random_head_sets
from mlxterp.causal.pair import PromptPair
from mlxterp.causal.patterns import attention_scores

__all__ = [
    "PromptPair",
    "ablate",
    "activation_patching",
    "attention_scores",
    "behaviour",
    "direct_logit_attribution",
    "random_head_sets",
]
