"""matplotlib's SVG prepared for embedding in a page: small, no clashing ids, in the page's text colour.

Only the elements and attributes named here are allowed; any other is a bug of this library and raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np

from mlxterp.plots.axes import INK
from mlxterp.results.views import Drawable, Heatmap, Network, describe
from mlxterp.text import typeset, visible

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_SMALLEST, _LARGEST = 0.95, 1.6
"""Pixels of a page for each point of a figure: its 8-point text is 7.6 to 12.8 pixels high."""
_DROPPED = {"metadata", "style"}
_ELEMENTS = {"svg", "g", "path", "rect", "text", "defs", "pattern", "clipPath", "image"}
_ATTRIBUTES = {
    "d", "style", "x", "y", "width", "height", "transform", "id", "clip-path", "patternUnits", "fill",
    "viewBox", f"{{{_XLINK}}}href",
}  # fmt: skip
_NUMBER = re.compile(r"-?\d+\.\d+")
_CELL = re.compile(r"cell-(\d+)-(\d+)")
_REAL = re.compile(r"-?\d+(?:\.\d+)?")
_PAINTED = re.compile(r"fill: (?P<fill>#[0-9a-f]{6}|none)(?:; fill-opacity: (?P<opacity>[\d.e-]+))?")


def inlined(raw: bytes, show: Drawable) -> str:
    """The SVG as an element of an HTML page, with `show`'s description and a title for every cell or bar."""
    source = ElementTree.fromstring(raw)
    box = source.attrib["viewBox"]
    root = ElementTree.Element("svg", {"xmlns": _SVG, "viewBox": box, "role": "img", "class": "figure"})
    root.set("aria-label", visible(describe(show)))
    root.set("stroke-linejoin", "round")
    points = float(box.split()[2])
    root.set("style", f"max-width: {points * _LARGEST:.0f}px; min-width: {points * _SMALLEST:.0f}px")
    if b"xlink:href" in raw:
        root.set("xmlns:xlink", _XLINK)
    for child in source:
        _copy(child, root, show)
    return ElementTree.tostring(root, encoding="unicode")


def _copy(element: ElementTree.Element, parent: ElementTree.Element, show: Drawable) -> None:
    name = element.tag.removeprefix(f"{{{_SVG}}}")
    if name in _DROPPED:
        return
    _require(name in _ELEMENTS, f"element {name!r}")
    cell = _CELL.fullmatch(element.get("id", ""))
    if element.get("id") in ("cells", "shades"):
        _copy_squares(element, parent, show)
        return
    if name == "g" and cell is None and set(element.attrib) <= {"id"}:
        # groups carry only ids; only their children are copied
        for child in element:
            _copy(child, parent, show)
        return
    copied = ElementTree.SubElement(parent, name)
    if cell is not None:
        copied.set("pointer-events", "all")  # a cell of value 0 paints nothing, and still has its title
        copied.set("shape-rendering", "crispEdges")  # neighbours share an edge without a seam
        ElementTree.SubElement(copied, "title").text = cell_title(show, int(cell[1]), int(cell[2]))
    for key, value in element.attrib.items():
        _require(key in _ATTRIBUTES, f"attribute {key!r}")
        if key == f"{{{_XLINK}}}href":
            _require(value.startswith("data:image/png;base64,"), "a link out of the page")
            copied.set("xlink:href", value)
        elif key == "id":
            if name in ("pattern", "clipPath"):
                copied.set(key, value)
        elif not (key == "transform" and value.startswith("rotate(-0 ")):
            copied.set(key, _tidy_style(value) if key in ("d", "style", "x", "y", "transform") else value)
    if name == "text":
        copied.text = element.text
    for child in element:
        _copy(child, copied, show)


def _tidy_style(value: str) -> str:
    value = _NUMBER.sub(lambda found: f"{float(found.group()):.2f}".rstrip("0").rstrip("."), value)
    value = re.sub(r"font-family: [^;]*;? ?", "", " ".join(value.split()))
    return value.replace(INK, "currentColor")


def _copy_squares(group: ElementTree.Element, parent: ElementTree.Element, show: Drawable) -> None:
    """The cells of a heatmap, or the shades of its colour bar: neighbours share an edge without a seam.

    A cell of value 0 paints nothing, and still has its title.
    """
    copied = ElementTree.SubElement(parent, "g", {"shape-rendering": "crispEdges", "pointer-events": "all"})
    titles = _cell_titles(show) if group.get("id") == "cells" else None
    for square in group:
        _require(square.tag == f"{{{_SVG}}}path" and set(square.attrib) <= {"d", "style"}, "an odd square")
        left, top, _, _, right, bottom = (float(n) for n in _REAL.findall(square.attrib["d"])[:6])
        painted = _PAINTED.fullmatch(square.attrib.get("style", ""))
        if painted is None:
            raise AssertionError(f"a square of the style {square.attrib.get('style')!r}")
        one = ElementTree.SubElement(copied, "path")
        one.set("d", f"M{left:.6g} {top:.6g}H{right:.6g}V{bottom:.6g}H{left:.6g}z")
        one.set("fill", painted["fill"])
        if painted["opacity"]:
            one.set("fill-opacity", f"{float(painted['opacity']):.3g}")
        if titles is not None:
            ElementTree.SubElement(one, "title").text = next(titles)


def _cell_titles(show: Drawable) -> Iterator[str]:
    """The titles of cells that hold a finite number, row by row."""
    if isinstance(show, Heatmap):
        for row, column in np.argwhere(np.isfinite(np.array(show.values, dtype=np.float64))):
            yield cell_title(show, int(row), int(column))


def cell_title(show: Drawable, row: int, column: int) -> str:
    """The title of one cell, bar or node: its position, value and interval."""
    if isinstance(show, Network):
        ends = [link.start for link in show.links], [link.end for link in show.links]
        counts = f"{ends[1].count(row)} edges in, {ends[0].count(row)} out"
        return visible(f"{show.rows[row]} {show.labels[row]}: {counts}")
    if isinstance(show, Heatmap):
        within = f"{show.within}, " if show.within else ""
        place = f"{show.column_axis} {show.column_labels[column]}, {show.row_axis} {show.row_labels[row]}"
        detail = show.details[row][column] if show.details else ""
        value = typeset(show.values[row][column])
        return visible(f"{within}{place}: {value}{f' ({detail})' if detail else ''}")
    value = typeset(show.values[column])
    low, high = show.intervals[column] if show.intervals else (np.nan, np.nan)
    interval = f" ({typeset(low)} to {typeset(high)})" if low == low and high == high else ""
    return visible(f"{show.labels[column]}: {value}{interval}")


def _require(condition: bool, what: str) -> None:  # noqa: FBT001
    if not condition:
        raise AssertionError(f"a figure of mlxterp holds {what}, which mlxterp.plots.inline does not allow")
