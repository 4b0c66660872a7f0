"""Figures of what a result shows: `figure` for a notebook, `svg` for a page, `png` for a file.

Drawn with matplotlib's Figure object, without pyplot and its global state. Positive is blue, negative is
orange, and 0 is the background: colours are mixed with what lies behind them, so one SVG reads well on
light and dark pages. Text in a figure is text, never mathematics or markup: `$x$` or `<b>` is shown as
these characters.

Lives here: drawing. Does not live here: what there is to draw (`mlxterp.results`), pages (`mlxterp.reports`).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlxterp.plots.axes import FONT, INK, WIDTH, Area, shown
from mlxterp.plots.bars import bars_height, draw_bars, largest_bars
from mlxterp.plots.heatmap import draw_heatmap, heatmap_height
from mlxterp.plots.inline import cell_title, inlined
from mlxterp.plots.network import draw_network, network_height, strongest_links
from mlxterp.results.shows import Bars, Drawable, Heatmap, Network, Show, describe, drawables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

alt_text = describe

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
    """Every heatmap and bar chart of `shows`, one below the other, dark on white."""
    return _compose([_drawn_part(show) for show in drawables(shows)], title, titled=True)


def draw(show: Drawable, *, titled: bool = True) -> Figure:
    """One heatmap or bar chart."""
    return _compose([_drawn_part(show)], "", titled=titled)


def png(show: Drawable, *, dpi: int = 160) -> bytes:
    """A heatmap or bar chart with its title, on white: the bytes of a PNG file."""
    return _saved(draw(show), "png", dpi=dpi, facecolor="white")


def svg(show: Drawable) -> str:
    """A heatmap or bar chart without its title, to stand inside an HTML page and take its text colour.

    It holds its alternative text, a title for every cell (which a browser shows on hover), and nothing
    that runs.
    """
    raw = _saved(draw(show, titled=False), "svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inlined(raw, _drawn_part(show))


def _saved(drawn: Figure, kind: str, **options: Any) -> bytes:
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
    from matplotlib.figure import Figure

    heights = [_height(show) + (0.32 if titled else 0.0) for show in shows]
    top = 0.4 if title and len(shows) != 1 else 0.0
    total = max(sum(heights) + top, 0.6)
    with _style():
        drawn = Figure(figsize=(WIDTH, total), dpi=120)
        if top:
            words = title if shows else f"{title}: nothing to draw"
            _heading(drawn, 1 - 0.28 / total, words, size=FONT + 2)
        bottom = total - top
        for show, height in zip(shows, heights, strict=True):
            bottom -= height
            if titled:
                _heading(drawn, (bottom + height - 0.22) / total, show.title, size=FONT + 1)
            area = Area(bottom, _height(show), total)
            if isinstance(show, Network):
                draw_network(drawn, show, area)
            else:
                draw_heatmap(drawn, show, area) if isinstance(show, Heatmap) else draw_bars(drawn, show, area)
    return drawn


def _drawn_part(show: Drawable) -> Drawable:
    """The show itself, or of a very long ranking or a large network its strongest part."""
    if isinstance(show, Network):
        return strongest_links(show)
    return largest_bars(show) if isinstance(show, Bars) else show


def _height(show: Drawable) -> float:
    if isinstance(show, Network):
        return network_height(show)
    return heatmap_height(show) if isinstance(show, Heatmap) else bars_height(show)


def _heading(drawn: Figure, y: float, text: str, *, size: float) -> None:
    words = shown(text, 90)
    drawn.text(
        0.1 / WIDTH, y, words, color=INK, fontsize=size, fontweight="bold", va="center", parse_math=False
    )


__all__ = ["Drawable", "alt_text", "cell_title", "draw", "drawables", "figure", "png", "svg"]
