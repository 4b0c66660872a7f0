"""SwiGLU by arithmetic, for the time of a sweep on a Linux CPU: MLX's exp takes 14 ns an element there.

e^x is 2^n · e^r with n whole and |r| ≤ ln 2 / 2: a polynomial (Cephes, Moshier 1989) and the exponent's bits.
A third of the time at equal accuracy (docs/decisions/0012-arithmetic-swiglu.md). What lives here: the
function, its gradient, and putting it in the place of mlx-lm's `swiglu`. Used for float32 only; any other
type, and any other activation function, is MLX's own. MLXTERP_FAST_MATH=off turns it off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx

from mlxterp.core.architecture.parts import Architecture
from mlxterp.core.taps import renamed

NAME = "swiglu"
_ACTIVATIONS = "mlx_lm.models.activations"

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # their sum is ln 2; n · high is exact
_ROUNDS = 12582912.0  # 1.5 · 2^23: adding it leaves no bits behind the point
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
PIECE = 1 << 18
"""Numbers that SwiGLU computes at a time: 1 MiB."""
_LIMIT = 80.0  # e^80 and e^-80 are normal numbers in float32


def allowed() -> bool:
    """Whether sweeps use it: on a Linux CPU, unless MLXTERP_FAST_MATH is off."""
    on_cpu = sys.platform == "linux" and mx.default_device() == mx.Device(mx.cpu)
    return on_cpu and os.environ.get("MLXTERP_FAST_MATH", "").lower() not in ("off", "0", "no")


def exp(x: mx.array) -> mx.array:
    """e^x in float32, x clipped to ±80. No gradient: the bits have none."""
    x = mx.clip(x, -_LIMIT, _LIMIT)
    n = (x * _LOG2_E + _ROUNDS) - _ROUNDS
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = r * _POLYNOMIAL[0] + _POLYNOMIAL[1]
    for coefficient in _POLYNOMIAL[2:]:
        p = p * r + coefficient
    y = p * (r * r) + r + 1.0
    return y * ((n.astype(mx.int32) + 127) << 23).view(mx.float32)


@mx.custom_function
def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """gate · sigmoid(gate) · x for float32, with a gradient of its own."""
    return gate * x / (exp(-gate) + 1.0)


@swiglu.vjp
def _swiglu_vjp(primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array) -> tuple[Any, Any]:
    gate, x = primals
    sigmoid = 1.0 / (exp(-gate) + 1.0)
    slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    return cotangent * x * slope, cotangent * gate * sigmoid


def _in_pieces(gate: mx.array, x: mx.array) -> mx.array:
    """`swiglu` of some tokens at a time, one piece after the other: what is in between stays in the cache."""
    compute = cast(Callable[[mx.array, mx.array], mx.array], swiglu)
    tokens = max(1, PIECE // gate.shape[-1])
    if gate.size // gate.shape[-1] <= tokens or gate.shape != x.shape:
        return compute(gate, x)
    shape = gate.shape
    gate, x = gate.reshape(-1, shape[-1]), x.reshape(-1, shape[-1])
    pieces: list[mx.array] = []
    for i in range(0, len(gate), tokens):
        some = gate[i : i + tokens]
        # MLX would begin with all of them, and none would stay in the cache.
        ready = mx.depends([some], pieces[-1:])[0] if pieces else some
        pieces.append(compute(ready, x[i : i + tokens]))
    return mx.concatenate(pieces).reshape(shape)


def _stand_in(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def either(gate: mx.array, x: mx.array) -> mx.array:
        fits = gate.dtype == mx.float32 and x.dtype == mx.float32
        return _in_pieces(gate, x) if fits else original(gate, x)

    return either


def _namespaces(architecture: Architecture) -> list[dict[str, Any]]:
    """Where MLPs of this model look up mlx-lm's own `swiglu`."""
    own = getattr(sys.modules.get(_ACTIVATIONS), NAME, None)
    found: list[dict[str, Any]] = []
    for layer in architecture.layers:
        names = getattr(type(layer.mlp).__call__, "__globals__", {}) if layer.mlp is not None else {}
        if own is not None and names.get(NAME) is own and not any(names is known for known in found):
            found.append(names)
    return found


def used_by(architecture: Architecture) -> bool:
    """Whether sweeps on this model compute with it; for records of what computed."""
    return allowed() and bool(_namespaces(architecture))


@contextmanager
def used(architecture: Architecture) -> Iterator[None]:
    """While the block runs, this model's `swiglu` is the one above, where that is allowed."""
    namespaces = _namespaces(architecture) if allowed() else []
    with renamed(NAME, [(names, _stand_in(names[NAME])) for names in namespaces]):
        yield
