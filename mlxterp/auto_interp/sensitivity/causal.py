"""The causal part of `sensitivity_test`: what taking a feature out, and adding it once more, does where its
label holds, compared with random features.

For effects on a prompt of one's own see `mlxterp.sae.feature_effects`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from mlxterp import metrics
from mlxterp.auto_interp.promoted_tokens import promoted_ids
from mlxterp.auto_interp.sensitivity.examples import Items, SensitivityOptions
from mlxterp.causal.batching import sweep
from mlxterp.causal.batching.rows import Row
from mlxterp.core import interventions
from mlxterp.core.model import InterpretableModel
from mlxterp.sae.analysis.runs import decoder_norms, percentiles, shape_at
from mlxterp.sae.feature_store.store import FeatureStore
from mlxterp.sae.sae import SAE

MIN_PERCENTILE = 0.95
"""The share of random features that a causal one must exceed, taken out and added."""

MIN_CONTROLS = 19
"""Random features needed for that share: the greatest of 20 is so by chance once in 20."""

MOST = 24
"""Positives that are measured."""

_SIGNS = {"removed": -1.0, "added": 1.0}
_NUMBERS = ("promoted", "kl")


def causal_effect(
    model: InterpretableModel, sae: SAE, items: Items, feature_id: int, options: SensitivityOptions
) -> dict[str, Any]:
    """The effect of x' = x ∓ a_f W_dec[f], at one token, on the model's next prediction there; the error is
    held.

    At each of at most 24 positives at which the feature fires it is taken out, and added once more. The
    change of the log probability that the next token is one of the ten that the feature promotes
    (`promoted_tokens.promoted_ids`) and the KL divergence from the unchanged prediction are averaged. The
    same is done with random other features, those that fire in the store first, at the same
    tokens and of the same norm ‖a_f W_dec[f]‖; a percentile is the share of them that do less, ties
    counting half.

    Args:
        items: at whose positives the feature is edited.
        options: `controls` random features; with fewer than `n_min` positives at which the feature fires, or
            fewer than 19 controls, "passed" is None.

    Returns:
        plain values. "passed" is True if taking the feature out makes the promoted tokens less likely and
        adding it more likely, each more than 95 % of the random features do; without promoted tokens (the
        feature does not write to the residual stream, or the unembedding cannot be read), if its KL
        divergences are that large. The promoted tokens are the feature's own, so close to the logits almost
        any feature passes; a KL as large as that of random features is the harder criterion.

    Costs a forward of each positive's row up to it, and 2 · (1 + controls) rows of one token from where the
    SAE writes on.
    """
    store, n_min = items.store, options.n_min
    fires = items.places[items.places >= 0]
    random = np.random.default_rng([options.seed, feature_id, 9])
    chosen = np.sort(random.permutation(fires)[:MOST])
    others = _controls(sae, store, feature_id, options.controls, random)
    found: dict[str, Any] = {"passed": None, "n": len(chosen), "n_min": n_min, "controls": len(others)}
    if len(chosen) < max(n_min, 1) or not others:
        return found
    promoted = promoted_ids(model, sae, feature_id)
    changes = _changes(model, sae, store, chosen, [feature_id, *others], promoted)
    means = changes.mean(axis=0)  # [sign, direction, number]
    for s, (name, sign) in enumerate(_SIGNS.items()):
        for i, number in enumerate(_NUMBERS):
            if number == "promoted" and not len(promoted):
                continue
            values = means[s, :, i] * (sign if number == "promoted" else 1.0)
            found[f"{number}_{name}"] = float(means[s, 0, i])
            found[f"{number}_{name}_percentile"] = float(percentiles(values[None])[0])
    found["promoted_tokens"] = _names(model, promoted)
    return found | {"passed": _passed(found) if len(others) >= MIN_CONTROLS else None}


def _names(model: InterpretableModel, tokens: NDArray[np.int64]) -> list[str]:
    if model.tokenizer is None:
        return [f"<{token}>" for token in tokens]
    return [model.to_str_tokens([int(token)])[0] for token in tokens]


def causal_text(found: Mapping[str, Any]) -> str:
    """The outcome as a sentence."""
    if "kl_added" not in found:
        few = found["n"] < max(found["n_min"], 1)
        why = (
            f"it fires on {found['n']} positives, {found['n_min']} are needed" if few else "no other features"
        )
        return f" Causal: not tested, {why}."
    parts = []
    for name, verb in (("removed", "taking it out"), ("added", "adding it once more")):
        text = f"{verb} changes the next prediction by a KL of {found[f'kl_{name}']:.3g} nats"
        text += _more(found[f"kl_{name}_percentile"])
        if f"promoted_{name}" in found:
            text += f" and the log probability of the tokens it promotes by {found[f'promoted_{name}']:+.3g}"
            text += _more(found[f"promoted_{name}_percentile"])
        parts.append(text)
    undecided = f"undecided, for {MIN_CONTROLS} random features are needed"
    verdict = {True: "yes", False: "not shown", None: undecided}[found["passed"]]
    return (
        f" Causal: {verdict}. On {found['n']} positives, beside {found['controls']} random features of the "
        f"same size, {'; '.join(parts)}."
    )


def _more(percentile: float) -> str:
    return f" (more than {100 * percentile:.0f} % of them)"


def _passed(found: Mapping[str, Any]) -> bool:
    number = "promoted" if "promoted_added" in found else "kl"
    percentiles = [found[f"{number}_{name}_percentile"] for name in _SIGNS]
    right_way = [
        found[f"{number}_{name}"] * (sign if number == "promoted" else 1) > 0 for name, sign in _SIGNS.items()
    ]
    return bool(min(percentiles) >= MIN_PERCENTILE and all(right_way))


def _controls(
    sae: SAE, store: FeatureStore, feature_id: int, controls: int, random: np.random.Generator
) -> list[int]:
    """Other features that write something, those that fire in the store first."""
    usable = (decoder_norms(sae) > 0) & (np.arange(sae.d_sae) != feature_id)
    firing, silent = (np.flatnonzero(usable & mask) for mask in (store.counts > 0, store.counts == 0))
    drawn = np.concatenate([random.permutation(firing), random.permutation(silent)])[:controls]
    return [int(other) for other in drawn]


def _changes(
    model: InterpretableModel,
    sae: SAE,
    store: FeatureStore,
    places: NDArray[np.int64],
    directions: Sequence[int],
    promoted: NDArray[np.int64],
) -> NDArray[np.float64]:
    """[n, 2 signs, directions, 2 numbers]: the change of the promoted tokens' log probability, and the KL.

    The first direction is the feature's own.
    """
    activation = store.activations_of(directions[0])
    rows_of_W = np.array(sae.W_dec[mx.array(list(directions))], dtype=np.float64)
    norms = np.linalg.norm(rows_of_W, axis=1)
    unit = rows_of_W * (norms[0] / np.where(norms > 0, norms, 1.0))[:, None]
    lengths = places - store.row_start[places] + 1
    result = np.zeros((len(places), len(_SIGNS), len(directions), len(_NUMBERS)))
    for length in np.unique(lengths).tolist():
        own = np.flatnonzero(lengths == length)
        tokens = np.stack([store.tokens[at - length + 1 : at + 1] for at in places[own]]).astype(np.int64)
        vectors = activation[places[own]][:, None, None] * unit
        rows = [
            Row(base, (_added(model, sae, sign * vector, length),))
            for base, each in enumerate(vectors)
            for sign in _SIGNS.values()
            for vector in each
        ]
        found = _measured(model, tokens, rows, promoted)
        result[own] = found.reshape(len(own), len(_SIGNS), len(directions), len(_NUMBERS))
    return result


def _added(
    model: InterpretableModel, sae: SAE, vector: NDArray[np.float64], length: int
) -> interventions.Intervention:
    value = vector.astype(np.float32).reshape(1, 1, *shape_at(model, sae))
    return interventions.add(sae.point_out, value, positions=[length - 1])


def _measured(
    model: InterpretableModel, tokens: NDArray[np.int64], rows: Sequence[Row], promoted: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[rows, 2]"""
    clean = sweep.answer_logits(model, tokens)
    before = _log_prob(clean, promoted)
    found: list[NDArray[np.float64]] = []

    def read(logits: NDArray[np.float32], bases: NDArray[np.int64]) -> NDArray[np.float64]:
        # A sweep keeps one number per row: where the two are.
        first = sum(len(each) for each in found)
        divergence = np.maximum(metrics.kl(logits, clean[bases]), 0.0)
        found.append(np.stack([_log_prob(logits, promoted) - before[bases], divergence], axis=1))
        return np.arange(first, first + len(logits), dtype=np.float64)

    where = sweep.run_rows(model, tokens, rows, read)
    return np.concatenate(found)[where.astype(np.int64)]


def _log_prob(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] the log probability that the next token is one of these; 0 without any."""
    if not len(tokens):
        return np.zeros(len(logits))
    every = logits.astype(np.float64)
    return np.asarray(logsumexp(every[:, tokens], axis=1) - logsumexp(every, axis=1))
