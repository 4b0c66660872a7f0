"""Norms as formulas: what a norm module computes, so that its scale can be frozen.

A norm is linear once its scale is fixed at the value of one run (Elhage et al. 2021): norm(x) = scale(x) ·
weight ⊙ center(x) + bias. Which of the forms a module computes is not guessed from its class, but found by
comparing outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import mlx.core as mx
import mlx.nn as nn

NormKind: TypeAlias = Literal["rms", "layernorm", "none"]
KINDS: tuple[NormKind, ...] = ("rms", "layernorm")


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm in float32: `rms` without centring, `layernorm` with the mean taken off first, or `none`."""

    kind: NormKind
    weight: mx.array | None = None  # [d_model], gemma's +1 included; None is 1
    bias: mx.array | None = None
    eps: float = 0.0

    def scale(self, x: mx.array) -> mx.array:
        """[..., 1]: what this norm multiplies with on input `x`."""
        if self.kind == "none":
            return mx.ones((*x.shape[:-1], 1))
        centred = self.center(x)
        return mx.rsqrt(mx.mean(centred * centred, axis=-1, keepdims=True) + self.eps)

    def center(self, x: mx.array) -> mx.array:
        x = x.astype(mx.float32)
        return x - mx.mean(x, axis=-1, keepdims=True) if self.kind == "layernorm" else x

    def linear(self, x: mx.array) -> mx.array:
        """weight ⊙ center(x): times a fixed scale, what `x` contributes to the output."""
        centred = self.center(x)
        return centred if self.weight is None else centred * self.weight

    def fold(self, directions: mx.array) -> mx.array:
        """Directions after the norm [n, d_model] as directions before it: ⟨linear(x), u⟩ = ⟨x, fold(u)⟩."""
        u = directions.astype(mx.float32)
        weighted = u if self.weight is None else u * self.weight
        return weighted - mx.mean(weighted, axis=-1, keepdims=True) if self.kind == "layernorm" else weighted

    def __call__(self, x: mx.array) -> mx.array:
        y = self.scale(x) * self.linear(x)
        return y if self.bias is None else y + self.bias


IDENTITY = Norm("none")


def read_norm(module: nn.Module, d_model: int) -> Norm | None:
    """The formula that reproduces `module`, or None if none of the known ones does.

    Compared in float32, so that a 16-bit `1 + weight` (gemma) is told from one in float32.
    """
    weight, bias = (_float32(module, name) for name in ("weight", "bias"))
    if weight is not None and weight.shape != (d_model,):
        return None
    eps = next((float(module.__dict__[n]) for n in ("eps", "variance_epsilon") if n in module.__dict__), 1e-5)
    weights = [weight]
    if weight is not None:
        weights += [(module["weight"] + 1.0).astype(mx.float32), weight + 1.0]
    candidates = [Norm(kind, each, bias, eps) for each in weights for kind in KINDS]
    noise = mx.random.normal((1, 4, d_model), key=mx.random.key(0)) + 0.5
    # The small row tells a wrong eps, the ordinary ones a wrong formula.
    x = noise * mx.array([1.0, 3.0, 0.3, 1e-3])[None, :, None]
    expected = module(x)
    tolerance = 1e-4 if expected.dtype == mx.float32 else 5e-2
    found = [(norm, _excess(norm(x), expected.astype(mx.float32), tolerance)) for norm in candidates]
    best, excess = min(found, key=lambda each: each[1])
    return best if excess <= 1 else None


def _excess(got: mx.array, expected: mx.array, tolerance: float) -> float:
    """The largest difference in units of what `tolerance` allows; infinite where it is not a number."""
    off = float(mx.max(mx.abs(got - expected) / (tolerance * (1 + mx.abs(expected)))))
    return off if math.isfinite(off) else math.inf


def _float32(module: nn.Module, name: str) -> mx.array | None:
    value = module.get(name)
    return value.astype(mx.float32) if isinstance(value, mx.array) else None
