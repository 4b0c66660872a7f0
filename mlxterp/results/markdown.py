"""Text, tables and notes as Markdown; a heatmap or bars as the sentence that describes them.

Figures stand beside a Markdown page, so the ones who write files (`mlxterp.reports`) link them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mlxterp.results.views import Cell, Note, Show, Table, describe
from mlxterp.text import number, visible

_SPECIAL = re.compile(r"[\\`*\[\]<|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=[#A-Za-z])")
_LINE_START = re.compile(r"^(\s*)(?:([#>]|[-+=](?=[-+=\s]|$))|(\d{1,9})([.)])(?=\s|$))")


def escape(text: str) -> str:
    """The text on one line, so that Markdown shows it literally. Hidden characters become visible marks."""
    line = re.sub(r"\s+", " ", visible(text)).strip()
    line = _SPECIAL.sub(lambda found: "\\" + found.group(), line)
    return _LINE_START.sub(
        lambda found: f"{found[1]}\\{found[2]}" if found[2] else f"{found[1]}{found[3]}\\{found[4]}", line
    )


def paragraphs(text: str) -> str:
    """Several lines of text, each kept on its own line."""
    return "  \n".join(escape(line) for line in text.splitlines() if line.strip())


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text)}\n{fence}"


def table(shown: Table) -> str:
    """A pipe table; numbers are rounded and set to the right."""
    numeric = [
        all(isinstance(row[i], (int, float)) or row[i] is None for row in shown.rows)
        for i in range(len(shown.columns))
    ]
    lines = [_line(shown.columns), "|" + "|".join(" ---: " if right else " --- " for right in numeric) + "|"]
    lines += [_line(row) for row in shown.rows]
    return "\n".join(lines)


def show(shown: Show) -> str:
    """One show with its heading."""
    if isinstance(shown, Note):
        return f"> {'**Caution.** ' if shown.tone == 'caution' else ''}{escape(shown.text)}"
    heading = f"**{escape(shown.title)}**"
    if isinstance(shown, Table):
        return "\n\n".join(part for part in (heading, table(shown), escape(shown.caption)) if part)
    return f"{heading}: {escape(describe(shown))}"


def measured_on(values: Mapping[str, Any]) -> str:
    """What the numbers depend on, as a list."""
    return "\n".join(f"- {escape(str(key))}: {escape(value_text(value))}" for key, value in values.items())


def value_text(value: Any) -> str:
    """A plain value on one line: text as it is, numbers rounded, the rest as JSON."""
    if isinstance(value, str):
        return value
    return number(value) if isinstance(value, (int, float)) else json.dumps(value, ensure_ascii=False)


def _line(cells: tuple[Cell, ...]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(cell: Cell) -> str:
    if cell is None:
        return ""
    return escape(cell) if isinstance(cell, str) else number(cell)
