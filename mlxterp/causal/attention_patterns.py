"""Attention patterns of heads on a prompt, to look at.

What lives here: reading them. What doesn't: scores of all heads (`patterns.py`), changing a pattern (an
intervention at the hook point "pattern").
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlxterp.causal.prompts.encoding import (
    Prompt,
    facts_of,
    str_tokens,
    token_rows,
)
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError
from mlxterp.results import AttentionPatternResult


def attention_patterns(
    model: InterpretableModel,
    prompt: Prompt,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | Sequence[tuple[int, int]] | None = None,
) -> AttentionPatternResult:
    """How much each token of a prompt attends to each other one, per head. Costs one forward.

    Args:
        layers: which; all by default. heads: the same heads of each of these layers, or (layer, head) pairs
            instead of `layers`; all by default.

    Returns:
        patterns [n_patterns, n_tokens, n_tokens], `[i, dest, src]`, the weights that the model really uses.

    Raises:
        CapabilityUnavailable: this model's attention patterns cannot be read.
        SweepError: a layer or head that does not exist.

    A high weight says where a head looks, not that the behaviour needs it: Jain and Wallace 2019, "Attention
    is not Explanation". Patching and ablation measure that.
    """
    model.architecture.require("pattern")
    wanted = _wanted(model, layers, heads)
    tokens = token_rows(model, [prompt], "read")
    points = {layer: HookPoint("pattern", layer) for layer, _ in wanted}
    _, seen = model.run(mx.array(tokens), capture=list(points.values()))
    read = {layer: np.array(seen[point][0].astype(mx.float32)) for layer, point in points.items()}
    said = str_tokens(model, tokens[0])
    return AttentionPatternResult(
        heads=tuple(wanted),
        patterns=np.stack([read[layer][head] for layer, head in wanted]),
        tokens=tuple(said),
        measured_on=facts_of(model) | {"prompts": [{"text": "".join(said)}]},
    )


def _wanted(
    model: InterpretableModel,
    layers: Sequence[int] | None,
    heads: Sequence[int] | Sequence[tuple[int, int]] | None,
) -> list[tuple[int, int]]:
    """(layer, head) of each pattern, in the model's order."""
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
    every = range(model.n_layers) if layers is None else layers
    found = pairs or [(layer, head) for layer in every for head in single]
    wrong = [f"L{a}.H{b}" for a, b in found if not (0 <= a < model.n_layers and 0 <= b < model.n_heads)]
    if wrong or not found:
        raise SweepError(
            f"no head {', '.join(wrong) or 'was asked for'}. {model.name} has layers 0 to "
            f"{model.n_layers - 1} and heads 0 to {model.n_heads - 1}."
        )
    return sorted(set(found))
