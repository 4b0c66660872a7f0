"""The one place where results name those who draw them, so that `result.plot()` and a notebook's view work.

Lives here: two imports, made when they are needed, so that reading a result loads no matplotlib. Both take
shows, values of `mlxterp.results.shows`; nothing they import knows a kind of result
(`tests/test_layers.py` holds that). Does not live here: drawing (`mlxterp.plots`), pages (`mlxterp.reports`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlxterp.results.shows import Section, Show

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(shows: Sequence[Show], *, title: str) -> Figure:
    """Every heatmap, bar chart and network among `shows`, one below the other."""
    from mlxterp import plots

    return plots.figure(shows, title=title)


def html(section: Section) -> str:
    """A piece of HTML for a notebook, without a script."""
    from mlxterp.reports import page

    return page.fragment(section)
