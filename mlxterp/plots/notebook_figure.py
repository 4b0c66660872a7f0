"""A matplotlib figure that a notebook shows as a picture when it is a cell's last line.

matplotlib draws in a notebook only after `%matplotlib inline` or an import of pyplot. A result's figure has
no pyplot state, so it carries its own picture.
"""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A `Figure` that notebooks know how to show."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", facecolor="white")
        return out.getvalue()
