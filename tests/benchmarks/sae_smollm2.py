# ruff: noqa: T201 - a command that prints
"""An SAE in the middle of SmolLM2-135M, on Brown and Austen: what it costs and how good it is.

    python -m tests.benchmarks.sae_smollm2 cache --minutes 20     # activations of L15.resid_post, kept
    python -m tests.benchmarks.sae_smollm2 cache --minutes 5 --random
    python -m tests.benchmarks.sae_smollm2 train --minutes 30     # goes on where it was stopped
    python -m tests.benchmarks.sae_smollm2 train --minutes 5 --random
    python -m tests.benchmarks.sae_smollm2 report                 # on held-out documents, beside PCA
    python -m tests.benchmarks.sae_smollm2 bundle --epochs 3      # the SAE that ships, from the same cache
    python -m tests.benchmarks.sae_smollm2 domains                # the SAE that ships, by kind of text

Documents of both corpora are mixed with a fixed seed; every twentieth is held out and never trained on.
`--random` does the same for a model of the same shape with random weights: what an SAE finds in a model that
has learned nothing (Heap et al. 2025, arXiv:2501.17727).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map_with_path

import mlxterp
from mlxterp.core.model import InterpretableModel
from mlxterp.models.fetch import cache_dir
from mlxterp.sae import training_texts
from mlxterp.sae.bundled import BUNDLED, bundled_sae
from mlxterp.sae.config import SAEConfig
from mlxterp.sae.evaluation import fvu, sae_quality
from mlxterp.sae.formats import load_sae, save_sae
from mlxterp.sae.sae import SAE
from mlxterp.sae.training.activations import StreamedActivations, cached_activations
from mlxterp.sae.training.source import ArrayActivations, Floats, widened
from mlxterp.sae.training.train import TrainingProgress, train_sae
from tests.benchmarks.corpora import austen, brown

POINT = "L15.resid_post"
GROUP_TOKENS = 25_000
HELD_EVERY = 20


def documents() -> tuple[list[str], list[str]]:
    """Those to train on and those held out, mixed."""
    every = _pieces(brown()) + austen()
    order = np.random.default_rng(0).permutation(len(every))
    mixed = [every[i] for i in order]
    return [d for i, d in enumerate(mixed) if i % HELD_EVERY], mixed[::HELD_EVERY]


def _pieces(texts: Sequence[str]) -> list[str]:
    """Brown's documents in parts of at least 300 words, as Austen's are."""
    parts = []
    for text in texts:
        waiting: list[str] = []
        for paragraph in text.split("\n"):
            waiting.append(paragraph)
            if sum(len(p.split()) for p in waiting) >= 300:
                parts.append("\n".join(waiting))
                waiting = []
        if waiting:
            parts.append("\n".join(waiting))
    return parts


def model(*, random: bool) -> InterpretableModel:
    """SmolLM2, or its shape with weights drawn anew at the size of its own."""
    loaded = InterpretableModel("smollm2-135m")
    if not random:
        return loaded
    key = mx.random.key(0)

    def draw(_: str, old: mx.array) -> mx.array:
        nonlocal key
        key, own = mx.random.split(key)
        if old.ndim < 2:
            return mx.ones_like(old)
        return mx.random.normal(old.shape, key=own) * mx.sqrt(mx.square(old).mean())

    module: nn.Module = loaded.model
    module.update(tree_map_with_path(draw, module.parameters()))
    mx.eval(module.parameters())
    return InterpretableModel(module, loaded.tokenizer)


def home(*, random: bool) -> Path:
    return cache_dir() / "benchmarks" / ("sae-random" if random else "sae-smollm2")


def groups(train: Sequence[str]) -> list[list[str]]:
    """Documents in groups of about 25,000 tokens, so that a cache can be added to."""
    found: list[list[str]] = [[]]
    size = 0.0
    for document in train:
        found[-1].append(document)
        size += 1.28 * len(document.split())
        if size > GROUP_TOKENS:
            found.append([])
            size = 0.0
    return [group for group in found if group]


def cache(minutes: float, *, random: bool) -> None:
    train, _ = documents()
    subject = model(random=random)
    end = time.monotonic() + 60 * minutes
    tokens = 0
    for i, group in enumerate(groups(train)):
        if time.monotonic() > end:
            break
        began = time.process_time()
        source = cached_activations(subject, group, POINT, path=home(random=random) / "activations")
        tokens += source.n_tokens
        spent = time.process_time() - began
        print(f"group {i}: {tokens:,} tokens in all; {1e3 * spent / source.n_tokens:.2f} CPU ms/token")
        (home(random=random) / "groups.txt").write_text(str(i + 1))


def cached(subject: InterpretableModel, *, random: bool) -> ArrayActivations:
    train, _ = documents()
    n = int((home(random=random) / "groups.txt").read_text())
    chosen = groups(train)[:n]
    parts = [
        cached_activations(subject, group, POINT, path=home(random=random) / "activations")
        for group in chosen
    ]
    arrays = np.concatenate([part.arrays[POINT] for part in parts])
    texts = [text for group in chosen for text in group]
    facts = {
        "corpora": "Brown, Austen",
        "texts": len(texts),
        training_texts.KEY: training_texts.record(texts),
    }
    return ArrayActivations({POINT: arrays}, model_name="smollm2-135m", extra=facts)


def train(minutes: float, config: SAEConfig, name: str, *, random: bool) -> None:
    source = cached(model(random=random), random=random)
    end = time.monotonic() + 60 * minutes
    trained = train_sae(
        source,
        config,
        checkpoint=home(random=random) / f"checkpoint-{name}",
        checkpoint_every=100,
        progress=_say,
        stop=lambda: time.monotonic() > end,
    )
    save_sae(trained.sae, home(random=random) / name)
    print(f"{source.n_tokens:,} tokens; {trained.sae}; FVU {trained.history[-1].fvu:.4f} in training")
    print(load_sae(home(random=random) / name))


def report(name: str, held: Sequence[str], *, models: Sequence[bool]) -> None:
    """What was trained, on documents that no training saw; PCA with as many components as k beside it."""
    for random in models:
        folder = home(random=random) / name
        if not folder.is_dir():
            print(f"No SAE in {folder}: train it first.")
            continue
        subject, sae = model(random=random), load_sae(folder)
        print(f"{'random weights' if random else 'SmolLM2'}: {sae}, {sae.metadata['training']['config']}")
        result = sae_quality(subject, sae, held, losses=not random)
        print(result.summary())
        for row in result.rows:
            print(f"  {row.name} {row.value:.4f} [{row.low:.4f}, {row.high:.4f}]")
        k = int(sae.metadata["training"]["config"]["k"])
        train_rows = widened(np.asarray(cached(subject, random=random).arrays[POINT]))
        held_source = StreamedActivations(subject, held, POINT)
        held_rows = np.concatenate([held_source.of_text(i)[POINT] for i in range(len(held))])
        print(f"  PCA, {k} components: FVU {pca_fvu(train_rows, held_rows, k):.4f}", flush=True)


def pca_fvu(train_rows: Floats, held_rows: Floats, k: int) -> float:
    """FVU of the first k principal components of some tokens on others."""
    mean = train_rows.mean(axis=0, dtype=np.float64)
    about = (train_rows - mean).astype(np.float64)
    _, axes = np.linalg.eigh(about.T @ about)
    first = axes[:, -k:]
    left = held_rows - mean
    return fvu(held_rows, (left @ first) @ first.T + mean)


def bundle(config: SAEConfig, held: Sequence[str]) -> None:
    """Trains the SAE that ships, measures it on held-out documents, writes it into the package."""
    subject = model(random=False)
    source = cached(subject, random=False)
    trained = train_sae(source, config, progress=_say)
    quality = sae_quality(subject, trained.sae, held, losses=False)
    facts = {
        **trained.sae.metadata,
        "made by": "python -m tests.benchmarks.sae_smollm2 bundle",
        "held out": {"tokens": quality.tokens, "documents": quality.documents}
        | {row.name: round(row.value, 4) for row in quality.rows},
    }
    place = Path(mlxterp.__file__).parent / "weights" / BUNDLED["smollm2-135m"]
    shipped: SAE = replace(trained.sae, metadata=facts)
    save_sae(shipped, place, dtype=mx.bfloat16)
    print(quality.summary())


def domains(words: int) -> None:
    """The SAE that ships: on texts of its training, on others of the same kinds, and on other kinds."""
    from tests.benchmarks.domains import OTHERS, TRAINED_ON, texts

    subject, sae = model(random=False), bundled_sae()
    kinds: dict[str, Sequence[str]] = {"its training": documents()[0]}
    kinds |= {kind: texts(kind) for kind in (*TRAINED_ON, *OTHERS)}
    for kind, every in kinds.items():
        lengths = np.cumsum([len(text.split()) for text in every])
        result = sae_quality(subject, sae, every[: int((lengths < words).sum()) + 1])
        print(f"{kind}: {result.summary()}", flush=True)


def _say(at: TrainingProgress) -> None:
    print(
        f"{at.step}/{at.steps} fvu {at.fvu:.4f} l0 {at.l0:.1f} dead {at.dead:.3f} lr {at.learning_rate:.1e} "
        f"{at.tokens_per_second:.0f} tokens/s, {at.eta_seconds / 60:.0f} min to go",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("cache", "train", "report", "bundle", "domains"))
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--random", action="store_true", help="the same shape with random weights")
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("-k", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--variant", choices=("topk", "batchtopk"), default="topk")
    parser.add_argument("--rate", type=float, default=1.2e-3, help="learning rate; 0 looks for one")
    parser.add_argument("--decay", type=float, default=0.3)
    parser.add_argument("--held", type=int, default=20, help="how many held-out documents to measure on")
    parser.add_argument("--words", type=int, default=3_000, help="words of each kind for `domains`")
    arguments = parser.parse_args()
    held = documents()[1][: arguments.held]
    config = SAEConfig(
        d_sae=arguments.d_sae,
        k=arguments.k,
        variant=arguments.variant,
        epochs=arguments.epochs,
        learning_rate=arguments.rate or None,
        decay=arguments.decay,
    )
    name = f"m{config.d_sae}-k{config.k}-{config.variant}"
    if arguments.what == "report":
        report(name, held, models=[arguments.random])
    if arguments.what == "bundle":
        bundle(replace(config, d_sae=1024), held)
    if arguments.what == "domains":
        domains(arguments.words)
    if arguments.what == "cache":
        cache(arguments.minutes, random=arguments.random)
    if arguments.what == "train":
        train(arguments.minutes, config, name, random=arguments.random)


if __name__ == "__main__":
    main()
