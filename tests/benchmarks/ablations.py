# ruff: noqa: T201 - a command that prints
"""How fast ablations of sets are on SmolLM2-135M: `python -m tests.benchmarks.ablations`.

Prints wall and CPU seconds of mean ablation of a set of heads, ten random sets and everything else, over
eight IOI pairs, both prompts' own runs included; the same rows by the engine that joins rows from layer to
layer (`one_pass.py`), and how far the numbers lie apart; and the time of a whole forward per row, from a few.
"""

from __future__ import annotations

import os
from functools import partial
from unittest import mock

import numpy as np

from mlxterp.causal import ablate
from mlxterp.causal.batching import packed_rows
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
        packed = values["found"]
        with mock.patch.object(packed_rows, "fits", return_value=False):
            joined = min(_took(partial(run, keep=keep)) for _ in range(2))
        off = float(np.abs(values["found"] - packed).max())
        print(
            f"{'keep' if keep else 'ablate'}: {rows} rows {_both(took)}; joined by layer {_both(joined)}; "
            f"× {joined.cpu / took.cpu:.2f}, × naive {naive.cpu * rows / took.cpu:.1f} (CPU); apart {off:.1e}"
        )


if __name__ == "__main__":
    main()
