"""Who draws what results have to show: modules by name, imported when something is drawn.

`result.plot()` and a notebook's view work without an import by the caller, and reading a result loads neither
matplotlib nor jinja2. A renderer takes values of `mlxterp.results.views` and knows no kind of result.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlxterp.results.views import Section, Show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RENDERERS = {"figure": "mlxterp.plots", "fragment": "mlxterp.reports.page"}
"""The module of each renderer, by the name of its function there."""


def figure(shows: Sequence[Show], *, title: str) -> Figure:
    """Every heatmap, bar chart and network among `shows`, one below the other."""
    drawn: Figure = _renderer("figure")(shows, title=title)
    return drawn


def fragment(section: Section) -> str:
    """A piece of HTML for a notebook, without a script."""
    html: str = _renderer("fragment")(section)
    return html


def _renderer(name: str) -> Any:
    return getattr(importlib.import_module(RENDERERS[name]), name)
