"""Causal methods: patching, attribution, ablation. Every sweep runs on `causal/sweep.py`."""
