"""Shared by heatmaps and bars: colours, labels, ticks, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from mlxterp import text
from mlxterp.results.views import Heatmap
from mlxterp.text import shortened, typeset, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2328"
POSITIVE = "#2b78d0"
NEGATIVE = "#d8662c"
WIDTH = 7.4  # inches, at most: a report's column at 8 pt
FONT = 8.0
SOFT: dict[str, Any] = {"color": INK, "alpha": 0.75, "parse_math": False}
_LABEL = 22  # characters of a label that are shown


class Area(NamedTuple):
    """Where a show is drawn, in inches from the bottom of a figure that is `total` high and `width` wide."""

    bottom: float
    height: float
    total: float
    width: float


def axes_at(drawn: Figure, at: tuple[float, float, float, float]) -> Axes:
    axes = drawn.add_axes(at)
    axes.patch.set_alpha(0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def set_ticks(
    axes: Axes, which: Literal["x", "y"], labels: Sequence[str], pitch: float, lines: float = 0.0
) -> None:
    """As many labels along an axis as fit; an entry has `pitch` inches, a line of text takes `lines`."""
    longest = max((len(shown(label)) for label in labels), default=1)
    needed = lines if which == "y" else 0.07 * longest + 0.08
    every = next((n for n in (1, 2, 5, 10, 20, 50, 100) if pitch * n >= needed), len(labels) or 1)
    at = list(range(0, len(labels), every))
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(at, [shown(labels[i]) for i in at], color=INK)
    for label in axis.get_ticklabels():
        label.set_parse_math(False)
    axes.tick_params(axis=which, length=0, pad=3)


def margin(labels: Sequence[str]) -> float:
    longest = max((len(shown(label)) for label in labels), default=1)
    return 0.14 + 0.064 * longest


def strengths(values: np.ndarray[Any, Any], show: Heatmap) -> np.ndarray[Any, Any]:
    """Each value as a share of the colour limit: how far from 0, or from `low` if the map has no sign."""
    limit = max(abs(show.low), abs(show.high)) if show.diverging else show.high - show.low
    return np.asarray((values if show.diverging else values - show.low) / (limit or 1.0))


def colours(values: np.ndarray[Any, Any], show: Heatmap) -> np.ndarray[Any, Any]:
    """RGBA: the hue is the sign, the opacity the strength."""
    from matplotlib.colors import to_rgb

    strength = np.nan_to_num(strengths(values, show))
    hue = np.where((strength >= 0)[..., None], to_rgb(POSITIVE), to_rgb(NEGATIVE))
    return np.concatenate([hue, np.clip(np.abs(strength), 0, 1)[..., None]], axis=-1)


def shown(label: str, width: int = _LABEL) -> str:
    """A label on one line, its hidden characters visible, cut after a word with an ellipsis."""
    return shortened(visible(label).replace("\n", "↵").replace("\t", "⇥"), width)


def fixed(value: float, among: Sequence[float]) -> str:
    """A value with as many decimals as its neighbours have."""
    largest = max((abs(v) for v in among if np.isfinite(v)), default=0.0)
    if largest >= 1e5 or 0 < largest < 1e-3:
        return typeset(value)
    return text.fixed(value, 3 if largest < 0.1 else 2 if largest < 100 else 0)
