"""What to do to an activation: zero, replace, add, scale, clamp, noise, mean, project out, or any function.

An intervention is a value: where (`point`, and optionally `positions`, `heads`, batch `rows`) and what (`op`,
`value`). Several compose: at one hook point they apply in the order given. What lives here: the values and
their arithmetic. What doesn't: running a model with them (`forward.py`), and resolving positions of padded
rows (`selection.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlxterp.core.hook_points import HookPoint, parse
from mlxterp.core.selection import Positions, Selection, Window, indices, place
from mlxterp.errors import HookError

Op = Literal["zero", "replace", "mean", "add", "scale", "clamp", "noise", "project_out", "edit"]
Array = mx.array | np.ndarray[Any, Any] | float | list[float]
_NEEDS_SPAN = ("replace", "mean", "add")  # values that may have positions, heads or rows of their own


@dataclass(frozen=True, eq=False)
class Intervention:
    """One edit of one activation. Made by the functions below (`zero("L3.mlp_out")`), which say what `value`
    means.
    """

    point: HookPoint
    op: Op
    value: Any = None
    where: Selection = field(default_factory=Selection)

    def __str__(self) -> str:
        return f"{self.op} at {self.point}{self.where}"

    def apply(self, x: mx.array, window: Window | None = None) -> mx.array | None:
        """The edited activation, or None if none of the selected positions is in this window.

        Args:
            x: the activation, with the axes of its hook point (`hook_points.py`).
            window: which positions of which rows `x` holds; by default all, from position 0.
        """
        window = window or Window.over(x, self.point)
        chosen = indices(self.where, self.point, x.shape, window)
        if chosen is None:
            return None
        part = chosen.read(x)
        value = self.value
        if self.op in _NEEDS_SPAN:
            value = chosen.fit(mx.array(value), x, str(self)).astype(x.dtype)
        return place(x, chosen, _OPS[self.op](part, value, window).astype(x.dtype))


def _project_out(part: mx.array, direction: mx.array, _: Window) -> mx.array:
    unit = (direction / mx.linalg.norm(direction)).astype(part.dtype)
    return part - (part @ unit)[..., None] * unit


def _noise(part: mx.array, value: tuple[float, mx.array], window: Window) -> mx.array:
    std, key = value
    # Each step of a generation sees other positions, so it must see other noise.
    key = mx.random.split(key, window.start + 1)[window.start] if window.start else key
    return part + std * mx.random.normal(part.shape, dtype=mx.float32, key=key)


_OPS: dict[str, Callable[[mx.array, Any, Window], mx.array]] = {
    "zero": lambda part, _, __: mx.zeros_like(part),
    "replace": lambda part, value, _: mx.broadcast_to(value, part.shape),
    "mean": lambda part, value, _: mx.broadcast_to(value, part.shape),
    "add": lambda part, value, _: part + value,
    "scale": lambda part, factor, _: part * factor,
    "clamp": lambda part, bounds, _: mx.clip(part, *bounds),
    "noise": _noise,
    "project_out": _project_out,
    "edit": lambda part, function, _: function(part),
}

Where = str | HookPoint
Heads = int | Sequence[int] | None


def zero(
    point: Where, *, positions: Positions = None, heads: Heads = None, rows: Heads = None
) -> Intervention:
    """Sets the activation to zero (zero ablation)."""
    return Intervention(parse(point), "zero", None, Selection.of(positions, heads, rows))


def replace(
    point: Where, value: Array, *, positions: Positions = None, heads: Heads = None, rows: Heads = None
) -> Intervention:
    """Sets the activation to `value` (activation patching, resample ablation).

    Each axis of `value` is either as long as the whole activation's, and the selected entries are taken from
    it, or as long as the selection, or 1. So `replace("L9.z", clean["L9.z"], positions=-1, heads=4)` patches
    one head.
    """
    return Intervention(parse(point), "replace", value, Selection.of(positions, heads, rows))


def mean(
    point: Where, value: Array, *, positions: Positions = None, heads: Heads = None, rows: Heads = None
) -> Intervention:
    """Sets the activation to its mean over a dataset, given as `value` (mean ablation); shapes as in
    `replace`.
    """
    return Intervention(parse(point), "mean", value, Selection.of(positions, heads, rows))


def add(
    point: Where, vector: Array, *, positions: Positions = None, heads: Heads = None, rows: Heads = None
) -> Intervention:
    """Adds `vector` (steering; or a zero perturbation to differentiate by); shapes as in `replace`."""
    return Intervention(parse(point), "add", vector, Selection.of(positions, heads, rows))


def scale(
    point: Where, factor: float, *, positions: Positions = None, heads: Heads = None, rows: Heads = None
) -> Intervention:
    """Multiplies the activation by `factor`."""
    return Intervention(parse(point), "scale", factor, Selection.of(positions, heads, rows))


def clamp(
    point: Where,
    low: float,
    high: float,
    *,
    positions: Positions = None,
    heads: Heads = None,
    rows: Heads = None,
) -> Intervention:
    """Keeps every entry between `low` and `high`."""
    if low > high:
        raise HookError(f"clamp at {parse(point)}: low {low} is above high {high}. Swap them.")
    return Intervention(parse(point), "clamp", (low, high), Selection.of(positions, heads, rows))


def noise(
    point: Where,
    std: float,
    *,
    key: mx.array,
    positions: Positions = None,
    heads: Heads = None,
    rows: Heads = None,
) -> Intervention:
    """Adds normal noise of standard deviation `std`, drawn from `key` (`mx.random.key(0)`).

    Two interventions with the same key draw the same noise: give each its own (`mx.random.split`).
    """
    return Intervention(parse(point), "noise", (std, key), Selection.of(positions, heads, rows))


def project_out(
    point: Where, direction: Array, *, positions: Positions = None, heads: Heads = None, rows: Heads = None
) -> Intervention:
    """Removes the component along `direction`, a vector over the last axis (directional ablation)."""
    vector = mx.array(direction)
    if vector.ndim != 1 or float(mx.linalg.norm(vector)) == 0.0:
        raise HookError(
            f"project_out at {parse(point)}: the direction must be one non-zero vector, "
            f"this one has shape {vector.shape} and norm {float(mx.linalg.norm(vector)):g}."
        )
    return Intervention(parse(point), "project_out", vector, Selection.of(positions, heads, rows))


def edit(
    point: Where,
    function: Callable[[mx.array], mx.array],
    *,
    positions: Positions = None,
    heads: Heads = None,
    rows: Heads = None,
) -> Intervention:
    """Replaces the selected part of the activation by `function` of it; the shape must stay."""
    return Intervention(parse(point), "edit", function, Selection.of(positions, heads, rows))
