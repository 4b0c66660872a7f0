# ruff: noqa: T201 - a command that prints
"""What trainings with defaults find of planted truths: `python -m tests.benchmarks.sae_planted`.

Prints a row for each set, variant and seed, and the worst of the seeds below. The sets are those of
`tests/sae/planted_directions.py`: "plain" (64 features in 32 dimensions), "harder" (256 in 64: frequencies by
Zipf's law, children beside their parents, 5 % of the tokens three times as long, a large mean), and
"hierarchy" (8 parents with 4 children each, 24 others, in 48 dimensions).

recovered: share of true directions matched one to one with a decoder row of cosine above 0.9. mcc: mean
cosine of the matched. fvu, l0, dead: of what the SAE gives for 50,000 of the tokens. absorbed: share of a
parent's tokens on which its own feature is silent and a child's, which writes the parent too, fires; as
`mlxterp.sae.absorption` defines it (Chanin et al. 2024, arXiv:2409.14507, with the planted truth in place of
a probe). rate: the learning rate that was found. CPU s: user and system, of the training.

About 9 CPU minutes; `--seeds 0 --sets plain` takes seconds.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

from mlxterp.errors import UnderTrained
from mlxterp.sae import SAEConfig, absorption, reconstruction_quality, recovery, train_sae
from tests.sae.planted_directions import Planted, easy, hard, hierarchy

VARIANTS = ("topk", "batchtopk", "matryoshka")
MEASURED_ON = 50_000


class Setting(NamedTuple):
    """A planted set and the options of its SAEs that have no default."""

    make: Callable[[int], Planted]
    d_sae: int
    k: int
    epochs: int


SETTINGS = {
    "plain": Setting(easy, 128, 4, 4),
    "harder": Setting(hard, 512, 10, 4),
    "hierarchy": Setting(hierarchy, 128, 3, 2),
}


class Row(NamedTuple):
    """What one training gave."""

    recovered: float
    mcc: float
    fvu: float
    l0: float
    dead: float
    absorbed: float | None
    rate: float
    cpu: float


def measured(setting: Setting, variant: str, seed: int, **options: object) -> Row:
    """Trains one SAE and looks at it."""
    planted = setting.make(seed)
    config = SAEConfig(
        d_sae=setting.d_sae,
        k=setting.k,
        epochs=setting.epochs,
        variant=variant,  # type: ignore[arg-type]
        seed=seed,
        **options,  # type: ignore[arg-type]
    )
    before = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnderTrained)
        sae = train_sae(planted.source(), config).sae
    cpu = time.process_time() - before
    n = MEASURED_ON
    quality = reconstruction_quality(sae, planted.x[:n])
    found = recovery(sae, planted.directions)
    taken = None
    if (planted.parents >= 0).any():
        taken = absorption(sae, planted.x[:n], planted.directions, planted.fires[:n], planted.parents).value
    return Row(
        found.recovered.value,
        found.mcc.value,
        *(quality[name].value for name in ("fvu", "l0", "dead")),
        taken,
        sae.metadata["training"]["learning_rate"],
        cpu,
    )


def worst(rows: list[Row]) -> Row:
    """The worst of each column, and the CPU time of all together."""
    absorbed = [row.absorbed for row in rows if row.absorbed is not None]
    return Row(
        min(row.recovered for row in rows),
        min(row.mcc for row in rows),
        max(row.fvu for row in rows),
        max(row.l0 for row in rows),
        max(row.dead for row in rows),
        max(absorbed) if absorbed else None,
        min(row.rate for row in rows),
        sum(row.cpu for row in rows),
    )


def line(where: str, variant: str, seed: str, row: Row) -> str:
    absorbed = "-" if row.absorbed is None else f"{row.absorbed:.3f}"
    return (
        f"{where:10}{variant:12}{seed:>6}{row.recovered:10.3f}{row.mcc:8.3f}{row.fvu:8.3f}{row.l0:7.2f}"
        f"{row.dead:7.3f}{absorbed:>10}{row.rate:10.1e}{row.cpu:7.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--sets", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = parser.parse_args()
    names = ("recovered", "mcc", "fvu", "l0", "dead", "absorbed", "rate", "CPU s")
    widths = (10, 8, 8, 7, 7, 10, 10, 7)
    print(
        f"{'set':10}{'variant':12}{'seed':>6}"
        + "".join(f"{n:>{w}}" for n, w in zip(names, widths, strict=True))
    )
    for name in arguments.sets:
        for variant in arguments.variants:
            rows = []
            for seed in arguments.seeds:
                rows.append(measured(SETTINGS[name], variant, seed))
                print(line(name, variant, str(seed), rows[-1]), flush=True)
            print(line(name, variant, "worst", worst(rows)), flush=True)


if __name__ == "__main__":
    main()
