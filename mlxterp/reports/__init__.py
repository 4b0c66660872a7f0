"""Reports: results or a whole investigation as one page of Markdown or HTML.

An HTML report is one file that asks for nothing else: figures are inline SVG, there is no script, and a
content security policy forbids the rest. A Markdown report has its figures beside it in `<name>_files/`.
Text from models, logs and agents is escaped everywhere.

Lives here: pages. Does not live here: figures (`mlxterp.plots`), numbers and their meaning
(`mlxterp.results`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mlxterp.errors import ResultError
from mlxterp.reports import page as pages
from mlxterp.reports.investigation import write_investigation_report
from mlxterp.results import AnalysisResult, json_safe

Results: TypeAlias = AnalysisResult | Mapping[str, Any] | Sequence[AnalysisResult | Mapping[str, Any]]


def generate_report(
    results: Results,
    *,
    title: str | None = None,
    description: str = "",
    format: Literal["markdown", "html"] = "markdown",
    include_plots: bool = True,
    include_json: bool = False,
) -> str:
    """One result or several as a page.

    Args:
        results: results, or the dictionaries that their `to_dict` gives. title: the heading; a single
        result has its own. description: plain text under the heading; a blank line begins a paragraph.
        format: "markdown" or "html". include_plots: in HTML, figures. A Markdown text alone cannot hold
        figures, so it describes them in words;
            `save_report` writes them beside it.
        include_json: append every result in full, as one JSON array.
    """
    page = pages.Page(format, include_plots=include_plots)
    return _render(page, results, title=title, description=description, include_json=include_json)


def save_report(
    results: Results,
    path: str | Path,
    *,
    title: str | None = None,
    description: str = "",
    include_plots: bool = True,
    include_json: bool = False,
) -> Path:
    """Writes `generate_report` to a file; `.md` or `.html` says the format. Returns the path.

    The file appears in one step. Its directory is made; Markdown's figures go to `<name>_files/` beside it.
    """
    path = Path(path)
    format = pages.format_of(path)
    figures_in = f"{path.stem}_files" if format == "markdown" else None
    page = pages.Page(format, figures_in=figures_in, include_plots=include_plots)
    text = _render(page, results, title=title, description=description, include_json=include_json)
    pages.write(path, text, page.files)
    return path


def fragment(result: AnalysisResult) -> str:
    """One result as a piece of HTML, for a notebook."""
    return pages.Page("html").render("fragment", result=result)


def _render(
    page: pages.Page, results: Results, *, title: str | None, description: str, include_json: bool
) -> str:
    every = _listed(results)
    appendix = None
    if include_json:
        plain = [json_safe(each.to_dict()) for each in every]
        appendix = json.dumps(plain, ensure_ascii=True, allow_nan=False, indent=1)
    return page.render(
        "report",
        title=pages.titled(every, title),
        description=[part for part in description.split("\n\n") if part.strip()],
        results=every,
        appendix=appendix,
    )


def _listed(results: Results) -> list[AnalysisResult]:
    given = [results] if isinstance(results, (AnalysisResult, Mapping)) else list(results)
    if not given:
        raise ResultError("a report of no results. Give at least one result.")
    return [_result(each) for each in given]


def _result(given: object) -> AnalysisResult:
    if isinstance(given, AnalysisResult):
        return given
    if isinstance(given, Mapping):
        return AnalysisResult.from_dict(given)
    raise ResultError(
        f"a report of a {type(given).__name__}. Give results, or what their `to_dict()` returns."
    )


__all__ = ["Results", "fragment", "generate_report", "save_report", "write_investigation_report"]
