# ruff: noqa: T201 - a command that prints
"""How fast ablations of sets are on SmolLM2-135M: `python -m tests.benchmarks.ablations`.

Prints wall and CPU seconds of mean ablation of a set of heads, ten random sets and everything else, over
eight IOI pairs, both prompts' own runs included; the same rows by the reference engine, and how far the
numbers differ; and the time of a whole forward per row, from a few.
"""

from __future__ import annotations

import os
from functools import partial
from unittest import mock

import numpy as np

from mlxterp.causal import ablate
from mlxterp.causal.batching import packed
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import ioi_pairs
from tests.benchmarks.sweeps import PAIRS, _both, _naive, _took

HEADS = [(14, 5), (16, 2), (18, 7), (20, 4), (22, 1), (25, 3)]


def main() -> None:
    model = InterpretableModel("smollm2-135m")
    pairs = ioi_pairs(model, 8)
    values: dict[str, np.ndarray] = {}

    def run(*, keep: bool) -> None:
        result = ablate(model, pairs, HEADS, kind="mean", keep=keep, random_sets=0 if keep else 10)
        values["found"] = np.array([row.value for row in result.rows])

    naive = _naive(model, PAIRS["ioi"], 6)
    print(f"load {os.getloadavg()[0]:.1f}; one whole forward per row: {_both(naive)}")
    for keep in (False, True):
        rows = len(pairs) * (1 if keep else 11)
        took = min(_took(partial(run, keep=keep)) for _ in range(2))
        found = values["found"]
        with mock.patch.object(packed, "fits", return_value=False):
            reference = min(_took(partial(run, keep=keep)) for _ in range(2))
        off = float(np.abs(values["found"] - found).max())
        print(
            f"{'keep' if keep else 'ablate'}: {rows} rows {_both(took)}; reference {_both(reference)}; "
            f"×{reference.cpu / took.cpu:.2f}, naive ×{naive.cpu * rows / took.cpu:.1f} (CPU), off {off:.0e}"
        )


if __name__ == "__main__":
    main()
