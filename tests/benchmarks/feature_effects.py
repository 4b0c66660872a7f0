# ruff: noqa: T201 - a command that prints
"""What looking at SAE features costs on SmolLM2-135M: `python -m tests.benchmarks.feature_effects`.

Prints CPU seconds (user and system) on a random SAE of 4,608 features, k = 32, at L15.resid_post, each
divided by those of one forward of the same tokens; and 20 exact ablations against a forward per feature.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlxterp.core.model import InterpretableModel
from mlxterp.sae import active_features, feature_attribution, feature_circuit, feature_effects, feature_zero
from tests.benchmarks.gradients import cpu_seconds
from tests.sae.planted import random_sae

TEXT = "When John and Mary went to the store, John gave a drink to"


def main() -> None:
    model = InterpretableModel("smollm2-135m")
    low, sae, high = (
        random_sae(f"L{layer}.resid_post", width=576, d_sae=4608, k=32) for layer in (10, 15, 20)
    )
    tokens = mx.array(model.to_tokens(TEXT))
    forward = cpu_seconds(lambda: mx.eval(model.model(tokens)), repeats=10)
    print(f"one forward of {tokens.shape[-1]} tokens: {forward:.3f} CPU s; {model.blas}")
    features = active_features(model, sae, TEXT, top_k=20).features
    one_by_one = cpu_seconds(
        lambda: [mx.eval(model.logits(TEXT, interventions=[feature_zero(sae, f)])) for f in features]
    )
    batched = cpu_seconds(lambda: feature_effects(model, sae, TEXT, features=features, controls=0))
    print(f"20 ablations: {batched / forward:.1f} forwards; one by one {one_by_one / batched:.1f} times that")
    methods: dict[str, Callable[[], object]] = {
        "active features": lambda: active_features(model, sae, TEXT),
        "20 ablations with 20 controls each": lambda: feature_effects(model, sae, TEXT),
        "attribution of every feature": lambda: feature_attribution(model, sae, TEXT),
        "attribution, integrated gradients": lambda: feature_attribution(model, sae, TEXT, method="ig"),
        "circuit of three SAEs, 20 nodes each": lambda: feature_circuit(
            model, [low, sae, high], TEXT, node_threshold=0.0, max_nodes=20
        ),
    }
    for name, compute in methods.items():
        print(f"{name}: {cpu_seconds(compute, repeats=1) / forward:.1f} forwards")


if __name__ == "__main__":
    main()
