"""Activation patching, path patching, ablation, causal tracing: interventions that are really run."""
