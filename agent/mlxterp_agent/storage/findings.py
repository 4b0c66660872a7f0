"""The folder of a kept entry: finding.md, result.json, the experiment.py that ran, and a figure.

The files are made from one log line and the bytes that ran, so a folder that is missing after a crash is made
again with the same bytes. Nothing here decides what is kept, and nothing commits.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

from mlxterp._files import locate
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.errors import MlxterpError
from mlxterp_agent.storage.project_files import write_in_project
from mlxterp_agent.text import one_line, plain, slug

_FIGURES = 4
_NUMBERS = 60


def folder_of(entry: ExperimentEntry) -> str:
    """Where a kept entry's files go, relative to the project: "findings/0007-the-head-that-copies"."""
    return f"findings/{entry.experiment_id}-{slug(entry.conclusion or entry.hypothesis)}"


def finding_files(entry: ExperimentEntry, source: bytes) -> dict[str, bytes]:
    """Every file of a kept entry by its path in the project. A figure that cannot be drawn is noted in
    finding.md."""
    figures, notes = _figures(entry)
    files = {
        "finding.md": _finding_text(entry, tuple(figures), tuple(notes)).encode(),
        "result.json": (
            json.dumps(entry.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        ).encode(),
        "experiment.py": source,
        **figures,
    }
    folder = folder_of(entry)
    return {f"{folder}/{name}": content for name, content in files.items()}


def write_files(project: Path, files: Mapping[str, bytes], *, notice: Callable[[str], None]) -> None:
    """Writes each file beside its place, flushes it to the disk and renames it there.

    Args:
        notice: gets a sentence for everything that stood in the way and was moved aside.
    """
    for name, content in files.items():
        write_in_project(project, name, content, notice=notice)


def missing(project: Path, entry: ExperimentEntry) -> bool:
    """Whether the entry's folder lacks its finding.md, the file that is renamed into place last."""
    return not (project / folder_of(entry) / "finding.md").is_file()


def _figures(entry: ExperimentEntry) -> tuple[dict[str, bytes], list[str]]:
    from mlxterp.results.entry_results import analyses

    drawn: dict[str, bytes] = {}
    notes: list[str] = []
    for count, (_, found) in enumerate(analyses(entry.result), start=1):
        if count > _FIGURES:
            notes.append(f"more than {_FIGURES} analyses; the others are in result.json")
            break
        name = "figure.svg" if count == 1 else f"figure-{count}.svg"
        try:
            drawn[name] = _draw(found)
        except (MlxterpError, ValueError, TypeError, KeyError, IndexError, ArithmeticError, OSError) as error:
            notes.append(f"{name} could not be drawn: {type(error).__name__}: {one_line(str(error), 200)}")
    return drawn, notes


def _draw(found: Mapping[str, Any]) -> bytes:
    import matplotlib

    from mlxterp.results import AnalysisResult

    with matplotlib.rc_context({"svg.hashsalt": "autointerp"}):
        figure = AnalysisResult.from_dict(found).plot()
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _finding_text(entry: ExperimentEntry, figures: tuple[str, ...], notes: tuple[str, ...]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    page = Environment(  # the output is Markdown; every text of an agent passes the `prose` filter
        loader=FileSystemLoader(str(locate("templates"))),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    page.filters["prose"] = prose
    record = entry.record or {}
    when = datetime.fromtimestamp(entry.timestamp or 0.0, tz=timezone.utc)
    return page.get_template("finding.md.j2").render(
        entry=entry,
        record=record,
        when=when.strftime("%Y-%m-%d %H:%M UTC"),
        title=one_line(entry.conclusion or entry.hypothesis, 120),
        numbers=[(name.removeprefix("numbers."), value) for name, value in _numbers(entry.result)][:_NUMBERS],
        figures=figures,
        notes=notes,
    )


def prose(text: object) -> str:
    """Text of an agent on one line, with everything escaped that Markdown or HTML would interpret."""
    flat = escape(" ".join(plain(str(text)).split()), quote=False)
    for mark in ("\\", "`", "*", "_", "[", "]", "|", "#", "!"):
        flat = flat.replace(mark, f"\\{mark}")
    return flat


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The plain values of a result by their path, without those inside an analysis."""
    if isinstance(value, dict) and "kind" in value:
        return
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, bool):
        yield path, "yes" if value else "no"
    elif isinstance(value, int | float):
        yield path, f"{value:.4g}" if isinstance(value, float) else str(value)
    elif isinstance(value, str) and path:
        yield path, one_line(value, 200)
    elif isinstance(value, list) and value and all(isinstance(item, int | float | str) for item in value):
        items = (f"{item:.4g}" if isinstance(item, float) else str(item) for item in value)
        yield path, one_line(", ".join(items), 200)
