"""Causal methods: patching, attribution, ablation. Every sweep runs on `causal/sweep.py`."""

from __future__ import annotations

from mlxterp.causal.ablation import ablate
from mlxterp.causal.acdc import acdc
from mlxterp.causal.acdc_progress import AcdcProgress
from mlxterp.causal.activation_patching import activation_patching, activation_patchings
from mlxterp.causal.attention_patterns import attention_patterns
from mlxterp.causal.attribution import attribution_patching, attribution_patchings
from mlxterp.causal.behaviour import behaviour
from mlxterp.causal.causal_tracing import TracedPrompt, causal_tracing
from mlxterp.causal.circuit import Circuit, roc_auc
from mlxterp.causal.circuit_evaluation import (
    Completeness,
    Minimality,
    completeness,
    faithfulness,
    faithfulnesses,
    minimality,
)
from mlxterp.causal.direct_logit import direct_logit_attribution, direct_logit_neurons
from mlxterp.causal.edge_attribution import edge_attribution
from mlxterp.causal.edge_run import EdgeRun
from mlxterp.causal.faithfulness_curve import FaithfulnessCurve, faithfulness_curve
from mlxterp.causal.graph import Edge, Graph, Node, all_edges, graph_of, parse_edge
from mlxterp.causal.head_sets import random_head_sets
from mlxterp.causal.lens import logit_lens
from mlxterp.causal.pair import PromptPair
from mlxterp.causal.path_patching import path_patching
from mlxterp.causal.patterns import attention_scores
from mlxterp.causal.tuned_lens import TunedLens, identity_lens, load_tuned_lens, tuned_lens
from mlxterp.causal.tuned_lens_training import train_tuned_lens

__all__ = [
    "AcdcProgress",
    "Circuit",
    "Completeness",
    "Edge",
    "EdgeRun",
    "FaithfulnessCurve",
    "Graph",
    "Minimality",
    "Node",
    "PromptPair",
    "TracedPrompt",
    "TunedLens",
    "ablate",
    "acdc",
    "activation_patching",
    "activation_patchings",
    "all_edges",
    "attention_patterns",
    "attention_scores",
    "attribution_patching",
    "attribution_patchings",
    "behaviour",
    "causal_tracing",
    "completeness",
    "direct_logit_attribution",
    "direct_logit_neurons",
    "edge_attribution",
    "faithfulness",
    "faithfulness_curve",
    "faithfulnesses",
    "graph_of",
    "identity_lens",
    "load_tuned_lens",
    "logit_lens",
    "minimality",
    "parse_edge",
    "path_patching",
    "random_head_sets",
    "roc_auc",
    "train_tuned_lens",
    "tuned_lens",
]
