"""Whether the GPU computes what the CPU computes: asked at load, on five tokens.

A backend that is silently wrong gives numbers that look like results. What lives here: that one comparison.
What doesn't: whether hook points mean what they say (`self_check.py`), which BLAS the CPU uses (`blas.py`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import mlx.core as mx
import numpy as np

from mlxterp.core.architecture.parts import Architecture
from mlxterp.errors import DeviceDisagrees

TOLERANCE, TOLERANCE_HALF = 5e-3, 4e-2
"""How far the logits of the two devices may lie apart, relative to the largest; float32, types of 16 bits.

Wide, because a GPU may multiply float32 in fewer bits. What it is there to catch is gross.
"""


def computing() -> mx.Device:
    """The device that a forward runs on."""
    return mx.default_device()


def on_cpu() -> AbstractContextManager[object]:
    """What is built inside is computed by the CPU."""
    return mx.stream(mx.cpu)


def compare(architecture: Architecture, tokens: mx.array) -> float | None:
    """How far this device's logits of `tokens` are from the CPU's, relative to the largest; None on a CPU.

    Costs a forward on each device.

    Raises:
        DeviceDisagrees: further than the tolerance.
    """
    if computing().type == mx.cpu:
        return None
    own = architecture.forward(tokens)
    mx.eval(own)
    with on_cpu():
        expected = architecture.forward(tokens)
        mx.eval(expected)
    a, b = (np.array(x.astype(mx.float32)) for x in (own, expected))
    off = float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-6))
    tolerance = TOLERANCE if own.dtype == mx.float32 else TOLERANCE_HALF
    if not off <= tolerance:  # NaN fails too
        raise DeviceDisagrees(
            f"{architecture.name}: on {computing()} the logits of {tokens.size} tokens are {off:.1e} away "
            f"from those that the CPU computes, relative to the largest; {tolerance:g} would be rounding. "
            "Nothing measured there would be right. Compute on the CPU, before loading: "
            "mlx.core.set_default_device(mlx.core.cpu)."
        )
    return off
