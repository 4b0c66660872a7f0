# ruff: noqa: T201 - a command that prints
"""Where a sweep's CPU time goes on SmolLM2-135M: `python -m tests.benchmarks.sweep_profile [--pair tower]`.

Runs each sweep as it is, then once more with every part of a pass computed for itself: its inputs are
evaluated first, so the time between is the part's own. CPU seconds, user and system, of this process. "The
rest" is what no part accounts for: joining rows, residual additions, logits, MLX's scheduling, Python.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn

from mlxterp.causal import activation_patching
from mlxterp.causal.batching import packed_blocks
from mlxterp.core.linux_blas import swiglu as fast_math
from mlxterp.core.model import InterpretableModel
from mlxterp.core.taps import Around, tapped
from tests.benchmarks.sweeps import PAIRS, SWEEPS

Spent = Counter[str]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sweep_profile", description=__doc__)
    parser.add_argument("--pair", choices=sorted(PAIRS), help="one pair instead of both")
    options = parser.parse_args()
    model = InterpretableModel("smollm2-135m")
    for name in [options.pair] if options.pair else PAIRS:
        for component, by in SWEEPS:
            run = lambda name=name, component=component, by=by: activation_patching(  # noqa: E731
                model, PAIRS[name], component=component, by=by
            )
            run()
            _print(f"{name} {component} {by}", run, model)


def _print(title: str, run: Callable[[], object], model: InterpretableModel) -> None:
    before = time.process_time()
    run()
    plain = time.process_time() - before
    spent: Spent = Counter()
    with _measured(model, spent):
        before = time.process_time()
        run()
        whole = time.process_time() - before
    print(f"\n{title}: {plain:.2f} CPU s, {whole:.2f} in parts, load {os.getloadavg()[0]:.1f}")
    for part, seconds in spent.most_common():
        print(f"  {part:24s} {seconds:7.2f} s  {seconds / whole:4.0%}")
    left = whole - sum(spent.values())
    print(f"  {'the rest':24s} {left:7.2f} s  {left / whole:4.0%}")


@contextmanager
def _measured(model: InterpretableModel, spent: Spent) -> Iterator[None]:
    inside: list[str] = []

    def around(part: str, whole: bool = False) -> Around:
        def timed(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if inside:
                return call(*args, **kwargs)
            mx.eval(_arrays((args, kwargs)))
            if whole:
                inside.append(part)
            began = time.process_time()
            try:
                y = call(*args, **kwargs)
                mx.eval(_arrays(y))
            finally:
                spent[part] += time.process_time() - began
                if whole:
                    inside.pop()
            return y

        return timed

    def replaced(owner: Any, name: str, part: str, whole: bool = False) -> Any:
        original = getattr(owner, name)
        timed = around(part, whole=whole)
        return mock.patch.object(owner, name, lambda *a, **k: timed(original, *a, **k))

    taps: list[tuple[nn.Module, Around]] = []
    for module in model.model.modules():
        kind = type(module).__name__.lower()
        if isinstance(module, nn.Linear):
            taps.append((module, around("linear layers")))
        elif "norm" in kind:
            taps.append((module, around("norms")))
        elif "rope" in kind:
            taps.append((module, around("rotary embedding")))
    with ExitStack() as stack:
        stack.enter_context(tapped(taps))
        stack.enter_context(replaced(fast_math, "swiglu", "SwiGLU"))
        stack.enter_context(replaced(packed_blocks, "shared_prefix", "attention"))
        yield


def _arrays(x: Any) -> list[mx.array]:
    if isinstance(x, mx.array):
        return [x]
    if isinstance(x, dict):
        return _arrays(list(x.values()))
    if isinstance(x, Sequence) and not isinstance(x, str):
        return [array for each in x for array in _arrays(each)]
    return []


if __name__ == "__main__":
    main()
