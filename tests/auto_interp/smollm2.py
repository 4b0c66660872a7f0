"""Features with a known meaning on SmolLM2-135M's embeddings: tokens and sets of tokens.

The stream that enters block 0 is the token's embedding. An encoder row solved from the embeddings of all
tokens that occur fires on the wanted ones only, if a plane tells them from the others; those that none does
are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxterp.core.model import InterpretableModel
from mlxterp.sae.sae import SAE, Relu


@dataclass(frozen=True)
class PlantedTokens:
    """An SAE at "embed", and the token ids on which each of its features fires."""

    sae: SAE
    tokens: tuple[tuple[int, ...], ...]


def plant(model: InterpretableModel, texts: list[str], *, words: int, sets: int) -> PlantedTokens:
    """The `words` commonest tokens, and `sets` sets of 2 to 8 of tokens that occur ten times or more."""
    ids = np.concatenate([model.to_tokens(text)[0] for text in texts])
    occurring, counts = np.unique(ids, return_counts=True)
    rows = np.array(model.architecture.embed(mx.array(occurring[None]))[0].astype(mx.float32))
    common = np.argsort(-counts, kind="stable")
    random = np.random.default_rng(0)
    often = common[counts[common] >= 10]
    # Tokens that a text is too full of, such as the comma, would make sets of little but themselves.
    wanted = [(int(i),) for i in common[: 2 * words]]
    wanted += [
        tuple(random.choice(often[20:], size=random.integers(2, 9), replace=False).tolist())
        for _ in range(4 * sets)
    ]
    # Ridge regression to the indicator of the wanted tokens, then the middle between in and out.
    gram = rows.T @ rows + 1e-3 * np.eye(rows.shape[1], dtype=np.float32)
    solve = np.linalg.solve(gram, rows.T)
    chosen: list[tuple[np.ndarray, float, tuple[int, ...]]] = []
    kinds = [0, 0]
    for tokens in wanted:
        kind = int(len(tokens) > 1)
        direction = solve[:, list(tokens)].sum(axis=1)
        value = rows @ direction
        inside = np.zeros(len(rows), dtype=bool)
        inside[list(tokens)] = True
        low, high = value[inside].min(), value[~inside].max()
        if low > high * 1.05 and kinds[kind] < (words, sets)[kind]:
            kinds[kind] += 1
            chosen.append((direction, -(low + high) / 2, tuple(int(occurring[i]) for i in tokens)))
    W = np.stack([direction for direction, _, _ in chosen]).astype(np.float32)
    bias = np.array([bias for _, bias, _ in chosen], dtype=np.float32)
    sae = SAE(
        W_enc=mx.array(W.T),
        b_enc=mx.array(bias),
        W_dec=mx.array(W / np.linalg.norm(W, axis=1, keepdims=True)),
        b_dec=mx.zeros(W.shape[1]),
        activation=Relu(),
        hook_point="embed",
        model=model.name,
    )
    return PlantedTokens(sae, tuple(tokens for _, _, tokens in chosen))
