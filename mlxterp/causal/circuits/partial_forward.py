"""One block, run as far as the module whose input or output is wanted; the model's own code runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxterp.core.architecture.parts import Architecture, Layer, Prologue
from mlxterp.core.taps import Around, tapped
from mlxterp.errors import CapabilityUnavailable

Taps = list[tuple[nn.Module, Around]]


class Reached(Exception):
    """Ends a block's call where the value that is wanted is known."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def run_until_reached(
    architecture: Architecture,
    layer: int,
    h: mx.array,
    prologue: Prologue,
    taps: Sequence[tuple[nn.Module, Around]] = (),
) -> Any:
    """The value with which a tap or a stand-in raises `Reached` during the call of a block on `h`.

    Raises:
        CapabilityUnavailable: the block ran to its end.
    """
    with tapped(taps):
        try:
            architecture.block(layer, h, prologue)
        except Reached as reached:
            return reached.value
    raise CapabilityUnavailable(
        f"{architecture.name}: layer {layer} ran without calling its attention or its MLP where they were "
        "expected, so what they read or write is not known. Patch or attribute to nodes instead of edges."
    )


def without_attention(part: Layer) -> Taps:
    """Taps with which attention adds nothing, so that the MLP's norm reads the block's own input."""
    taps: Taps = [(present(part.attn), _return_zeros)]
    return taps if part.attn_adds is part.attn else [*taps, (present(part.attn_adds), _return_zeros)]


def stop_with_input(_: Callable[..., Any], x: mx.array, *__: Any, **___: Any) -> Any:
    """A tap that ends the block with the input of a module."""
    raise Reached(x)


def stop_with_output(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A tap that ends the block with the output of a module."""
    y = call(*args, **kwargs)
    raise Reached(y[0] if isinstance(y, tuple) else y)


def present(part: nn.Module | None) -> nn.Module:
    """A part of a block whose capability was required before."""
    assert part is not None, "a capability was not required before its part was used"
    return part


def _return_zeros(_: Callable[..., Any], x: mx.array, *__: Any, **___: Any) -> mx.array:
    return mx.zeros_like(x)
