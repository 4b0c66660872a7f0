"""Reports: results, a whole investigation, or the features of an SAE as one page.

An HTML report is one file that asks for nothing else: figures are inline SVG, there is no script, and a
content security policy forbids the rest. A Markdown report has its figures beside it in `<name>_files/`.
`interactive` pages and dashboards hold one script of ours, which the policy lets run by its hash. Text from
models, logs and agents is escaped everywhere.

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
from mlxterp.reports.feature_links import FeatureLinks, address
from mlxterp.reports.investigation import write_investigation_report
from mlxterp.reports.notebook import notebook
from mlxterp.reports.views import InteractiveView, interactive
from mlxterp.results.base import AnalysisResult
from mlxterp.results.values import json_safe

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
    """One result or several as a page; the steps of a workflow are sections of their own.

    Args:
        results: results, or the dictionaries that their `to_dict` gives.
        title: the heading; a single result has its own.
        description: CommonMark under the heading: emphasis, lists, code, links to the web. HTML and images in
            it are shown as the characters they are.
        format: "markdown" or "html".
        include_plots: in HTML, figures. A Markdown text alone cannot hold figures, so it describes them;
            `save_report` writes them beside it.
        include_json: append every result in full, as one JSON array.

    Raises:
        ResultError: no results, something that is no result, an unknown format.
    """
    page = pages.Page(format, include_plots=include_plots)
    every = _listed(results)
    return _render(page, every, title=title, description=description, include_json=include_json)


def save_report(
    results: Results,
    path: str | Path,
    *,
    title: str | None = None,
    description: str = "",
    include_plots: bool = True,
    include_json: bool = False,
    dashboard: str | Path | None = None,
) -> Path:
    """Writes `generate_report` to a file; `.md`, `.html` or `.ipynb` says the format. Returns the path.

    The file appears in one step. Its directory is made; Markdown's figures go to `<name>_files/` beside it, a
    notebook holds its own. `dashboard` is where `save_dashboard` writes the page of the features: in HTML,
    features then lead to it. For a PDF, print the HTML from a browser. Costs 0.1 to 0.2 s per figure.

    Raises:
        ResultError: also a suffix that names no format, or a notebook without the extra `notebook`.
    """
    path = Path(path)
    format = pages.format_of(path)
    every = _listed(results)
    if format == "notebook":
        text = notebook(
            [each.section() for each in every],
            title=_titled(every, title),
            description=description,
            include_plots=include_plots,
            appendix=_appendix(every) if include_json else None,
        )
        pages.write(path, text, {})
        return path
    figures_in = f"{path.stem}_files/" if format == "markdown" else None
    links = None if dashboard is None else FeatureLinks(address(dashboard, seen_from=path))
    page = pages.Page(format, figures_in=figures_in, include_plots=include_plots, features=links)
    text = _render(page, every, title=title, description=description, include_json=include_json)
    pages.write(path, text, page.files)
    return path


def fragment(result: AnalysisResult) -> str:
    """One result as a piece of HTML, for a notebook; it holds no script."""
    return pages.fragment(result.section())


def _render(
    page: pages.Page,
    every: Sequence[AnalysisResult],
    *,
    title: str | None,
    description: str,
    include_json: bool,
) -> str:
    return page.render(
        "report",
        title=_titled(every, title),
        description=description,
        sections=[each.section() for each in every],
        appendix=_appendix(every) if include_json else None,
    )


def _appendix(every: Sequence[AnalysisResult]) -> str:
    plain = [json_safe(each.to_dict()) for each in every]
    return json.dumps(plain, ensure_ascii=True, allow_nan=False, indent=1)


def _titled(every: Sequence[AnalysisResult], title: str | None) -> str:
    """The given title, or the only result's own."""
    return title or (every[0].title if len(every) == 1 else "Analysis report")


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


__all__ = [
    "InteractiveView",
    "Results",
    "fragment",
    "generate_report",
    "interactive",
    "save_report",
    "write_investigation_report",
]
