"""A heatmap: cells, labels, the outlined strongest ones, a colour bar."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlxterp.plots.axes import FONT, INK, SOFT, WIDTH, Area, axes_at, colours, margin, set_ticks, shown
from mlxterp.results.views import Heatmap
from mlxterp.text import typeset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMN = 0.36, 0.62  # inches of a column, at least and at most
_TELEPHONE = 5.1  # inches that a page of 400 pixels shows at once
_BESIDE = 1.15  # inches left and right of the cells, without the labels
_MOST_CELLS = 3000  # above this a picture of pixels, without a title for each cell


def drawn_part(show: Heatmap) -> Heatmap:
    """The show itself: every cell is drawn."""
    return show


def width(show: Heatmap) -> float:
    """Inches: as many as its columns can use, of those that fit a telephone; more where they need more."""
    n_columns, beside = max(1, len(show.column_labels)), margin(show.row_labels) + _BESIDE
    return min(
        WIDTH, beside + n_columns * min(_COLUMN[1], max(_COLUMN[0], (_TELEPHONE - beside) / n_columns))
    )


def height(show: Heatmap) -> float:
    """Inches."""
    return 0.62 + _cell_height(len(show.row_labels)) * max(1, len(show.row_labels))


def _cell_height(n_rows: int) -> float:
    return min(0.26, max(4.2 / max(1, n_rows), min(0.09, 9.0 / max(1, n_rows))))


def draw(drawn: Figure, show: Heatmap, area: Area) -> None:
    """Cells coloured by value, the strongest outlined, and a colour bar."""
    from matplotlib.patches import Rectangle

    bottom, height, total, wide = area
    n_rows, n_columns = len(show.row_labels), len(show.column_labels)
    left = margin(show.row_labels) + 0.3
    plot_height = _cell_height(n_rows) * max(1, n_rows)
    width = min(wide - margin(show.row_labels) - _BESIDE, 0.62 * max(1, n_columns))
    at = (left / wide, (bottom + height - plot_height - 0.08) / total, width / wide, plot_height / total)
    axes = axes_at(drawn, at)
    axes.set(xlim=(-0.5, max(1, n_columns) - 0.5), ylim=(max(1, n_rows) - 0.5, -0.5))
    set_ticks(axes, "x", show.column_labels, width / max(1, n_columns))
    set_ticks(axes, "y", show.row_labels, plot_height / max(1, n_rows), lines=0.13)
    axes.set_xlabel(shown(show.column_axis), **SOFT)
    axes.set_ylabel(shown(show.row_axis), **SOFT)
    values = np.array(show.values, dtype=np.float64).reshape(n_rows, n_columns)
    painted = colours(values, show)
    if values.size <= _MOST_CELLS:
        _draw_cells(axes, values, painted)
    else:
        axes.imshow(painted, aspect="auto", interpolation="nearest")
    roomy = width / max(1, n_columns) >= 0.34 and plot_height / max(1, n_rows) >= 0.15
    for i, j in show.marks:
        axes.add_patch(
            Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.1, clip_on=False)
        )
        if roomy:
            strong = abs(values[i, j]) > 0.55 * max(abs(show.low), abs(show.high))
            colour = "white" if strong else INK
            axes.text(
                j, i, typeset(values[i, j], 2), ha="center", va="center", color=colour, fontsize=FONT - 1
            )
    _frame(axes, (-0.5, -0.5), n_columns, n_rows)
    _colour_bar(drawn, show, _Corner(left + width + 0.14, bottom + height - 0.08, total, wide), plot_height)


def _draw_cells(axes: Axes, values: np.ndarray[Any, Any], painted: np.ndarray[Any, Any]) -> None:
    """A square per finite value; others are hatched."""
    from matplotlib.patches import Rectangle

    there = np.argwhere(np.isfinite(values))
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    _add_squares(axes, there[:, None, ::-1] + corners, painted[tuple(there.T)], "cells")
    hatched: dict[str, Any] = {
        "facecolor": "none",
        "edgecolor": (0.5, 0.5, 0.5, 0.6),
        "hatch": "////",
        "linewidth": 0,
    }
    for i, j in np.argwhere(~np.isfinite(values)):
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, clip_on=False, gid=f"cell-{i}-{j}", **hatched))


def _add_squares(axes: Axes, corners: Any, painted: np.ndarray[Any, Any], gid: str) -> None:
    """Squares in one collection: a patch each takes 15 times as long."""
    from matplotlib.collections import PolyCollection

    squares = PolyCollection(corners, facecolors=painted, edgecolors="none", linewidths=0)
    squares.set_gid(gid)
    squares.set_clip_on(False)
    axes.add_collection(squares, autolim=False)


def _frame(axes: Axes, corner: tuple[float, float], width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    line: dict[str, Any] = {"edgecolor": INK, "alpha": 0.35, "linewidth": 0.6}
    axes.add_patch(Rectangle(corner, width, height, fill=False, clip_on=False, **line))


class _Corner(NamedTuple):
    """The upper left corner of a colour bar, in a figure of this height and width; inches."""

    left: float
    top: float
    total: float
    wide: float


def _colour_bar(drawn: Figure, show: Heatmap, corner: _Corner, plot_height: float) -> None:
    left, top, total, wide = corner
    height = min(plot_height, 1.1) if plot_height > 0.6 else plot_height
    axes = axes_at(drawn, (left / wide, (top - height) / total, 0.1 / wide, height / total))
    axes.set(xlim=(0, 1), ylim=(show.low, show.high))
    edges = np.linspace(show.low, show.high, 42)
    corners = [[(0, low), (1, low), (1, high), (0, high)] for low, high in pairwise(edges.tolist())]
    _add_squares(axes, corners, colours((edges[:-1] + edges[1:]) / 2, show), "shades")
    _frame(axes, (0, show.low), 1, show.high - show.low)
    ticks = (show.low, 0.0, show.high) if show.low < 0 else (show.low, show.high)
    axes.yaxis.tick_right()
    axes.set_yticks(ticks, [typeset(tick, 2) for tick in ticks], color=INK, fontsize=FONT - 1)
    axes.tick_params(length=0, pad=2)
    axes.set_xticks([])
    unit = shown(show.unit, 14)
    axes.text(0, -0.06 / height, unit, transform=axes.transAxes, va="top", fontsize=FONT - 1, **SOFT)
