"""Interactive pages: pointing at a cell of a heatmap shows its place and value.

Lives here: attention patterns, patching maps and other matrices as SVG, with one small script of ours that
reads cells out for the mouse and the keyboard. Without the script a cell's title does the same. Does not
live here: which matrices a result has (`AnalysisResult.panels`), figures for print (`mlxterp.plots`), the
script (`templates/interactive.js`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from mlxterp import plots
from mlxterp.plots.axes import shown, strengths
from mlxterp.reports import page as pages
from mlxterp.results.base import AnalysisResult
from mlxterp.results.views import Heatmap, Section, describe
from mlxterp.text import typeset, visible

_TITLED = 20_000  # cells of a page that have a title of their own; of further ones only the script knows
_SIDE, _LETTER, _LONGEST = 14.0, 4.2, 18
_LEVELS = 12
_LARGE = 420.0  # a wider map has a row of the page to itself


@dataclass(frozen=True)
class InteractiveView:
    """One page of HTML. In a notebook it shows itself, in a frame of its own.

    Attributes:
        html: the page. path: where it was written, if it was.
    """

    html: str
    path: Path | None = None

    def _repr_html_(self) -> str:
        style = "width: 100%; height: 44rem; border: 0"
        frame = Markup('<iframe sandbox="allow-scripts" style="{}" srcdoc="{}"></iframe>')
        return str(frame.format(style, self.html))


def interactive(
    result: AnalysisResult, path: str | Path | None = None, *, title: str | None = None
) -> InteractiveView:
    """A page in which pointing at a cell shows its token, layer, head and value, with its interval if any.

    Of attention patterns (`causal.attention_patterns`) every head is there, and the tokens are coloured by
    how much the one pointed at attends to them; of a patching sweep over positions they are coloured by their
    effect. Tab goes from figure to figure, arrow keys from cell to cell, Enter enlarges a figure.

    Args:
        path: an `.html` file to write, in one step. Without it, use what is returned in a notebook.
        title: of the page; the result's own by default.

    Costs about 10 µs and 100 bytes for each cell. The page asks for nothing else: it holds its data and one
    script, which its content security policy lets run by its hash.
    """
    panels = result.panels()
    section = result.section()
    html = pages.Page("html").render(
        "interactive",
        title=title or section.title,
        section=section,
        rest=_without_maps(section),
        panels=list(_laid_out(panels)),
        reading=panels[0].reading if len({panel.reading for panel in panels}) == 1 else "",
        data=pages.data_block(_data(panels)),
        script=pages.script("interactive"),
    )
    if path is None:
        return InteractiveView(html)
    path = Path(path)
    pages.require_html(path)
    pages.write(path, html, {})
    return InteractiveView(html, path)


def _without_maps(section: Section) -> Section:
    """What else there is to see: everything but the heatmaps, which are explored."""
    shows = tuple(show for show in section.shows if not isinstance(show, Heatmap))
    return replace(section, shows=shows, sections=tuple(_without_maps(each) for each in section.sections))


class Cell(NamedTuple):
    """A square with its title."""

    x: str
    y: str
    sign: str
    opacity: str
    title: str


class Label(NamedTuple):
    """A word beside a row or below a column."""

    x: str
    y: str
    text: str


@dataclass(frozen=True)
class Panel:
    """A heatmap as the template sets it: sizes in units of the SVG.

    `cells` are squares with titles; where there are too many, `paths` are (class, opacity, path), each of all
    squares of about one opacity.
    """

    title: str
    reading: str
    alt: str
    scale: str
    widest: str
    width: str
    height: str
    left: str
    body: tuple[str, str]
    large: bool
    turned: bool
    row_labels: tuple[Label, ...]
    column_labels: tuple[Label, ...]
    cells: tuple[Cell, ...]
    paths: tuple[tuple[str, str, str], ...]


def _laid_out(panels: Sequence[Heatmap]) -> Iterator[Panel]:
    left_to_title = _TITLED
    for panel in panels:
        painted = sum(1 for _ in _painted(panel))
        titled = painted <= left_to_title
        left_to_title -= painted if titled else 0
        yield _panel(panel, titled=titled)


def _panel(panel: Heatmap, *, titled: bool) -> Panel:
    n_rows, n_columns = len(panel.row_labels), len(panel.column_labels)
    rows = [shown(label, _LONGEST) for label in panel.row_labels]
    columns = [shown(label, _LONGEST) for label in panel.column_labels]
    longest = max((len(label) for label in columns), default=0)
    turned = longest * _LETTER > _SIDE - 2
    left = 6 + _LETTER * max((len(label) for label in rows), default=0)
    width, height = left + _SIDE * n_columns + 6, _SIDE * n_rows
    below = 11 + (_LETTER * longest * 0.87 if turned else 2)
    ends = f"{typeset(panel.low, 2)} to {typeset(panel.high, 2)}"
    return Panel(
        title=panel.title,
        reading=panel.reading,
        alt=describe(panel),
        scale=f"{panel.unit}, {ends}; rows: {panel.row_axis}, columns: {panel.column_axis}",
        widest=f"{min(62, 0.16 * width):.0f}",
        width=f"{width:.0f}",
        height=f"{height + below:.0f}",
        left=f"{left:g}",
        body=(f"{_SIDE * n_columns:g}", f"{height:g}"),
        large=width > _LARGE,
        turned=turned,
        row_labels=tuple(
            Label(f"{left - 3:g}", f"{_SIDE * (i + 0.68):.4g}", text) for i, text in enumerate(rows)
        ),
        column_labels=tuple(
            Label(f"{left + _SIDE * (j + 0.6):.5g}", f"{height + 8:g}", text)
            for j, text in enumerate(columns)
        ),
        cells=tuple(_cells(panel, left)) if titled else (),
        paths=() if titled else tuple(_paths(panel, left)),
    )


def _painted(panel: Heatmap) -> Iterator[tuple[int, int, float]]:
    """Row, column and strength between -1 and 1 of the cells that have a colour."""
    found = strengths(np.array(panel.values, dtype=np.float64), panel)
    for i, j in np.argwhere(np.isnan(found) | (np.abs(found) >= 0.5e-3)):
        yield int(i), int(j), float(np.clip(found[i, j], -1.0, 1.0))


def _cells(panel: Heatmap, left: float) -> Iterator[Cell]:
    for i, j, strength in _painted(panel):
        yield Cell(
            f"{left + _SIDE * j:g}",
            f"{_SIDE * i:g}",
            _sign(strength),
            f"{0.3 if math.isnan(strength) else abs(strength):.3g}",
            plots.cell_title(panel, i, j),
        )


def _paths(panel: Heatmap, left: float) -> Iterator[tuple[str, str, str]]:
    squares: dict[tuple[str, str], list[str]] = {}
    for i, j, strength in _painted(panel):
        level = 0.3 if math.isnan(strength) else math.ceil(abs(strength) * _LEVELS) / _LEVELS
        where = f"M{left + _SIDE * j:g} {_SIDE * i:g}h{_SIDE:g}v{_SIDE:g}h-{_SIDE:g}z"
        squares.setdefault((_sign(strength), f"{level:.2g}"), []).append(where)
    for (sign, opacity), parts in squares.items():
        yield sign, opacity, "".join(parts)


def _sign(strength: float) -> str:
    return "missing" if math.isnan(strength) else "positive" if strength > 0 else "negative"


def _tokens_along(panel: Heatmap) -> str | None:
    """Which labels are tokens of a text: they are coloured by what they have to do with the cell."""
    if panel.column_axis == "source":
        return "columns"
    return "rows" if panel.row_axis == "position" else None


def _data(panels: Sequence[Heatmap]) -> dict[str, Any]:
    """What the script shows: the same text as in the titles. Lists of labels are held once."""
    lists: dict[tuple[str, ...], int] = {}

    def held(labels: Sequence[str]) -> int:
        return lists.setdefault(tuple(visible(label) for label in labels), len(lists))

    plain = [
        {
            "within": visible(panel.within),
            "rowAxis": visible(panel.row_axis),
            "rows": held(panel.row_labels),
            "columnAxis": visible(panel.column_axis),
            "columns": held(panel.column_labels),
            "values": [" ".join(typeset(value) for value in row) for row in panel.values],
            "details": None if panel.details is None else [list(map(visible, row)) for row in panel.details],
            "limit": max(abs(panel.low), abs(panel.high)) or 1.0,
            "tokens": _tokens_along(panel),
        }
        for panel in panels
    ]
    return {"labels": [list(labels) for labels in lists], "panels": plain, "side": _SIDE}
