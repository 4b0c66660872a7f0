"""Figures of what a result shows: `figure` for a notebook, `svg` for a page, `png` for a file.

Drawn with matplotlib's Figure object, without pyplot and its global state. Positive is blue, negative is
orange, and 0 is the background: colours are mixed with the background, so one SVG reads well on
light and dark pages. Text in a figure is text, never mathematics or markup: `$x$` or `<b>` is shown as
these characters.

See `mlxterp.results` for what is drawn, `mlxterp.reports` for pages.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlxterp.plots import bars, heatmap, network
from mlxterp.plots.axes import FONT, INK, WIDTH, Area, shown
from mlxterp.plots.inline import cell_title, inlined
from mlxterp.results.views import Bars, Drawable, Heatmap, Network, Show, describe, drawables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

alt_text = describe

_TITLE_WIDE = WIDTH
"""A figure with its title is as wide as a column: its title is not cut."""
# By the class of what is drawn, the module that has `drawn_part`, `width`, `height` and `draw` for it.
_DRAWERS: dict[type, Any] = {Heatmap: heatmap, Bars: bars, Network: network}
_RC: dict[Any, Any] = {
    "text.usetex": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mlxterp",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": FONT,
    "axes.unicode_minus": True,
    "path.simplify": False,
    "hatch.linewidth": 0.5,
}


def figure(shows: Sequence[Show], title: str = "") -> Figure:
    """Every heatmap, bar chart and network of `shows`, one below the other, dark on white."""
    return _compose(drawables(shows), title, titled=True)


def draw(show: Drawable, *, titled: bool = True) -> Figure:
    """One heatmap, bar chart or network."""
    return _compose([show], "", titled=titled)


def png(show: Drawable, *, dpi: int = 160) -> bytes:
    """A figure with its title, on white: the bytes of a PNG file."""
    return _save(draw(show), "png", dpi=dpi, facecolor="white")


def svg(show: Drawable) -> str:
    """A figure without its title, to embed in an HTML page; it takes the page's text colour.

    It holds its alternative text and a title for every cell (which a browser shows on hover), and no script.
    """
    raw = _save(draw(show, titled=False), "svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inlined(raw, _DRAWERS[type(show)].drawn_part(show))


def _save(drawn: Figure, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    with _style():
        drawn.savefig(out, format=kind, **options)
    return out.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        # A token in a script the font lacks: the SVG's reader has other fonts, the PNG shows a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _compose(shows: Sequence[Drawable], title: str, *, titled: bool) -> Figure:
    from mlxterp.plots.notebook_figure import NotebookFigure

    drawers = [_DRAWERS[type(show)] for show in shows]
    parts = [drawer.drawn_part(show) for drawer, show in zip(drawers, shows, strict=True)]
    heights = [drawer.height(part) for drawer, part in zip(drawers, parts, strict=True)]
    wide = max((drawer.width(part) for drawer, part in zip(drawers, parts, strict=True)), default=WIDTH)
    wide = max(wide, _TITLE_WIDE) if titled else wide
    above = 0.32 if titled else 0.0
    top = 0.4 if title and len(parts) != 1 else 0.0
    total = max(sum(heights) + above * len(heights) + top, 0.6)
    with _style():
        drawn = NotebookFigure(figsize=(wide, total), dpi=120)
        if top:
            text = title if parts else f"{title}: nothing to draw"
            _heading(drawn, (0.1 / wide, 1 - 0.28 / total), text, size=FONT + 2)
        bottom = total - top
        for drawer, part, height in zip(drawers, parts, heights, strict=True):
            bottom -= height + above
            if titled:
                _heading(drawn, (0.1 / wide, (bottom + height + 0.1) / total), part.title, size=FONT + 1)
            drawer.draw(drawn, part, Area(bottom, height, total, wide))
    return drawn


def _heading(drawn: Figure, at: tuple[float, float], text: str, *, size: float) -> None:
    heading: dict[str, Any] = {"color": INK, "fontsize": size, "fontweight": "bold", "parse_math": False}
    drawn.text(*at, shown(text, 90), va="center", **heading)


__all__ = ["Drawable", "alt_text", "cell_title", "draw", "drawables", "figure", "png", "svg"]
