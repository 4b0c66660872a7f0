"""What a result has to show, as plain values: tables, heatmaps, bars and notes.

Lives here: the values that `mlxterp.plots` draws and `mlxterp.reports` sets in a page; `Component`, the
readable name of one part of a model with its effect; the three builders that kinds of results share
(`heatmap`, `bars`, `effects_table`). Does not live here: how they are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxterp.text import number as number
from mlxterp.text import percent as percent
from mlxterp.text import typeset

Interval: TypeAlias = tuple[float, float]
Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]
Cell: TypeAlias = str | int | float | bool | None

_TIE = 1e-3
"""Relative: values that are nearer to each other read alike, and are ranked alike."""
_MOST_MARKS = 12


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
    ci: Interval | None = None


@dataclass(frozen=True)
class Table:
    """Rows under named columns. Numbers stay numbers; they are rounded where the table is set."""

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
    its value ("0.33 to 0.48"): both are in the title of a cell.
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
    intervals: tuple[Interval, ...] | None = None
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
        intervals: low and high ends, of the shape of `values`; they are in the title of each cell.
    """
    limit = colour_limit(values)
    outlined, tied = _outlined(values, marks, limit)
    if tied:
        reading = f"{reading} Not outlined: {tied} cells that are as strong as each other.".strip()
    return Heatmap(
        title=title,
        values=tuple(map(tuple, values.tolist())),
        row_axis=rows[0],
        row_labels=tuple(rows[1]),
        column_axis=columns[0],
        column_labels=tuple(columns[1]),
        unit=unit,
        low=-limit if diverging else 0.0,
        high=limit,
        diverging=diverging,
        marks=outlined,
        reading=reading,
        within=within,
        details=None if intervals is None else _interval_texts(*intervals),
    )


def _outlined(values: Floats, marks: int, limit: float) -> tuple[tuple[tuple[int, int], ...], int]:
    """The strongest cells and those that tie with them; and how many tie where they are too many to
    outline."""
    strong = [where for where in strongest(values, values.size) if abs(values[where]) >= limit / 4]
    if marks < 1 or len(strong) <= marks:
        return tuple((i, j) for i, j in strong[: max(marks, 0)]), 0
    least = abs(values[strong[marks - 1]]) * (1 - _TIE)
    tied = [where for where in strong if abs(values[where]) >= least]
    if len(tied) <= _MOST_MARKS:
        return tuple((i, j) for i, j in tied), 0
    above = [where for where in tied if abs(values[where]) > abs(values[tied[-1]]) * (1 + _TIE)]
    return tuple((i, j) for i, j in above[:marks]), len(tied) - len(above)


def _interval_texts(low: Floats, high: Floats) -> tuple[tuple[str, ...], ...]:
    return tuple(
        tuple(f"{typeset(a)} to {typeset(b)}" for a, b in zip(*ends, strict=True))
        for ends in zip(low.tolist(), high.tolist(), strict=True)
    )


def bars(
    components: Iterable[Component],
    *,
    title: str,
    unit: str,
    reading: str = "",
    accented: int | Sequence[int] = 3,
    grey: str = "",
    zeros: bool = True,
    references: tuple[tuple[float, str], ...] = (),
) -> Bars:
    """Bars of components in the order given; the reading says what grey bars are.

    Args:
        accented: the positions of those that stand out, or how many of the first; what ties with the last of
            these stands out too.
        grey: what the others are, "random sets" say.
        zeros: False leaves out of a ranking what is 0 beside its largest, and the reading says how many.
    """
    shown = tuple(components)
    largest = max((abs(c.effect) for c in shown if math.isfinite(c.effect)), default=0.0)
    if not zeros and largest > 0:
        kept = tuple(c for c in shown if not abs(c.effect) < _TIE * largest)
        if len(kept) < len(shown):
            reading = f"{reading} Not drawn: {len(shown) - len(kept)} that are 0 beside these.".strip()
        shown = kept
    intervals = tuple(c.ci for c in shown if c.ci is not None)
    first = _first(shown, accented) if isinstance(accented, int) else accented
    if 0 < len(first) < len(shown):
        reading = f"{reading} Grey: {grey or 'the weaker ones'}.".strip()
    return Bars(
        title=title,
        labels=tuple(c.label for c in shown),
        values=tuple(c.effect for c in shown),
        unit=unit,
        intervals=intervals if shown and len(intervals) == len(shown) else None,
        accented=tuple(first),
        references=references,
        reading=reading,
    )


def _first(shown: Sequence[Component], count: int) -> range:
    """The positions of the first few, and of those that tie with the last of them."""
    if count < 1 or not shown:
        return range(0)
    end = min(count, len(shown))
    last = abs(shown[end - 1].effect)
    while end < len(shown) and abs(abs(shown[end].effect) - last) <= _TIE * last:
        end += 1
    return range(end)


def effects_table(
    components: Iterable[Component],
    *,
    title: str,
    columns: tuple[str, str],
    caption: str = "",
    more: Mapping[str, Sequence[Cell]] | None = None,
) -> Table:
    """A table of components in the order given: label, effect, the interval's ends if there are any.

    Args:
        columns: the names of the first two columns. more: further columns by name, a cell for each component.
    """
    shown = tuple(components)
    ends = any(c.ci for c in shown)
    further = dict(more or {})
    return Table(
        title=title,
        columns=(*columns, *(("from", "to") if ends else ()), *further),
        rows=tuple(
            (c.label, c.effect, *((c.ci or (None, None)) if ends else ()), *(v[i] for v in further.values()))
            for i, c in enumerate(shown)
        ),
        caption=caption,
    )


def numbered(prefix: str, count: int) -> tuple[str, ...]:
    """`L0`, `L1`, `L2` …"""
    return tuple(f"{prefix}{i}" for i in range(count))


def listed(components: Iterable[Component]) -> str:
    """`L0.H2 0.98, L1.H1 0.41`."""
    return ", ".join(f"{c.label} {number(c.effect)}" for c in components)


def cautions(texts: Iterable[str]) -> tuple[Note, ...]:
    """Notes of these texts that limit what may be concluded."""
    return tuple(Note(text, "caution") for text in texts)


def intervals(low: Floats | None, high: Floats | None, count: int) -> list[Interval | None]:
    """The interval of each of `count` effects, in the order of the flattened arrays; None without."""
    if low is None or high is None:
        return [None] * count
    return list(zip(low.ravel().tolist(), high.ravel().tolist(), strict=True))


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
            for i, j in shown.marks[:_MOST_MARKS]
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
