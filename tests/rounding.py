"""Tolerances that follow from float32 arithmetic instead of from one machine's last bits.

Two libraries, two numbers of threads or two batches add the same products in another order. How far apart the
results may be follows from the error analysis of that sum (Higham 2002, "Accuracy and Stability of Numerical
Algorithms", chapter 3).
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from numpy.typing import ArrayLike, NDArray

from mlxterp.core.model import InterpretableModel

UNIT = 2.0**-24
"""The unit roundoff of float32."""


def product_error(a: ArrayLike, b: ArrayLike, *, unit: float = UNIT) -> NDArray[np.float64]:
    """By how much each element of a computed `a @ b` may be off, whatever the order of its sum: γ_k |a||b|.

    γ_k = k·u / (1 − k·u), k the length of the dot products. Two computed products are at most twice this
    apart. Complex products take √2 · γ_{k+2} (section 3.6).
    """
    a, b = np.asarray(a), np.asarray(b)
    complex_ = np.iscomplexobj(a) or np.iscomplexobj(b)
    k = a.shape[-1] + 2 * complex_
    gamma = k * unit / (1 - k * unit) * (2**0.5 if complex_ else 1.0)
    found: NDArray[np.float64] = gamma * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))
    return found


def backward_error(
    model: InterpretableModel, compute: Callable[[], ArrayLike], *, draws: int = 3, factor: float = 8.0
) -> float:
    """By how much the largest difference between two float32 runs of `compute` may be, in its own units.

    A computed product is the exact one of weights that differ by √k·u in relative terms, where rounding
    errors are independent (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis").
    So the model's weights are moved by that much, up or down at random, and `compute` runs on these: what
    it changes by is what rounding may change, the amplification by gaps and norms included. `factor` covers
    what the draws miss: activations that are no weights, and unlucky signs.

    Costs `draws` + 1 runs. The weights come back as they were.
    """
    module = model.model
    weights = module.parameters()
    exact = np.asarray(compute(), dtype=np.float64)
    worst = 0.0
    try:
        for draw in range(draws):
            random = np.random.default_rng(draw)
            module.update(tree_map(lambda w, random=random: _moved(w, random), weights))
            moved = np.asarray(compute(), dtype=np.float64)
            worst = max(worst, float(np.abs(moved - exact).max()))
    finally:
        module.update(weights)
    return factor * worst


def _moved(weight: mx.array, random: np.random.Generator) -> mx.array:
    if weight.dtype != mx.float32:
        return weight
    signs = mx.array(random.choice([-1.0, 1.0], size=weight.shape).astype(np.float32))
    return weight * (1 + UNIT * max(1, weight.shape[-1]) ** 0.5 * signs)
