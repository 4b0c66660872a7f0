"""A report as a Jupyter notebook: Markdown cells that hold their figures, and the results ready to be loaded.

Lives here: which cells there are. Does not live here: the Markdown itself (`templates/`), the file format
(nbformat, the extra `notebook`).
"""

from __future__ import annotations

import base64
import importlib
from collections.abc import Sequence
from typing import Any

from mlxterp.errors import ResultError
from mlxterp.reports.page import Page
from mlxterp.results.views import Section

_LOAD = """import json

from mlxterp.results import AnalysisResult

results = [AnalysisResult.from_dict(each) for each in json.loads({text!r})]
results"""


def notebook(
    sections: Sequence[Section],
    *,
    title: str,
    description: str,
    include_plots: bool = True,
    appendix: str | None = None,
) -> str:
    """The text of an `.ipynb` file: a cell for the heading and one for each section, figures as attachments.

    Args:
        appendix: the results as a JSON array; a code cell that loads them is added.

    Raises:
        ResultError: nbformat is not installed.
    """
    v4 = _nbformat().v4
    page = Page("markdown", figures_in="attachment:", include_plots=include_plots)
    texts = [page.render("notebook", title=title, description=description)]
    cells = [v4.new_markdown_cell(texts[0], id="heading")]
    for i, section in enumerate(sections):
        before = len(page.files)
        text = page.render("section", section=section, level=2)
        drawn = list(page.files.items())[before:]
        attached = {name: {"image/png": base64.b64encode(png).decode("ascii")} for name, png in drawn}
        cells.append(v4.new_markdown_cell(text, id=f"section-{i + 1}"))
        if attached:
            cells[-1]["attachments"] = attached
    if appendix is not None:
        cells.append(v4.new_code_cell(_LOAD.format(text=appendix), id="results"))
    made = v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    return str(_nbformat().writes(made))


def _nbformat() -> Any:
    try:
        return importlib.import_module("nbformat")
    except ModuleNotFoundError as problem:
        raise ResultError(
            "a notebook was asked for, and nbformat is not installed. Install it: "
            "python -m pip install 'mlxterp[notebook]'; or write .md or .html."
        ) from problem
