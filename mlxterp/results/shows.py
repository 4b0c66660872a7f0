"""What a result has to show, as plain values: tables, heatmaps, bars and notes.

Lives here: the values that `mlxterp.plots` draws and `mlxterp.reports` sets in a page; `Component`, the
readable name of one part of a model with its effect; text made safe to show. Does not live here: how they are
drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]
Cell: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True)
class Component:
    """One part of a model and the effect measured for it.

    `label` is what a person reads and what `AnalysisResult.find` accepts: `L9.H6`, `L3.mlp_out`,
    `L12 pos 5 ' Tower'`. `name` is the hook point's name without the layer (`z`, `mlp_out`), so that
    `f"L{c.layer}.{c.name}"` names the hook point.
    """

    label: str
    effect: float
    name: str = ""
    layer: int | None = None
    head: int | None = None
    pos: int | None = None
    ci: tuple[float, float] | None = None


@dataclass(frozen=True)
class Table:
    """Rows under named columns. Numbers stay numbers; the one who draws rounds them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Heatmap:
    """A matrix with named axes.

    `low` and `high` are the colour limits; a diverging map has `low == -high`, so that 0 is neutral. `marks`
    are the (row, column) of the strongest cells, strongest first. `reading` says what a value means.
    `within` says what all cells have in common ("L3.H2"), `details` what there is to know of each cell beyond
    its value ("0.33 to 0.48"): both are told of a cell that is pointed at.
    """

    title: str
    values: tuple[tuple[float, ...], ...]
    row_axis: str
    row_labels: tuple[str, ...]
    column_axis: str
    column_labels: tuple[str, ...]
    unit: str
    low: float
    high: float
    diverging: bool = True
    marks: tuple[tuple[int, int], ...] = ()
    reading: str = ""
    within: str = ""
    details: tuple[tuple[str, ...], ...] | None = None


@dataclass(frozen=True)
class Bars:
    """One value per label, in the order given, with optional intervals and reference lines.

    `ordered` bars lie along an axis (layers, say), so their neighbours mean something; others are a ranking.
    `accented` are the positions of the bars the result is about; `references` are (value, name) pairs.
    """

    title: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    unit: str
    axis: str = ""
    ordered: bool = False
    intervals: tuple[tuple[float, float], ...] | None = None
    accented: tuple[int, ...] = ()
    references: tuple[tuple[float, str], ...] = ()
    reading: str = ""


@dataclass(frozen=True)
class Note:
    """A sentence a reader needs beside the numbers. A caution limits what may be concluded."""

    text: str
    tone: Literal["info", "caution"] = "info"


@dataclass(frozen=True)
class Link:
    """One edge of a network: the positions of its two nodes, its weight, and a word beside its end."""

    start: int
    end: int
    weight: float
    label: str = ""


@dataclass(frozen=True)
class Network:
    """Nodes in rows, from the first row at the bottom to the last on top, joined by weighted links.

    `labels` and `rows` say of each node what is written in it and in which row it stands; rows are in the
    order in which they are first named.
    """

    title: str
    labels: tuple[str, ...]
    rows: tuple[str, ...]
    links: tuple[Link, ...]
    unit: str
    reading: str = ""


Drawable: TypeAlias = Heatmap | Bars | Network
Show: TypeAlias = Drawable | Table | Note


@dataclass(frozen=True)
class Section:
    """What a page says of one result: a heading, sentences, what there is to see, what it was measured on.

    `sections` are those of the results it holds, such as the steps of a workflow.
    """

    title: str
    text: str
    shows: tuple[Show, ...]
    measured_on: Mapping[str, Any] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()


def drawables(shows: Iterable[Show]) -> list[Drawable]:
    """Those of `shows` that are figures."""
    return [show for show in shows if isinstance(show, (Heatmap, Bars, Network))]


def number(value: float, digits: int = 3) -> str:
    """A number as a person reads it: `0.412`, `-3.1`, `1,204`, `1.2e-05`; `n/a` for NaN."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}"
    value = float(value)
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e" in text and 1 <= abs(value) < 1e9 else text


def percent(share: float) -> str:
    """`94 %`; `n/a` for what is not a finite number."""
    return f"{100 * share:.0f} %" if math.isfinite(share) else "n/a"


_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text without terminal colour codes, every other control or reordering character as a visible mark.

    What a reader sees is then what is there: a right-to-left override cannot turn a sentence around, and a
    lone surrogate or NUL, which no HTML or XML may hold, does not reach a file.
    """
    text = _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _HIDDEN.sub(lambda found: _mark(ord(found.group())), text)


def _mark(code: int) -> str:
    return chr(0x2400 + code) if code < 32 else f"⟨U+{code:04X}⟩"


def colour_limit(values: Floats) -> float:
    """The limit of a colour map centred on 0: the largest finite magnitude, or 1 when there is none."""
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if finite.size else 0.0
    return largest if largest > 0 else 1.0


def strongest(values: Floats, k: int) -> tuple[tuple[int, ...], ...]:
    """The indices of the k finite values of largest magnitude, strongest first; zeros are not strong."""
    flat = np.abs(np.asarray(values, dtype=np.float64)).ravel()
    flat = np.where(np.isfinite(flat), flat, 0.0)
    order = [i for i in np.argsort(-flat, kind="stable")[:k] if flat[i] > 0]
    return tuple(tuple(int(j) for j in np.unravel_index(i, values.shape)) for i in order)


def nested(values: Floats) -> tuple[tuple[float, ...], ...]:
    """A matrix as tuples of floats."""
    return tuple(tuple(float(v) for v in row) for row in values)


def heatmap(
    values: Floats,
    *,
    title: str,
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    unit: str,
    reading: str = "",
    diverging: bool = True,
    marks: int = 3,
    intervals: tuple[Floats, Floats] | None = None,
    within: str = "",
) -> Heatmap:
    """A heatmap whose colour limits and marked cells follow from the values.

    Args:
        intervals: low and high ends, of the shape of `values`; told of a cell that is pointed at.
    """
    limit = colour_limit(values)
    return Heatmap(
        title=title,
        values=nested(values),
        row_axis=rows[0],
        row_labels=tuple(rows[1]),
        column_axis=columns[0],
        column_labels=tuple(columns[1]),
        unit=unit,
        low=-limit if diverging else 0.0,
        high=limit,
        diverging=diverging,
        marks=tuple((i, j) for i, j in strongest(values, marks) if abs(values[i, j]) >= limit / 4),
        reading=reading,
        within=within,
        details=None if intervals is None else _interval_texts(*intervals),
    )


def _interval_texts(low: Floats, high: Floats) -> tuple[tuple[str, ...], ...]:
    return tuple(
        tuple(f"{number(a)} to {number(b)}".replace("-", "−") for a, b in zip(*ends, strict=True))
        for ends in zip(low.tolist(), high.tolist(), strict=True)
    )


def component_bars(
    components: Iterable[Component], *, title: str, unit: str, reading: str = "", accented: int = 3
) -> Bars:
    """Bars of components in the order given; the first `accented` of them stand out."""
    shown = tuple(components)
    intervals = tuple(c.ci for c in shown if c.ci is not None)
    return Bars(
        title=title,
        labels=tuple(c.label for c in shown),
        values=tuple(c.effect for c in shown),
        unit=unit,
        intervals=intervals if shown and len(intervals) == len(shown) else None,
        accented=tuple(range(min(accented, len(shown)))),
        reading=reading,
    )


def describe(shown: Drawable) -> str:
    """What a reader who cannot see the figure needs: its extent, its strongest cells with their numbers."""
    if isinstance(shown, Network):
        heavy = sorted(shown.links, key=lambda link: -abs(link.weight) if link.weight == link.weight else 0.0)
        named = "; ".join(_named(shown, link) for link in heavy[:5])
        size = f"Network of {len(shown.labels)} nodes and {len(shown.links)} edges"
        return f"{size}, by {shown.unit}. Strongest: {named}." if named else f"{size}."
    if isinstance(shown, Heatmap):
        cells = "; ".join(
            f"{shown.column_labels[j]} {shown.row_axis} {shown.row_labels[i]}: {number(shown.values[i][j])}"
            for i, j in shown.marks
        )
        size = f"{len(shown.row_labels)} {shown.row_axis}s by {len(shown.column_labels)} {shown.column_axis}s"
        strongest_cells = f" Strongest: {cells}." if cells else " Every value is 0 or missing."
        return f"Heatmap of {shown.unit}, {size}.{strongest_cells}"
    finite = [i for i, value in enumerate(shown.values) if math.isfinite(value)]
    order = sorted(finite, key=lambda i: -abs(shown.values[i]))[:5]
    cells = "; ".join(f"{shown.labels[i]}: {number(shown.values[i])}" for i in order)
    return (
        f"Bars of {shown.unit}, {len(shown.labels)} in all. Largest: {cells}."
        if cells
        else "Bars without values."
    )


def _named(shown: Network, link: Link) -> str:
    into = f" ({link.label})" if link.label else ""
    return f"{_node(shown, link.start)} to {_node(shown, link.end)}{into} {number(link.weight)}"


def _node(shown: Network, place: int) -> str:
    """A node by its row and label: `L0 H2`; where both are one word, that word."""
    row, label = shown.rows[place], shown.labels[place]
    return label if row == label else f"{row} {label}"
