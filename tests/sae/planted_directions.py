"""Activations made of directions that are known, to see whether a training finds them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxterp.sae import ArrayActivations

POINT = "L0.resid_post"


class Planted(NamedTuple):
    """Activations [tokens, d] and the directions [n, d] they are sums of.

    `fires` is [tokens, n], `parents` [n]: the feature without which one does not fire, −1 where there is
    none.
    """

    x: NDArray[np.float32]
    directions: NDArray[Any]
    fires: NDArray[np.bool_]
    parents: NDArray[np.int64]

    def source(self) -> ArrayActivations:
        return ArrayActivations({POINT: self.x})


def easy(seed: int, *, tokens: int = 64_000, n: int = 64, d: int = 32, density: float = 0.05) -> Planted:
    """Independent features, each on 5 % of the tokens, with coefficients from 0.5 to 1.5."""
    random = np.random.default_rng(seed)
    directions = _unit(random.normal(size=(n, d)))
    on = (random.random((tokens, n)) < density) * random.uniform(0.5, 1.5, (tokens, n))
    return Planted((on @ directions).astype(np.float32), directions, on > 0, np.full(n, -1))


def hard(seed: int, *, tokens: int = 400_000) -> Planted:
    """256 features in 64 dimensions: frequencies by Zipf's law, a hierarchy, 5 % of the tokens with a large
    norm, a mean that is larger than everything else."""
    random = np.random.default_rng(seed)
    n, d = 256, 64
    directions = _unit(random.normal(size=(n, d)))
    frequency = np.minimum(0.25, 0.6 / (1 + np.arange(n)) ** 0.7)
    on = random.random((tokens, n)) < frequency
    # A child fires only with its parent, and lies near it.
    parents, of = np.arange(0, 32), np.full(n, -1)
    children = np.arange(32, 64)
    on[:, children] = on[:, parents] & (random.random((tokens, 32)) < 0.5)
    of[children] = parents
    directions[children] = _unit(directions[children] + 0.5 * directions[parents])
    x = (on * random.uniform(0.5, 1.5, (tokens, n))) @ directions
    x *= np.where(random.random(tokens) < 0.05, 3.0, 1.0)[:, None]
    mean = 4.0 * _unit(random.normal(size=(1, d)))
    return Planted((x + mean).astype(np.float32), directions, on, of)


def hierarchy(seed: int, *, tokens: int = 128_000) -> Planted:
    """8 parents with 4 children each and 24 features of no family, in 48 dimensions.

    A parent fires on 10 % of the tokens; on 60 % of these one of its children, chosen with equal chances,
    fires too. All coefficients are from 0.8 to 1.2. About 2.5 features fire on a token.
    """
    random = np.random.default_rng(seed)
    parents, children, others, d = 8, 4, 24, 48
    n = parents * (1 + children) + others
    directions = _unit(random.normal(size=(n, d)))
    of = np.concatenate([np.full(parents, -1), np.repeat(np.arange(parents), children), np.full(others, -1)])
    on = np.zeros((tokens, n), dtype=bool)
    on[:, :parents] = random.random((tokens, parents)) < 0.1
    which = random.choice(children + 1, size=(tokens, parents), p=[0.4, *[0.6 / children] * children])
    for child in np.flatnonzero(of >= 0):
        number = (child - parents) % children + 1
        on[:, child] = on[:, of[child]] & (which[:, of[child]] == number)
    on[:, n - others :] = random.random((tokens, others)) < 0.05
    x = (on * random.uniform(0.8, 1.2, (tokens, n))) @ directions
    return Planted(x.astype(np.float32), directions, on, of)


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    scaled: NDArray[Any] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled
