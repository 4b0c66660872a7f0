"""Turns templates and values into a page: escaping, figures, atomic writes.

Everything a template prints is escaped by the environment itself, in HTML and in Markdown alike; only
what this package made (`Markup` in HTML, `Verbatim` in Markdown) passes as it is. Hidden characters become
visible marks. It typesets tables, figures and notes (`results.views`), and depends on no kind of result.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mlxterp import plots
from mlxterp._files import locate, write_atomically
from mlxterp.errors import ResultError
from mlxterp.reports import prose
from mlxterp.reports.feature_links import FeatureLinks
from mlxterp.reports.sourced import Name, Reference, Sentence, Sourced
from mlxterp.results import markdown
from mlxterp.results.views import Cell, Section, Table, describe
from mlxterp.text import clip, shortened, slug, typeset, visible

MOST_ROWS = 200
_HTML_SUFFIXES = (".html", ".htm")
_MARKDOWN_SUFFIXES = (".md", ".markdown")
_NOTEBOOK_SUFFIXES = (".ipynb",)


class Verbatim(str):
    """Markdown that is printed as it is, because we made it."""

    __slots__ = ()


@dataclass(frozen=True)
class Script:
    """A script of ours in a page, with the hash by which the page's content security policy lets it run."""

    source: str

    @property
    def digest(self) -> str:
        return base64.b64encode(hashlib.sha256(self.source.encode("utf-8")).digest()).decode("ascii")

    @property
    def inline(self) -> Markup:
        return Markup(f"<script>{self.source}</script>")


def script(name: str) -> Script:
    """`templates/<name>.js`."""
    source = (locate("templates") / f"{name}.js").read_text(encoding="utf-8")
    if "</script" in source or "<!--" in source:
        raise AssertionError(f"{name}.js holds what would end it early in a page")
    return Script(source)


def data_block(value: Any) -> Markup:
    """Plain values as JSON in a script element that does not run. No sign in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(f'<script type="application/json" id="data">{text}</script>')


class Page:
    """One rendering: the environment of its format and the figures it drew.

    Args:
        format: "html" or "markdown".
        figures_in: what Markdown's links to its figures begin with, `report_files/` or `attachment:`; None
            writes descriptions only.
        include_plots: False leaves figures out and writes their descriptions.
        features: makes names of features in tables lead to their dashboard.
    """

    def __init__(
        self,
        format: str,
        *,
        figures_in: str | None = None,
        include_plots: bool = True,
        features: FeatureLinks | None = None,
    ) -> None:
        if format not in ("html", "markdown"):
            raise ResultError(f"no report format {format!r}. Formats are: markdown, html.")
        self.is_html = format == "html"
        self.files: dict[str, bytes] = {}
        self._figures_in = figures_in
        self._include_plots = include_plots
        self._features = features

    def render(self, template: str, **values: Any) -> str:
        """The page of this template, `templates/<template>.html.j2` or `.md.j2`."""
        environment = _html() if self.is_html else _markdown()
        name = f"{template}.{'html' if self.is_html else 'md'}.j2"
        text = environment.get_template(name).render(page=self, made=_now(), **values)
        return text if self.is_html else re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"

    def figure(self, show: plots.Drawable) -> str:
        """The figure itself in HTML; in Markdown a link to a PNG file, with its description."""
        if not self._include_plots:
            return self._described(show)
        if self.is_html:
            return Markup(plots.svg(show))
        if self._figures_in is None:
            return self._described(show)
        name = f"{len(self.files) + 1:03d}-{slug(show.title, default='figure')}.png"
        self.files[name] = plots.png(show)
        alt = markdown.escape(describe(show))
        return Verbatim(f"![{alt}]({self._figures_in}{name})")

    def _described(self, show: plots.Drawable) -> str:
        return Markup("<p>{}</p>").format(visible(describe(show))) if self.is_html else describe(show)

    def cell(self, value: Cell) -> str:
        """A cell of a table in HTML; the name of a feature leads to the dashboard, if there is one."""
        linked = self._features.linked(value) if self._features and isinstance(value, str) else None
        return cell(value) if linked is None else linked

    def table(self, show: Table) -> Table:
        """The table with at most MOST_ROWS rows, saying so when rows are left out."""
        if len(show.rows) <= MOST_ROWS:
            return show
        left_out = f"The first {MOST_ROWS} of {len(show.rows)} rows. {show.caption}".strip()
        return Table(title=show.title, columns=show.columns, rows=show.rows[:MOST_ROWS], caption=left_out)


def format_of(path: Path) -> str:
    """ "html", "markdown" or "notebook", by the suffix of the file in any case."""
    suffix = path.suffix.lower()
    if suffix in _HTML_SUFFIXES:
        return "html"
    if suffix in _MARKDOWN_SUFFIXES:
        return "markdown"
    if suffix in _NOTEBOOK_SUFFIXES:
        return "notebook"
    every = ", ".join(_MARKDOWN_SUFFIXES + _HTML_SUFFIXES + _NOTEBOOK_SUFFIXES)
    if suffix == ".pdf":
        raise ResultError(
            f"a report cannot be written to {path.name!r}: PDF is made by a browser. Save it as "
            f"'{path.stem}.html', open that, and print it to a file; its style for print is made for this. "
            f"Formats that are written here: {every}."
        )
    raise ResultError(
        f"a report cannot be written to {path.name!r}: its suffix names no format. Use one of {every}."
    )


def require_html(path: Path) -> None:
    """Refuses a file name that does not end like HTML."""
    if path.suffix.lower() not in _HTML_SUFFIXES:
        raise ResultError(
            f"a page with a script cannot be written to {path.name!r}: it is HTML. Name it "
            f"'{path.stem or 'page'}.html'."
        )


def write(path: Path, text: str, figures: dict[str, bytes]) -> None:
    """Writes the page and its figures; figures of an earlier version that it no longer links are removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.stem}_files")
    if figures:
        if beside.is_symlink() or (beside.exists() and not beside.is_dir()):
            raise ResultError(
                f"figures of {path.name} go to {beside.name}/, which is a link or a file. Move it away."
            )
        beside.mkdir(exist_ok=True)
        for name, content in figures.items():
            write_atomically(beside / name, content)
    write_atomically(path, text.encode("utf-8"))
    if format_of(path) == "markdown" and beside.is_dir() and not beside.is_symlink():
        for old in beside.glob("[0-9][0-9][0-9]-*.png"):
            if old.name not in figures:
                old.unlink()


@lru_cache(maxsize=1)
def _html() -> Environment:
    return _environment(autoescape=True, finalize=lambda value: _shown(value))


@lru_cache(maxsize=1)
def _markdown() -> Environment:
    return _environment(autoescape=False, finalize=_in_markdown)


def _environment(*, autoescape: bool, finalize: Callable[[Any], Any]) -> Environment:
    # autoescape is set outright: select_autoescape() looks at the last suffix, and ".html.j2" ends in ".j2".
    environment = Environment(
        loader=FileSystemLoader(str(locate("templates"))),
        autoescape=autoescape,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": cell,
        "is_number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
        "clip": clip,
        "shortened": shortened,
        "fenced": lambda text, language="": Verbatim(markdown.fenced(text, language)),
        "md_table": lambda shown: Verbatim(markdown.table(shown)),
        "md_lines": lambda text: Verbatim(markdown.paragraphs(clip(text))),
        "commonmark": _commonmark_html if autoescape else _commonmark,
        "value_text": markdown.value_text,
    }
    environment.tests |= {
        "table": lambda show: isinstance(show, Table),
        "drawable": lambda show: bool(plots.drawables([show])),
    }
    return environment


def _commonmark_html(text: str) -> Markup:
    return Markup(prose.as_html(text))


def _commonmark(text: str) -> Verbatim:
    return Verbatim(prose.as_markdown(text))


_WITH_SOURCES = (Sentence, Sourced, Reference, Name)


def _shown(value: Any) -> Any:
    if isinstance(value, _WITH_SOURCES):
        return value.__html__()
    return visible(value) if type(value) is str else value


def _in_markdown(value: Any) -> Any:
    if isinstance(value, _WITH_SOURCES):
        return markdown.escape(str(value))
    if isinstance(value, Verbatim):
        return value
    return markdown.escape(value) if isinstance(value, str) else value


def cell(value: Cell) -> str:
    """A table's cell: numbers rounded with a typographic minus, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return typeset(value)


def moment(timestamp: float | None) -> str:
    """`2026-03-01 22:14 UTC`; empty when it is not known."""
    if timestamp is None or not 0 <= timestamp < 250_000_000_000:
        return ""
    return datetime.fromtimestamp(timestamp, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _now() -> str:
    return datetime.now(tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def fragment(section: Section) -> str:
    """One result as a piece of HTML, for a notebook."""
    return Page("html").render("fragment", section=section)
