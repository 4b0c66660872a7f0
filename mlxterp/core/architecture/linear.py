"""Weights of linear layers and embeddings as float32 rows, quantised or not."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

_QUANTISED = (nn.QuantizedLinear, nn.QuantizedEmbedding)


def readable(module: nn.Module) -> bool:
    """Whether the module holds one weight matrix."""
    weight = module.get("weight")
    return isinstance(weight, mx.array) and weight.ndim == 2


def width(module: nn.Module) -> int:
    """How many inputs a layer has; 0 for a module without a weight."""
    if isinstance(module, _QUANTISED):
        return int(module["scales"].shape[-1] * module.group_size)
    return int(module["weight"].shape[-1]) if readable(module) else 0


def rows(module: nn.Module, index: mx.array | slice = slice(None)) -> mx.array:
    """Rows of the weight [n, in] in float32: a linear layer's outputs, or an embedding's tokens."""
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
    value = module.get("bias")
    return value.astype(mx.float32) if isinstance(value, mx.array) else None


def _columns_by_probing(module: nn.Module) -> mx.array:
    """The weight of any other linear layer (adapters, ternary layers): its answers to the identity."""
    width = module["weight"].shape[-1]
    zero = module(mx.zeros((1, width)))
    answers: mx.array = module(mx.eye(width)) - zero
    return answers.astype(mx.float32).T
