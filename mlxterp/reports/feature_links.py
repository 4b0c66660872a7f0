"""Links between a report and a dashboard of features: from a feature's name to its page, and back.

A report that knows its dashboard makes `f42` a link to `features.html#f42`, and the first mention of it the
place `#feature-42`. A dashboard that knows its report leads from a feature to that place.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from mlxterp.errors import ResultError
from mlxterp.text import visible

_FEATURE = re.compile(r"f(\d{1,9})\b")
_PLACE = re.compile(r'id="feature-(\d{1,9})"')


@dataclass
class FeatureLinks:
    """Of one page: where its dashboard is, and which features were linked to it so far."""

    dashboard: str
    placed: set[int] = field(default_factory=set)

    def linked(self, text: str) -> Markup | None:
        """A text that begins with the name of a feature, with that name as a link; None of another text."""
        found = _FEATURE.match(text)
        if found is None:
            return None
        feature = int(found[1])
        place = Markup("") if feature in self.placed else Markup(' id="feature-{}"').format(feature)
        self.placed.add(feature)
        link = Markup('<a{} href="{}#f{}">{}</a>').format(place, self.dashboard, feature, found[0])
        return link + visible(text[found.end() :])


def address(of: str | Path, *, seen_from: str | Path) -> str:
    """A file as a link in another file, relative to it."""
    start = Path(seen_from).absolute().parent
    return quote(Path(os.path.relpath(Path(of).absolute(), start)).as_posix())


def features_in_report(report: str | Path, *, seen_from: str | Path) -> dict[int, str]:
    """By feature, the address of its place in a report that was written with `dashboard=`.

    Raises:
        ResultError: there is no such report.
    """
    try:
        html = Path(report).read_text(encoding="utf-8")
    except OSError as problem:
        raise ResultError(
            f"a dashboard that leads to {str(report)!r}, which cannot be read: {problem.strerror}. Write the "
            "report first: save_report(..., dashboard=)."
        ) from problem
    base = address(report, seen_from=seen_from)
    return {int(feature): f"{base}#feature-{feature}" for feature in _PLACE.findall(html)}
