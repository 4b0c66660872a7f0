"""Bar charts: vertical along an axis such as layers, horizontal for a ranking."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlxterp.plots.axes import (
    FONT,
    INK,
    NEGATIVE,
    POSITIVE,
    SOFT,
    WIDTH,
    Area,
    axes_at,
    fixed,
    margin,
    set_ticks,
    shown,
)
from mlxterp.results.views import Bars
from mlxterp.text import typeset

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_MOST_BARS = 60
_BESIDE, _COLUMNS_BESIDE = 0.7, 0.77  # inches beside the bars and the columns


def drawn_part(show: Bars) -> Bars:
    """The show, or the largest 60 bars of a longer ranking in their order, which its title states."""
    if show.ordered or len(show.labels) <= _MOST_BARS:
        return show
    size = np.nan_to_num(np.abs(np.array(show.values, dtype=np.float64)))
    kept = sorted(int(i) for i in np.argsort(-size, kind="stable")[:_MOST_BARS])
    return replace(
        show,
        title=f"{show.title} (the largest {_MOST_BARS} of {len(show.labels)})",
        labels=tuple(show.labels[i] for i in kept),
        values=tuple(show.values[i] for i in kept),
        intervals=None if show.intervals is None else tuple(show.intervals[i] for i in kept),
        accented=tuple(kept.index(i) for i in show.accented if i in kept),
    )


def width(show: Bars) -> float:
    """Inches: as few as its bars need, so that it fits a telephone where it can."""
    if show.ordered:
        return min(WIDTH, _COLUMNS_BESIDE + max(2.4, 0.15 * len(show.labels)))
    return min(WIDTH, margin(show.labels) + _BESIDE + 2.7)


def height(show: Bars) -> float:
    """Inches."""
    if show.ordered:
        return 2.2
    return 0.55 + 0.2 * max(1, len(show.labels)) + (0.15 if show.references else 0.0)


def draw(drawn: Figure, show: Bars, area: Area) -> None:
    """Bars in the order given; those that the result is about are coloured."""
    (_columns if show.ordered else _ranking)(drawn, show, area)


def _columns(drawn: Figure, show: Bars, area: Area) -> None:
    """Vertical bars along an ordered axis."""
    bottom, height, total, wide = area
    left, below = 0.62, 0.5
    width = wide - _COLUMNS_BESIDE
    axes = axes_at(
        drawn, (left / wide, (bottom + below) / total, width / wide, (height - below - 0.12) / total)
    )
    low, high = _limits(show)
    axes.set(xlim=(-0.6, max(1, len(show.labels)) - 0.4), ylim=(low, high))
    for i, value in enumerate(show.values):
        if np.isfinite(value):
            axes.bar(i, value, width=0.78, linewidth=0, gid=f"cell-0-{i}", clip_on=False, **_fill(show, i))
            if i in show.accented:
                up = value >= 0
                axes.annotate(
                    fixed(value, show.values),
                    (i, value),
                    xytext=(0, 2 if up else -2),
                    textcoords="offset points",
                    ha="center",
                    va="bottom" if up else "top",
                    color=INK,
                    fontsize=FONT - 1,
                )
    for i, (start, end) in enumerate(show.intervals or ()):
        axes.plot([i, i], [start, end], color=INK, alpha=0.6, linewidth=0.9, clip_on=False)
    for value, name in show.references:
        axes.axhline(value, color=INK, alpha=0.45, linewidth=0.7, linestyle=(0, (3, 3)), clip_on=False)
        axes.text(
            len(show.labels) - 0.45,
            value,
            shown(name),
            ha="right",
            va="bottom",
            color=INK,
            alpha=0.75,
            parse_math=False,
        )
    axes.axhline(0, color=INK, alpha=0.5, linewidth=0.7, clip_on=False)
    set_ticks(axes, "x", show.labels, width / max(1, len(show.labels)))
    axes.set_xlabel(shown(show.axis), **SOFT)
    axes.set_ylabel(shown(show.unit, 30), **SOFT)
    ticks = _round_ticks(low, high)
    axes.set_yticks(ticks, [typeset(tick) for tick in ticks], color=INK)
    axes.tick_params(length=0)


def _ranking(drawn: Figure, show: Bars, area: Area) -> None:
    """Horizontal bars, a label before each and its value after it."""
    bottom, height, total, wide = area
    left, below = margin(show.labels) + 0.1, 0.38
    above = 0.15 if show.references else 0.0
    width = wide - margin(show.labels) - _BESIDE
    at = (left / wide, (bottom + below) / total, width / wide, (height - below - above - 0.1) / total)
    axes = axes_at(drawn, at)
    low, high = _limits(show)
    axes.set(xlim=(low, high), ylim=(max(1, len(show.labels)) - 0.5, -0.5))
    ends = show.intervals or tuple((value, value) for value in show.values)
    for i, value in enumerate(show.values):
        if not np.isfinite(value):
            axes.text(0, i, " n/a", va="center", color=INK, alpha=0.75)
            continue
        axes.barh(i, value, height=0.68, linewidth=0, gid=f"cell-0-{i}", clip_on=False, **_fill(show, i))
        beyond = max(value, ends[i][1], 0.0) if value >= 0 else max(0.0, ends[i][1])
        axes.annotate(
            fixed(value, show.values),
            (beyond, i),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            annotation_clip=False,
        )
    for i, (start, end) in enumerate(show.intervals or ()):
        axes.plot([start, end], [i, i], color=INK, alpha=0.6, linewidth=0.9, clip_on=False)
    for value, name in show.references:
        axes.axvline(value, color=INK, alpha=0.45, linewidth=0.7, linestyle=(0, (3, 3)), clip_on=False)
        axes.text(value, -0.6, shown(name), ha="center", va="bottom", **SOFT)
    axes.axvline(0, color=INK, alpha=0.5, linewidth=0.7, clip_on=False)
    set_ticks(axes, "y", show.labels, 1.0)
    axes.set_xlabel(shown(show.unit, 60), **SOFT)
    ticks = _round_ticks(low, high)
    axes.set_xticks(ticks, [typeset(tick) for tick in ticks], color=INK, alpha=0.75)
    axes.tick_params(length=0)


def _fill(show: Bars, i: int) -> dict[str, Any]:
    if i in show.accented or not show.accented:
        return {"color": POSITIVE if show.values[i] >= 0 else NEGATIVE, "alpha": 1.0}
    return {"color": INK, "alpha": 0.32}


def _limits(show: Bars) -> tuple[float, float]:
    every = [
        *show.values,
        *(end for pair in show.intervals or () for end in pair),
        *(v for v, _ in show.references),
        0.0,
    ]
    finite = [value for value in every if np.isfinite(value)]
    low, high = min(finite), max(finite)
    if low == high:
        return -0.05, 1.0
    room = 0.06 * (high - low)
    return (low - room if low < 0 else 0.0), (high + room if high > 0 else 0.0)


def _round_ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    return [
        float(tick)
        for tick in MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        if low <= tick <= high
    ]
