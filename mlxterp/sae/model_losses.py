"""What a model loses when an SAE's reconstruction, zeros or the mean stand in for its activation.

Lives here: the runs and their sums by document. Does not live here: ratios and intervals (`evaluation.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import replace
from mlxterp.core.linux_blas import swiglu as fast_math
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import pad
from mlxterp.sae.sae import SAE
from mlxterp.sae.training.activations import Ids, StreamedActivations

Exact = NDArray[np.float64]

_ROWS_AT_ONCE = 8


@dataclass(eq=False)
class _LossSums:
    n: int
    sums: dict[str, Exact] = field(default_factory=dict)

    def add(self, name: str, documents: NDArray[Any], values: NDArray[Any]) -> None:
        np.add.at(self.sums.setdefault(name, np.zeros(self.n)), documents, values.astype(np.float64))


def model_losses(
    model: InterpretableModel, sae: SAE, source: StreamedActivations, n_texts: int, mean: mx.array
) -> dict[str, Exact]:
    """Cross-entropy and KL sums of each document, clean and with the activation replaced."""
    found = _LossSums(n_texts)
    rows = [(i, row) for i in range(n_texts) for row in source.rows_of_text(i)]
    rows.sort(key=lambda pair: -len(pair[1]))
    for low in range(0, len(rows), _ROWS_AT_ONCE):
        _losses_of(model, sae, source, rows[low : low + _ROWS_AT_ONCE], mean, found)
    return found.sums


def _losses_of(
    model: InterpretableModel,
    sae: SAE,
    source: StreamedActivations,
    rows: Sequence[tuple[int, Ids]],
    mean: mx.array,
    found: _LossSums,
) -> None:
    batch = pad([row for _, row in rows])
    counted = source.counted(batch)
    predicts = counted.copy()
    predicts[:, :-1] &= batch.mask[:, 1:]
    predicts[:, -1] = False
    if not predicts.any():
        return
    row, pos = np.nonzero(predicts)
    documents = np.array([rows[i][0] for i in row.tolist()])
    answers = batch.tokens[row, pos + 1]
    at = mx.array(row * batch.tokens.shape[1] + pos)
    read, written = sae.point, sae.point_out

    def log_probs(value: mx.array | None) -> tuple[NDArray[np.float32], dict[HookPoint, mx.array]]:
        edits = [] if value is None else [replace(written, value)]
        capture = [] if value is not None else list({read, written})
        with fast_math.used(model.architecture):
            logits, seen = model.run(
                batch.tokens, interventions=edits, capture=capture, lengths=batch.lengths
            )
            chosen = logits.reshape(-1, logits.shape[-1])[at].astype(mx.float32)
            mx.eval(chosen, seen)
        scores = np.array(chosen)
        scores -= scores.max(axis=1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return scores, seen

    clean, seen = log_probs(None)
    found.add("predicted", documents, np.ones(len(documents)))
    found.add("ce_clean", documents, -clean[np.arange(len(answers)), answers])
    # An attention sink stays what it is: no SAE is trained on them, and everything later looks at them.
    flat = {str(point): np.array(x.astype(mx.float32)).reshape(counted.size, -1) for point, x in seen.items()}
    here = mx.array(counted & source.usual(flat).reshape(counted.shape))[:, :, None]
    activation = seen[written]
    stand_ins = {
        "reconstructed": sae.reconstruct(seen[read]),
        "zero": mx.zeros_like(activation),
        "mean": mx.broadcast_to(mean, activation.shape),
    }
    probabilities = np.exp(clean)
    for name, value in stand_ins.items():
        edited, _ = log_probs(mx.where(here, value.astype(activation.dtype), activation))
        found.add(f"ce_{name}", documents, -edited[np.arange(len(answers)), answers])
        found.add(f"kl_{name}", documents, (probabilities * (clean - edited)).sum(axis=1))
