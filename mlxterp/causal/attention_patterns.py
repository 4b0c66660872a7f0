"""Attention patterns of heads on a prompt, and scores of all heads on repeated tokens."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.finite import require_finite
from mlxterp.causal.prompts.encoding import (
    Ids,
    Prompt,
    facts_of,
    require_model,
    str_tokens,
    token_rows,
)
from mlxterp.component_names import head_label
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError
from mlxterp.measurements import recorder
from mlxterp.metrics import Floats
from mlxterp.results import AttentionPatternResult, HeadScoresResult


def attention_patterns(
    model: InterpretableModel,
    prompt: Prompt,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | Sequence[tuple[int, int]] | None = None,
) -> AttentionPatternResult:
    """How much each token of a prompt attends to each other one, per head. Costs one forward.

    Args:
        layers: which; by default all that have patterns. heads: the same heads of each of these layers, or
            (layer, head) pairs instead of `layers`; all by default.

    Returns:
        patterns [n_patterns, n_tokens, n_tokens], `[i, dest, src]`, the weights that the model really uses.

    Raises:
        CapabilityUnavailable: this model's attention patterns cannot be read.
        SweepError: a layer or head that does not exist.

    A high weight shows where a head attends, not that the behaviour needs it: Jain and Wallace 2019,
    "Attention is not Explanation". Patching and ablation measure that.
    """
    require_model(model)
    model.architecture.require_in_some_layer("pattern")
    wanted = _chosen_heads(model, layers, heads)
    for layer in sorted({layer for layer, _ in wanted}):
        model.architecture.require_in_layer("pattern", layer)
    tokens = token_rows(model, [prompt], "read")
    points = {layer: HookPoint("pattern", layer) for layer, _ in wanted}
    _, captured = model.run(mx.array(tokens), capture=list(points.values()))
    read = {layer: np.array(captured[point][0].astype(mx.float32)) for layer, point in points.items()}
    shown = str_tokens(model, tokens[0])
    recorder.add_method("attention_patterns")
    require_finite(
        np.stack([read[layer][head].ravel() for layer, head in wanted], axis=1),
        lambda i: head_label(*wanted[i]),
        "attention patterns",
        "Load the model with dtype=mx.float32, or look where the stream breaks with model.trace.",
    )
    return AttentionPatternResult(
        heads=tuple(wanted),
        patterns=np.stack([read[layer][head] for layer, head in wanted]),
        tokens=tuple(shown),
        measured_on=facts_of(model) | {"prompts": [{"text": "".join(shown)}]},
    )


def _chosen_heads(
    model: InterpretableModel,
    layers: Sequence[int] | None,
    heads: Sequence[int] | Sequence[tuple[int, int]] | None,
) -> list[tuple[int, int]]:
    """(layer, head) of each pattern, in the model's order."""
    for name, given in (("layers", layers), ("heads", heads)):
        if isinstance(given, int):
            raise SweepError(f"{name}={given} is one number. Pass a list, as in {name}=[{given}].")
    pairs: list[tuple[int, int]] = []
    single: list[int] = []
    for each in range(model.n_heads) if heads is None else heads:
        if isinstance(each, tuple):
            pairs.append(each)
        else:
            single.append(int(each))
    if pairs and (single or layers is not None):
        raise SweepError(
            f"layers={layers}, heads={heads}: give (layer, head) pairs alone, or heads of every layer."
        )
    every = model.architecture.layers_with("pattern") if layers is None else layers
    found = pairs or [(layer, head) for layer in every for head in single]
    wrong = [f"L{a}.H{b}" for a, b in found if not (0 <= a < model.n_layers and 0 <= b < model.n_heads)]
    if wrong or not found:
        raise SweepError(
            f"no head {', '.join(wrong) or 'was asked for'}. {model.name} has layers 0 to "
            f"{model.n_layers - 1} and heads 0 to {model.n_heads - 1}."
        )
    return sorted(set(found))


Mask = NDArray[np.bool_]


def attention_scores(
    model: InterpretableModel,
    tokens: Sequence[Sequence[int]] | NDArray[np.int64] | None = None,
    *,
    n: int = 4,
    period: int = 16,
    seed: int = 0,
) -> HeadScoresResult:
    """Where each head attends, on repeated random tokens or on given tokens.

    With `A[t, s]` the attention from position t to position s ≤ t, averaged over positions t and sequences:

        previous_token   A[t, t − 1]
        duplicate_token  Σ A[t, s] over earlier s that hold t's token; over the t that have one
        induction        Σ A[t, s + 1] over the same s: the token that followed last time (t itself left out)

    Args:
        tokens: `[n, length]`; by default each sequence is `period` random tokens, all different, twice over.
        n, period, seed: of the random sequences.

    Returns:
        scores `[n_layers, n_heads]` between 0 and 1, with what a head that attends evenly would have; NaN in
        layers of a hybrid that have no attention patterns.

    Source: Elhage et al. 2021; Olsson et al. 2022, "In-context Learning and Induction Heads".
    """
    require_model(model)
    model.architecture.require_in_some_layer("pattern")
    given = tokens is not None
    rows = np.atleast_2d(np.asarray(tokens, dtype=np.int64)) if given else _repeated(model, n, period, seed)
    masks = _masks(rows)
    absent = [name for name, mask in masks.items() if not mask.any()]
    if absent:
        raise SweepError(
            f"these tokens repeat nothing at a distance, so {', '.join(absent)} has no position to be "
            "measured at. Give sequences in which tokens come twice, or leave `tokens` out for repeated "
            "random ones."
        )
    having = model.architecture.layers_with("pattern")
    points = [HookPoint("pattern", layer) for layer in having]
    _, captured = model.run(mx.array(rows), capture=points)
    patterns = np.stack([np.array(captured[point].astype(mx.float32)) for point in points])
    require_finite(
        np.moveaxis(patterns, 0, -1),
        lambda i: f"L{having[i]}.pattern",
        "attention patterns",
        "Load the model with dtype=mx.float32, or look where the stream breaks with model.trace.",
    )

    def in_all_layers(mask: Mask) -> Floats:
        scores = np.full((model.n_layers, model.n_heads), np.nan)
        scores[list(having)] = _score(patterns, mask)
        return scores

    even = np.tril(np.ones((rows.shape[1],) * 2)) / np.arange(1, rows.shape[1] + 1)[:, None]
    recorder.add_method("attention_scores")
    return HeadScoresResult(
        scores={name: in_all_layers(mask) for name, mask in masks.items()},
        expected={name: float(_score(even[None, None, None], mask)[0, 0]) for name, mask in masks.items()},
        measured_on=facts_of(model)
        | {
            "tokens": "given" if given else f"{n} sequences of {period} random tokens, twice over",
            "seed": None if given else seed,
            "n_sequences": len(rows),
            "length": rows.shape[1],
        },
    )


def _repeated(model: InterpretableModel, n: int, period: int, seed: int) -> Ids:
    if not 2 <= period <= model.d_vocab or n < 1:
        raise SweepError(
            f"n={n}, period={period}: a sequence repeats 2 to {model.d_vocab} different tokens, and there "
            "is at least one."
        )
    rng = np.random.default_rng(seed)
    halves = np.stack([rng.choice(model.d_vocab, size=period, replace=False) for _ in range(n)])
    return np.concatenate([halves, halves], axis=1)


def _masks(tokens: Ids) -> dict[str, Mask]:
    """Per score, which (sequence, dest, src) count."""
    n, length = tokens.shape
    earlier = np.tril(np.ones((length, length), dtype=bool), k=-1)
    duplicate = (tokens[:, :, None] == tokens[:, None, :]) & earlier
    after = np.zeros_like(duplicate)
    after[:, :, 1:] = duplicate[:, :, :-1]
    previous = np.broadcast_to(np.eye(length, k=-1, dtype=bool), (n, length, length))
    return {"previous_token": previous, "duplicate_token": duplicate, "induction": after & earlier}


def _score(patterns: NDArray[np.floating], mask: Mask) -> Floats:
    """[n_layers, n_heads] from patterns [n_layers, n, n_heads, dest, src]: mean over destinations that have a
    source."""
    attended = (patterns * mask[None, :, None]).sum(axis=-1)
    has_source: Mask = np.any(mask, axis=-1, keepdims=False)
    return np.asarray(
        (attended * has_source[None, :, None]).sum(axis=(1, 3)) / has_source.sum(), dtype=np.float64
    )
