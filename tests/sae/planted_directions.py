"""Activations made of directions that are known, to see whether a training finds them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxterp.sae import ArrayActivations

POINT = "L0.resid_post"


class Planted(NamedTuple):
    """Activations [tokens, d] and the directions [n, d] they are sums of."""

    x: NDArray[np.float32]
    directions: NDArray[Any]

    def source(self) -> ArrayActivations:
        return ArrayActivations({POINT: self.x})


def easy(seed: int, *, tokens: int = 64_000, n: int = 64, d: int = 32, density: float = 0.05) -> Planted:
    """Independent features, each on 5 % of the tokens, with coefficients from 0.5 to 1.5."""
    random = np.random.default_rng(seed)
    directions = _unit(random.normal(size=(n, d)))
    on = (random.random((tokens, n)) < density) * random.uniform(0.5, 1.5, (tokens, n))
    return Planted((on @ directions).astype(np.float32), directions)


def hard(seed: int, *, tokens: int = 400_000) -> Planted:
    """256 features in 64 dimensions: frequencies by Zipf's law, a hierarchy, 5 % of the tokens with a large
    norm, a mean that is larger than everything else."""
    random = np.random.default_rng(seed)
    n, d = 256, 64
    directions = _unit(random.normal(size=(n, d)))
    frequency = np.minimum(0.25, 0.6 / (1 + np.arange(n)) ** 0.7)
    on = random.random((tokens, n)) < frequency
    # A child fires only with its parent, and lies near it.
    parents = np.arange(0, 32)
    children = np.arange(32, 64)
    on[:, children] = on[:, parents] & (random.random((tokens, 32)) < 0.5)
    directions[children] = _unit(directions[children] + 0.5 * directions[parents])
    x = (on * random.uniform(0.5, 1.5, (tokens, n))) @ directions
    x *= np.where(random.random(tokens) < 0.05, 3.0, 1.0)[:, None]
    return Planted((x + 4.0 * _unit(random.normal(size=(1, d)))).astype(np.float32), directions)


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    scaled: NDArray[Any] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled
