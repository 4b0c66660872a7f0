# ruff: noqa: T201 - a command that prints
"""What gradient methods cost on SmolLM2-135M, in plain forwards: `python -m tests.benchmarks.gradients`.

Prints CPU seconds (user and system, best of three) of attribution patching of every node, EAP and EAP-IG(5)
over all edges, each divided by those of one forward of the same tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import mlx.core as mx

from mlxterp.causal import PromptPair, attribution_patchings, edge_attribution
from mlxterp.core.model import InterpretableModel

TEXT = "When John and Mary went to the store, {} gave a drink to"
PAIR = PromptPair(TEXT.format("John"), TEXT.format("Mary"), answer=" Mary", foil=" John")


def cpu_seconds(compute: Callable[[], object], repeats: int = 3) -> float:
    """The least CPU time of some runs, after one that is not counted."""
    compute()
    took = []
    for _ in range(repeats):
        before = time.process_time()
        compute()
        took.append(time.process_time() - before)
    return min(took)


def main() -> None:
    model = InterpretableModel("smollm2-135m")
    tokens = mx.array(model.to_tokens(PAIR.clean))
    forward = cpu_seconds(lambda: mx.eval(model.model(tokens)), repeats=10)
    print(f"one forward of {tokens.shape[-1]} tokens: {forward:.3f} CPU s; {model.blas}")
    methods: dict[str, Callable[[], object]] = {
        "attribution patching, every node": lambda: attribution_patchings(model, PAIR, steps=1, verify=0),
        "EAP, every edge": lambda: edge_attribution(model, PAIR),
        "EAP-IG(5), every edge": lambda: edge_attribution(model, PAIR, method="eap-ig"),
    }
    for name, compute in methods.items():
        print(f"{name}: {cpu_seconds(compute) / forward:.1f} forwards")


if __name__ == "__main__":
    main()
