"""Weights of linear layers and embeddings as float32 rows: quantised or not, with or without an adapter.

An adapter of mlx-lm (LoRA, Hu et al. 2021, arXiv:2106.09685; DoRA, Liu et al. 2024, arXiv:2402.09353) wraps a
layer and adds a product of two small matrices to its weight; the weight here is the sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

_QUANTISED = (nn.QuantizedLinear, nn.QuantizedEmbedding)
Rows = mx.array | slice


@dataclass(frozen=True, eq=False)
class _Adapter:
    """A wrapped layer and the two factors of what is added to its weight: delta[n, in] = left[n] @ right."""

    base: nn.Module
    left: mx.array  # [n, rank], the scale included
    right: mx.array  # [rank, in]
    magnitude: mx.array | None  # [n]: DoRA gives each row of the sum this norm

    def rows(self, index: Rows) -> mx.array:
        weight = rows(self.base, index) + self.left[index] @ self.right
        if self.magnitude is None:
            return weight
        norms = mx.linalg.norm(weight, axis=-1, keepdims=True)
        return weight * (self.magnitude[index][..., None] / norms)


def _adapter(module: nn.Module) -> _Adapter | None:
    base = next((module[n] for n in ("linear", "embedding") if isinstance(module.get(n), nn.Module)), None)
    if base is None or "lora_a" not in module or "lora_b" not in module:
        return None
    a, b = (module[name].astype(mx.float32) for name in ("lora_a", "lora_b"))
    # An embedding's factors are [n, rank] and [rank, d]; a linear layer's [in, rank] and [rank, n].
    left, right = (a, b) if "embedding" in module else (b.T, a.T)
    magnitude = module["m"].astype(mx.float32) if "m" in module else None
    return _Adapter(base, left * module.scale, right, magnitude)


def readable(module: nn.Module) -> bool:
    """Whether the module holds one weight matrix."""
    adapter = _adapter(module)
    weight = module.get("weight")
    return readable(adapter.base) if adapter else isinstance(weight, mx.array) and weight.ndim == 2


def width(module: nn.Module) -> int:
    """How many inputs a layer has; 0 for a module without a weight."""
    if adapter := _adapter(module):
        return width(adapter.base)
    if isinstance(module, _QUANTISED):
        return int(module["scales"].shape[-1] * module.group_size)
    return int(module["weight"].shape[-1]) if readable(module) else 0


def n_rows(module: nn.Module) -> int:
    """How many outputs a layer has, or tokens an embedding; 0 for a module without a weight."""
    if adapter := _adapter(module):
        return n_rows(adapter.base)
    return int(module["weight"].shape[0]) if readable(module) else 0


def rows(module: nn.Module, index: Rows = slice(None)) -> mx.array:
    """Rows of the weight [n, in] in float32: a linear layer's outputs, or an embedding's tokens."""
    if adapter := _adapter(module):
        return adapter.rows(index)
    if isinstance(module, _QUANTISED):
        # 16-bit scales would round what they are multiplied with; modes without biases keep theirs as codes.
        biases, scales = module.get("biases"), module["scales"][index]
        whole: mx.array = mx.dequantize(
            module["weight"][index],
            scales if biases is None else scales.astype(mx.float32),
            None if biases is None else biases[index].astype(mx.float32),
            group_size=module.group_size,
            bits=module.bits,
            mode=module.mode,
        )
        return whole.astype(mx.float32)
    if isinstance(module, nn.Linear | nn.Embedding):
        weight: mx.array = module["weight"]
        return weight[index].astype(mx.float32)
    return _columns_by_probing(module)[index]


def bias(module: nn.Module) -> mx.array | None:
    """What the layer adds, in float32, or None."""
    adapter = _adapter(module)
    value = (adapter.base if adapter else module).get("bias")
    return value.astype(mx.float32) if isinstance(value, mx.array) else None


def _columns_by_probing(module: nn.Module) -> mx.array:
    """The weight of any other linear layer (ternary layers): its answers to the identity."""
    width = module["weight"].shape[-1]
    zero = module(mx.zeros((1, width)))
    answers: mx.array = module(mx.eye(width)) - zero
    return answers.astype(mx.float32).T
