# ruff: noqa: T201 - a command that prints
"""What hooks, generation, long prompts and a cold start cost: `python -m tests.benchmarks.everyday`.

On SmolLM2-135M. Ratios are of runs side by side in one process, in turns, medians; load distorts them less
than seconds, and is printed.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp.causal import PromptPair, activation_patching
from mlxterp.core import forward as engine
from mlxterp.core.interventions import add
from mlxterp.core.model import InterpretableModel

PROMPT = "The Eiffel Tower is located in the city of"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.everyday", description=__doc__)
    parser.add_argument("--repeat", type=int, default=15, help="turns of each pair of runs")
    parser.add_argument("--long", type=int, default=512, help="tokens of the long prompt")
    options = parser.parse_args()
    model = InterpretableModel("smollm2-135m")
    print(f"SmolLM2-135M float32, {model.blas}, load {os.getloadavg()[0]:.1f}")
    _forward(model, options.repeat)
    _generation(model, max(3, options.repeat // 3))
    _long(model, options.long)
    _cold_start()


def _forward(model: InterpretableModel, repeat: int) -> None:
    tokens = mx.array(model.to_tokens(PROMPT))
    bare = lambda: mx.eval(model.model(tokens))  # noqa: E731
    idle = lambda: mx.eval(engine.run(model.architecture, tokens)[0])  # noqa: E731
    captured = lambda: mx.eval(model.run(tokens, capture=("resid_pre", "resid_post", "z", "mlp_out")))  # noqa: E731
    alone, hooked, looked = _turns((bare, idle, captured), repeat)
    print(f"one forward of {tokens.shape[1]} tokens: {1e3 * alone:.1f} ms bare")
    print(
        f"  hooks idle {1e3 * (hooked - alone):+.2f} ms; with 120 captures {1e3 * (looked - alone):+.2f} ms"
    )


def _generation(model: InterpretableModel, repeat: int) -> None:
    from mlx_lm.generate import generate_step

    prompt, count = mx.array(model.to_tokens(PROMPT)[0]), 48
    steer = add("L10.resid_post", np.zeros(model.d_model, np.float32))

    def peer() -> list[int]:
        return [int(token) for token, _ in generate_step(prompt, model.model, max_tokens=count)]

    def ours(interventions: Sequence[Any] = ()) -> tuple[int, ...]:
        return model.generate(
            PROMPT, max_new_tokens=count, stop_at_end=False, interventions=interventions
        ).tokens

    assert list(ours()) == peer()
    lm, plain, steered = _turns((peer, ours, lambda: ours([steer])), repeat)
    print(
        f"{count} tokens, greedy: mlx-lm {lm:.2f} s; ours ×{plain / lm:.3f}, "
        f"with an intervention ×{steered / lm:.3f}"
    )


def _long(model: InterpretableModel, length: int) -> None:
    words = [int(token) for token in np.random.default_rng(0).integers(1000, 40_000, length)]
    other = [*words]
    other[-4] = words[-4] + 1
    pair = PromptPair(tuple(words), tuple(other))
    before = _peak()
    begin = time.perf_counter()
    result = activation_patching(
        model, pair, by="layer_pos", metric="kl", positions=range(length - 8, length)
    )
    took = time.perf_counter() - begin
    print(
        f"{length} tokens: {result.effects.size} cells of resid_pre in {took:.1f} s; "
        f"the process's peak went from {before:.2f} to {_peak():.2f} GB"
    )


def _cold_start() -> None:
    code = (
        "import time; t = time.perf_counter(); from mlxterp import InterpretableModel; "
        "a = time.perf_counter(); "
        "m = InterpretableModel('smollm2-135m'); b = time.perf_counter(); print(a - t, b - a)"
    )
    runs = []
    for _ in range(3):
        begin = time.perf_counter()
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        runs.append((time.perf_counter() - begin, *map(float, said.split())))
    whole, imports, load = min(runs)
    print(f"cold process: {whole:.2f} s, of which import {imports:.2f}, InterpretableModel {load:.2f}")


def _turns(runs: Sequence[Callable[[], Any]], repeat: int) -> list[float]:
    """The median seconds of each, run in turns."""
    took: list[list[float]] = [[] for _ in runs]
    for turn in range(repeat + 1):
        for run, times in zip(runs, took, strict=True):
            begin = time.perf_counter()
            run()
            if turn:
                times.append(time.perf_counter() - begin)
    return [statistics.median(times) for times in took]


def _peak() -> float:
    """Resident memory at its highest, in GB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1e9 if sys.platform == "darwin" else size / 1e6


if __name__ == "__main__":
    main()
