"""A network drawn in rows from the input at the bottom to the logits on top."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from mlxterp.plots.axes import FONT, INK, NEGATIVE, POSITIVE, SOFT, WIDTH, Area, axes_at, shown
from mlxterp.results.views import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_LINKS = 150
_ROW = 0.52  # inches from row to row
_BOX = (0.52, 0.24)  # of a node, at most
_LEFT, _RIGHT, _LABELLED = 0.7, 0.15, 40


def drawn_part(show: Network) -> Network:
    """The show, or the 150 strongest links of a larger one with their nodes, which its title states."""
    if len(show.links) <= _MOST_LINKS:
        return show
    kept = sorted(show.links, key=lambda link: -abs(link.weight))[:_MOST_LINKS]
    used = sorted({end for link in kept for end in (link.start, link.end)})
    place = {node: i for i, node in enumerate(used)}
    return replace(
        show,
        title=f"{show.title} (the strongest {_MOST_LINKS} of {len(show.links)} edges)",
        labels=tuple(show.labels[i] for i in used),
        rows=tuple(show.rows[i] for i in used),
        links=tuple(replace(link, start=place[link.start], end=place[link.end]) for link in kept),
    )


def width(show: Network) -> float:
    """Inches: as few as its widest row needs, so that it fits a telephone where it can."""
    most = max(Counter(show.rows).values(), default=1)
    return min(WIDTH, _LEFT + _RIGHT + max(2.8, 0.62 * most))


def height(show: Network) -> float:
    """Inches."""
    return 0.3 + _ROW * max(1, len(set(show.rows)))


def draw(drawn: Figure, show: Network, area: Area) -> None:
    """Nodes as boxes, links as lines whose opacity is their share of the strongest weight."""
    from matplotlib.patches import FancyBboxPatch, PathPatch
    from matplotlib.path import Path

    bottom, height, total, wide = area
    width = wide - _LEFT - _RIGHT
    axes = axes_at(drawn, (_LEFT / wide, bottom / total, width / wide, height / total))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_xticks([])
    axes.set_yticks([])
    names = list(dict.fromkeys(show.rows))
    at: list[tuple[float, float]] = []
    box = _BOX[0]
    for i, row in enumerate(show.rows):
        among = [j for j, other in enumerate(show.rows) if other == row]
        pitch = width / len(among)
        box = min(box, 0.86 * pitch)
        at.append(((among.index(i) + 0.5) * pitch, 0.15 + (names.index(row) + 0.5) * _ROW))
    largest = max((abs(link.weight) for link in show.links if link.weight == link.weight), default=0.0)
    between: dict[tuple[int, int], int] = {}
    for link in show.links:
        (x0, y0), (x1, y1) = at[link.start], at[link.end]
        share = min(1.0, abs(link.weight) / largest) if largest and link.weight == link.weight else 0.0
        nth = between[link.start, link.end] = between.get((link.start, link.end), -1) + 1
        span = names.index(show.rows[link.end]) - names.index(show.rows[link.start])
        curve = _Curve((x0, y0 + _BOX[1] / 2), (x1, y1 - _BOX[1] / 2), _bow(span, nth))
        patch = PathPatch(
            Path(curve.points(), [Path.MOVETO, Path.CURVE3, Path.CURVE3]),
            fill=False,
            edgecolor=NEGATIVE if link.weight < 0 else POSITIVE,
            alpha=0.25 + 0.75 * share,
            linewidth=0.6 + 0.9 * share,
        )
        axes.add_patch(patch)
        if link.label and len(show.links) <= _LABELLED:
            x, y = curve.at(0.75)
            axes.text(x + 0.03, y, shown(link.label, 8), fontsize=FONT - 2, va="center", **SOFT)
    for i, (x, y) in enumerate(at):
        frame = FancyBboxPatch(
            (x - box / 2, y - _BOX[1] / 2),
            box,
            _BOX[1],
            boxstyle="round,pad=0,rounding_size=0.05",
            fill=False,
            edgecolor=INK,
            linewidth=0.7,
        )
        frame.set_gid(f"cell-{i}-0")
        axes.add_patch(frame)
        size = FONT - 1 if box > 0.4 else FONT - 3
        axes.text(
            x,
            y,
            shown(show.labels[i], 8),
            color=INK,
            fontsize=size,
            ha="center",
            va="center",
            parse_math=False,
        )
    for i, name in enumerate(names):
        y = 0.15 + (i + 0.5) * _ROW
        axes.text(-0.12, y, shown(name), fontsize=FONT - 1, ha="right", va="center", **SOFT)


class _Curve(NamedTuple):
    """A link from node to node, bowed to the side so that it passes by the nodes between them."""

    start: tuple[float, float]
    end: tuple[float, float]
    bow: float

    def points(self) -> list[tuple[float, float]]:
        middle = (self.start[0] + self.end[0]) / 2 + self.bow, (self.start[1] + self.end[1]) / 2
        return [self.start, middle, self.end]

    def at(self, t: float) -> tuple[float, float]:
        """The point at share `t` of the way."""
        (x0, y0), (x1, y1), (x2, y2) = self.points()
        a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
        return a * x0 + b * x1 + c * x2, a * y0 + b * y1 + c * y2


def _bow(span: int, nth: int) -> float:
    """How far a link across this many rows bows sideways; further links of the same two nodes alternate."""
    over = 0.0 if span <= 1 else 0.55 + 0.3 * span
    side = 1.0 if nth % 2 == 0 else -1.0
    return side * (over + 0.25 * nth)
