"""Causal methods: patching, attribution, ablation. Every sweep runs on `causal/batching/sweep.py`."""

from __future__ import annotations

from mlxterp.causal.attention_patterns import attention_patterns, attention_scores
from mlxterp.causal.behaviour import behaviour
from mlxterp.causal.circuits.acdc import AcdcProgress, acdc
from mlxterp.causal.circuits.circuit import Circuit, roc_auc
from mlxterp.causal.circuits.edge_patching import EdgeRun
from mlxterp.causal.circuits.faithfulness import (
    Completeness,
    FaithfulnessCurve,
    Minimality,
    completeness,
    faithfulness,
    faithfulness_curve,
    faithfulnesses,
    minimality,
)
from mlxterp.causal.circuits.graph import (
    Edge,
    Graph,
    Node,
    all_edges,
    graph_of,
    parse_edge,
)
from mlxterp.causal.direct_logit_attribution import direct_logit_attribution, direct_logit_neurons
from mlxterp.causal.gradients.attribution_patching import attribution_patching, attribution_patchings
from mlxterp.causal.gradients.edge_attribution import edge_attribution
from mlxterp.causal.logit_lens import logit_lens
from mlxterp.causal.patching.ablation import ablate, random_head_sets
from mlxterp.causal.patching.activation_patching import activation_patching, activation_patchings
from mlxterp.causal.patching.causal_tracing import TracedPrompt, causal_tracing
from mlxterp.causal.patching.path_patching import path_patching
from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.causal.tuned_lens import TunedLens, identity_lens, load_tuned_lens, train_tuned_lens, tuned_lens

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
