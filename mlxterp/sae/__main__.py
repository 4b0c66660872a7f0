"""`python -m mlxterp.sae train`: trains an SAE on a model's activations over texts in files, with a
progress bar."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mlxterp.core.model import InterpretableModel
from mlxterp.datasets.texts import sample_texts
from mlxterp.errors import MlxterpError, TooLittleData
from mlxterp.results.sae_quality import SAEQualityResult
from mlxterp.sae.config import VARIANTS, SAEConfig
from mlxterp.sae.evaluation import sae_quality
from mlxterp.sae.formats import save_sae
from mlxterp.sae.training.activations import cached_activations
from mlxterp.sae.training.train import TrainingProgress, train_sae

HELD_OUT = 20
"""One document of so many is held out to measure on."""


def read_texts(paths: Sequence[Path]) -> list[str]:
    """Documents: each line of a `.jsonl` file (a string, or an object with "text"); of other files the parts
    between empty lines.

    Raises:
        TooLittleData: no document in the files.
    """
    documents: list[str] = []
    for path in paths:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in content.splitlines() if line.strip()]
            documents += [line["text"] if isinstance(line, dict) else str(line) for line in lines]
        else:
            documents += [part.strip() for part in content.split("\n\n") if part.strip()]
    if not documents:
        raise TooLittleData(f"No document in {', '.join(str(path) for path in paths)}. Give files with text.")
    return documents


def split(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Documents to train on and, chosen by a fixed seed, to measure on."""
    order = np.random.default_rng(0).permutation(len(documents))
    held = set(order[: max(1, len(documents) // HELD_OUT)].tolist())
    return (
        [text for i, text in enumerate(documents) if i not in held],
        [text for i, text in enumerate(documents) if i in held],
    )


def train(arguments: argparse.Namespace, console: Console) -> SAEQualityResult:
    """Computes activations, trains, saves, measures on documents that were held out."""
    documents = read_texts(arguments.texts) if arguments.texts else sample_texts()
    to_train, held = split(documents)
    model = InterpretableModel(arguments.model)
    config = SAEConfig(
        d_sae=arguments.d_sae,
        k=arguments.k,
        variant=arguments.variant,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        hook_point=arguments.at,
        hook_point_out=arguments.to,
        skip=arguments.skip,
    )
    places = [arguments.at] if arguments.to is None else [arguments.at, arguments.to]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        reading = bar.add_task("activations", status="", total=None)
        source = cached_activations(
            model,
            to_train,
            places,
            progress=lambda done, total: bar.update(
                reading, completed=done, total=total, status=f"{done:,} tokens"
            ),
        )
        bar.update(
            reading, total=source.n_tokens, completed=source.n_tokens, status=f"{source.n_tokens:,} tokens"
        )
        task = bar.add_task("finding a learning rate", status="", total=None)
        trained = train_sae(
            source, config, checkpoint=arguments.checkpoint, progress=lambda at: _show(bar, task, at)
        )
    save_sae(trained.sae, arguments.out)
    quality = sae_quality(model, trained.sae, held, losses=arguments.losses)
    console.print(f"{trained.sae} in {arguments.out}")
    console.print(quality.summary())
    return quality


def _show(bar: Progress, task: TaskID, at: TrainingProgress) -> None:
    status = (
        f"loss {at.loss:.3f}  FVU {at.fvu:.3f}  L0 {at.l0:.1f}  dead {at.dead:.0%}  "
        f"{at.tokens_per_second:,.0f} tokens/s"
    )
    bar.update(task, description=at.name, completed=at.step, total=at.steps, status=status)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m mlxterp.sae", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "train", help="train an SAE or a transcoder on a model's activations over texts"
    )
    one.add_argument(
        "--model", default="smollm2-135m", help="as in InterpretableModel (default: %(default)s)"
    )
    one.add_argument("--at", default="L15.resid_post", help="hook point it reads (default: %(default)s)")
    one.add_argument("--to", help="hook point a transcoder writes; without it, an SAE")
    one.add_argument(
        "--skip", action="store_true", help="a transcoder with a linear path beside its features"
    )
    one.add_argument(
        "--texts",
        type=Path,
        nargs="+",
        help="files: .jsonl, or text with empty lines between documents; "
        "without it, the bundled Austen sample",
    )
    one.add_argument(
        "--out", type=Path, required=True, help="directory for cfg.json and sae_weights.safetensors"
    )
    one.add_argument("--d-sae", type=int, default=1024, help="features (default: %(default)s)")
    one.add_argument("--k", type=int, default=32, help="active features a token (default: %(default)s)")
    one.add_argument("--variant", choices=VARIANTS, default="batchtopk", help="(default: %(default)s)")
    one.add_argument(
        "--epochs", type=int, default=4, help="times each token is trained on (default: %(default)s)"
    )
    one.add_argument("--learning-rate", type=float, help="without it, one is found by short runs")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--checkpoint", type=Path, help="directory to resume from after an interruption")
    one.add_argument("--losses", action="store_true", help="also measure the model's losses with the SAE")
    return made


def main(given: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(given)
    console = Console()
    try:
        train(arguments, console)
    except MlxterpError as problem:
        Console(stderr=True).print(f"{type(problem).__name__}: {problem}", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
