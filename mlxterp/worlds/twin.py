"""Copies of a model with edited weights; the weight-shuffled twin: the same shapes and the same numbers in no
order, so no behaviour."""

from __future__ import annotations

import copy

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map_with_path

from mlxterp.core.model import InterpretableModel


def shuffled_twin(model: InterpretableModel, seed: int) -> InterpretableModel:
    """A copy of a model in which the entries of each weight matrix have changed places.

    Norms and biases stay, so activations keep their size; quantised matrices are shuffled in their packed
    form, and their scales too. Costs the model's memory a second time, and a second per 30 million weights.

    Use: a negative control of a behaviour gate. Nothing is to be said of effects in it: it has no gap.
    """
    twin = edited_copy(model, f"{model.name} with shuffled weights")
    rng = np.random.default_rng(seed)

    def shuffle(_: str, array: mx.array) -> mx.array:
        if array.ndim < 2:
            return array
        # As whole words of its width: numpy has no bfloat16.
        words = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}[array.dtype.size]
        flat = np.array(array.reshape(-1).view(words))
        rng.shuffle(flat)
        return mx.array(flat).view(array.dtype).reshape(array.shape)

    twin.model.update(tree_map_with_path(shuffle, twin.model.parameters()))
    mx.eval(twin.model.parameters())
    return twin


def edited_copy(model: InterpretableModel, name: str) -> InterpretableModel:
    """A copy whose weights may be edited without touching the model; it can do what the model can. Costs the
    model's memory a second time."""
    copied = InterpretableModel(copy.deepcopy(model.model), model.tokenizer, verify=False)
    copied.name = name
    copied.architecture.capabilities = model.architecture.capabilities
    return copied
