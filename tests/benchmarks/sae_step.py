# ruff: noqa: T201 - a command that prints
"""How much of an SAE's training step is its matrix products: `python -m tests.benchmarks.sae_step`.

Prints CPU seconds (user and system, best of some) of one step on random activations of SmolLM2's width, of
the products that its formula counts (10 · d · d_sae operations a token: pre-activations, reconstruction, and
three gradients) at the same shapes, and of what else a step does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from mlxterp.core.linux_blas import blas
from mlxterp.sae.config import Plan, SAEConfig
from mlxterp.sae.training.objective import largest
from mlxterp.sae.training.step import Stepper

D, D_SAE, K, BATCH = 576, 4608, 32, 4096


def cpu_seconds(compute: Callable[[], object], repeats: int) -> float:
    """The least CPU time of some runs, after one that is not counted."""
    compute()
    took = []
    for _ in range(repeats):
        before = time.process_time()
        compute()
        took.append(time.process_time() - before)
    return min(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batch", type=int, default=BATCH, help="tokens a step")
    arguments = parser.parse_args()
    batch = arguments.batch
    blas.use_idle_cores()  # the training itself pins one thread, unless OPENBLAS_NUM_THREADS says otherwise
    x = mx.array(np.random.default_rng(0).normal(size=(batch, D)).astype(np.float32))
    operations = 10 * D * D_SAE * batch
    print(blas.which())
    weights, pre = mx.random.normal((D, D_SAE)), mx.random.normal((batch, D_SAE))
    mx.eval(weights, pre)
    products = cpu_seconds(
        lambda: mx.eval(x @ weights, pre @ weights.T, x @ weights, pre.T @ x, x.T @ pre), arguments.repeat
    )
    print(f"products alone: {products:.2f} CPU s, {operations / products / 1e9:.0f} GFLOP a CPU second")
    for variant in ("topk", "batchtopk"):
        config = SAEConfig(d_sae=D_SAE, k=K, variant=variant, learning_rate=1e-3)
        stepper = Stepper(config, Plan(batch, 100, 100 * batch, 10**9), 1e-3)
        state = stepper.begin(D, D, x)
        state.step = 90  # batchtopk chooses by batch at the end of a run

        def step(stepper: Stepper = stepper, state: object = state) -> None:
            stepper.advance(state, x, x)  # type: ignore[arg-type]

        spent = cpu_seconds(step, arguments.repeat)
        print(
            f"{variant}: a step of {batch} tokens {spent:.2f} CPU s, {products / spent:.0%} of it products; "
            f"{batch / spent:,.0f} tokens a CPU second"
        )
    choosing = cpu_seconds(lambda: mx.eval(largest(pre, K)), arguments.repeat)
    whole = cpu_seconds(lambda: mx.eval(mx.argpartition(pre, kth=D_SAE - K, axis=-1)), arguments.repeat)
    print(
        f"choosing {K} of {D_SAE} by token: {choosing:.3f} CPU s in two stages, {whole:.3f} by one partition"
    )


if __name__ == "__main__":
    main()
