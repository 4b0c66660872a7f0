# ruff: noqa: T201 - a command that prints
"""How fast sweeps are on SmolLM2-135M: `python -m tests.benchmarks.sweeps [--repeat N] [--only tower]`.

Prints, all from one run on one machine: the matmul rate that is reachable; the time of one naive patch (a
whole forward with one edit, the same BLAS), and of one TransformerLens patch if `transformer_lens` can be
imported; per sweep wall and CPU seconds, ratios, the linear layers' operations and how many times more a
forward per cell makes, and the CPU seconds of these products alone, replayed in the same sizes right after.
Wall time means something on an idle machine only, so the load is printed too; CPU seconds are this process's,
user and system. `OPENBLAS_NUM_THREADS=1` (torch is given as many) makes them comparable on a busy machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxterp.causal import PromptPair, activation_patching
from mlxterp.causal.patching.activation_patching import FIVE_SWEEPS, activation_patchings
from mlxterp.core.interventions import replace
from mlxterp.core.model import InterpretableModel
from mlxterp.core.taps import Around, tapped

PAIRS = {
    "tower": PromptPair(
        "The Eiffel Tower is located in the city of",
        "The Colosseum is located in the city of",
        answer=" Paris",
        foil=" Rome",
    ),
    "ioi": PromptPair(
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
        answer=" Mary",
        foil=" John",
    ),
}
SWEEPS = (("resid_pre", "layer_pos"), ("z", "layer_head"), ("z", "layer_pos_head"))


Product = tuple[nn.Module, int]


class Took(NamedTuple):
    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sweeps", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each sweep; the fastest counts")
    parser.add_argument("--cells", type=int, default=10, help="patches in the loops of one forward each")
    parser.add_argument("--only", choices=sorted(PAIRS), help="one pair instead of both")
    options = parser.parse_args()
    model = InterpretableModel("smollm2-135m")
    print(_machine(model))
    for name in [options.only] if options.only else PAIRS:
        _measure(model, name, options.repeat, options.cells)


def _measure(model: InterpretableModel, name: str, repeat: int, cells: int) -> None:
    pair = PAIRS[name]
    peak = _matmul_rate()
    naive = _naive(model, pair, cells)
    with _counted(model) as of_a_forward:
        mx.eval(model.logits(pair.corrupted))
    forward = _operations(of_a_forward)
    lens = _transformer_lens(model, pair, cells)
    print(f"\n{name}: {len(model.to_str_tokens(pair.clean))} tokens, load {os.getloadavg()[0]:.1f}")
    print(f"  matmul [768, 576] · [576, 1536]: {peak / 1e9:.0f} GFLOP/s")
    print(f"  one naive patch: {_both(naive)}; one TransformerLens patch: {_both(lens)}")
    print(f"  linear layers of one whole forward, which either makes per cell: {forward / 1e9:.2f} GFLOP")
    print(
        "  sweep                      cells   wall s   CPU s   × naive   × TL  (CPU)    GFLOP  × fewer  "
        "products CPU s  share"
    )
    for component, by in SWEEPS:
        run = lambda component=component, by=by: activation_patching(model, pair, component=component, by=by)  # noqa: E731
        with _counted(model) as products:
            n_cells = int(np.prod(run().effects.shape))
        best = min(_took(run) for _ in range(repeat))
        alone = min(_took(lambda: _replay(products)) for _ in range(repeat))
        print(f"  {component:9s} {by:15s} {_row(n_cells, best, naive, lens, products, alone, forward)}")
    whole = min(_took(lambda: activation_patchings(model, pair)) for _ in range(repeat))
    single = min(
        _took(lambda: activation_patching(model, pair, by="layer_pos_head", component="z")) for _ in "1"
    )
    asked = ", ".join(f"{component} {by}" for component, by in FIVE_SWEEPS)
    print(
        f"  five in one call ({asked}): {_both(whole)}; CPU ×{whole.cpu / single.cpu:.2f} of the last alone"
    )


def _row(
    cells: int,
    best: Took,
    naive: Took,
    lens: Took | None,
    products: list[Product],
    alone: Took,
    forward: float,
) -> str:
    by_wall, by_cpu = (lens.wall / best.wall, lens.cpu / best.cpu) if lens else (np.nan, np.nan)
    against = f"{by_wall * cells:6.1f} ({by_cpu * cells:5.1f})" if lens else "     –        "
    operations = _operations(products)
    return (
        f"{cells:6d}  {best.wall:7.2f} {best.cpu:7.2f}  {naive.wall * cells / best.wall:8.1f} {against}"
        f"  {operations / 1e9:7.0f}  {cells * forward / operations:7.1f}  {alone.cpu:14.2f}   "
        f"{alone.cpu / best.cpu:4.0%}"
    )


def _operations(products: list[Product]) -> float:
    return float(sum(2 * n * module.weight.size for module, n in products))


def _both(took: Took | None) -> str:
    return "not measured" if took is None else f"{took.wall:.3f} s wall, {took.cpu:.3f} s CPU"


def _took(run: Callable[[], Any]) -> Took:
    used = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    run()
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    return Took(wall, after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime)


def _matmul_rate() -> float:
    """Operations per second of a product of the MLP's shape, the fastest of 20."""
    a, b = mx.random.normal((768, 576)), mx.random.normal((576, 1536))
    mx.eval(a, b)
    return 2 * 768 * 576 * 1536 / min(_took(lambda: mx.eval(a @ b)).wall for _ in range(20))


def _naive(model: InterpretableModel, pair: PromptPair, cells: int) -> Took:
    """One patch as it is usually written: a whole forward with one activation replaced, all logits."""
    clean = model.trace(pair.clean, capture="resid_pre")

    def patch(layer: int) -> None:
        name = f"L{layer}.resid_pre"
        mx.eval(model.logits(pair.corrupted, interventions=[replace(name, clean[name], positions=-1)]))

    patch(0)
    took = [
        _took(lambda layer=layer: patch(layer))
        for layer in np.linspace(0, model.n_layers - 1, cells, dtype=int)
    ]
    return Took(float(np.median([t.wall for t in took])), float(np.median([t.cpu for t in took])))


@contextmanager
def _counted(model: InterpretableModel) -> Iterator[list[Product]]:
    """Every call of a linear layer while the block runs, with the number of vectors it is given."""
    seen: list[Product] = []

    def counting(module: nn.Module) -> Around:
        def count(call: Callable[..., Any], x: mx.array) -> Any:
            seen.append((module, x.size // x.shape[-1]))
            return call(x)

        return count

    with tapped([(m, counting(m)) for m in model.model.modules() if isinstance(m, nn.Linear)]):
        yield seen


def _replay(products: list[Product]) -> None:
    """These products and nothing else, on the same weights."""
    vectors = {(n, module.weight.shape[1]): mx.ones((n, module.weight.shape[1])) for module, n in products}
    for module, n in products:
        mx.eval(module(vectors[n, module.weight.shape[1]]))


def _transformer_lens(model: InterpretableModel, pair: PromptPair, cells: int) -> Took | None:
    """One patch of its `resid_pre` in a model of the same sizes, or None where it is not installed."""
    if importlib.util.find_spec("transformer_lens") is None:
        return None
    import torch
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OPENBLAS_NUM_THREADS", os.cpu_count() or 1)))
    torch.set_grad_enabled(mode=False)
    args = model.model.args
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=args.vocab_size,
            hidden_size=args.hidden_size,
            intermediate_size=args.intermediate_size,
            num_hidden_layers=args.num_hidden_layers,
            num_attention_heads=args.num_attention_heads,
            num_key_value_heads=args.num_key_value_heads,
            rms_norm_eps=args.rms_norm_eps,
            rope_theta=args.rope_theta,
            tie_word_embeddings=True,
        )
    )
    names = {f"t{i}": i for i in range(args.vocab_size)}
    words = Tokenizer(models.WordLevel(names, unk_token="t0"))
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0").save_pretrained(directory)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        bridge = TransformerBridge.boot_transformers(
            directory, hf_model=theirs, tokenizer=tokenizer, device="cpu"
        )
    clean, corrupted = (torch.tensor(model.to_tokens(p).tolist()) for p in (pair.clean, pair.corrupted))
    _, cache = bridge.run_with_cache(clean)

    def patch(layer: int) -> None:
        name = f"blocks.{layer}.hook_resid_pre"
        source = cache[name]

        def put(x: Any, hook: Any) -> Any:
            x = x.clone()
            x[:, -1] = source[:, -1]
            return x

        float(bridge.run_with_hooks(corrupted, fwd_hooks=[(name, put)])[0, -1, 0])

    patch(0)
    took = [
        _took(lambda layer=layer: patch(int(layer)))
        for layer in np.linspace(0, model.n_layers - 1, cells, dtype=int)
    ]
    return Took(float(np.median([t.wall for t in took])), float(np.median([t.cpu for t in took])))


def _machine(model: InterpretableModel) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    cpu = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return (
        f"{platform.system()} {cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, mlx "
        f"{version('mlx')}, mlx-lm {version('mlx-lm')}, {model.blas}, load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
