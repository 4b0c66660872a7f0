"""Rewrites the generated blocks of docs/reference: `python -m tests.regenerate_docs`.

A block stands between `<!-- generated: NAME -->` and `<!-- end -->`; everything else of a page is written by
hand. `test_docs.py` compares the blocks with the code.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def cli() -> str:
    """`--help` of the command and of each of its commands, 88 columns wide."""
    import typer
    from click.testing import CliRunner

    from mlxterp_agent.cli import app

    command = typer.main.get_command(app)
    shown = []
    for arguments in _walks(command):
        env = {"COLUMNS": "88", "TERMINAL_WIDTH": "88"}
        output = CliRunner().invoke(command, [*arguments, "--help"], prog_name="autointerp", env=env).output
        title = " ".join(["autointerp", *arguments])
        shown.append(f"## {title}\n\n```text\n{output.strip()}\n```")
    return "\n\n".join(shown)


def _walks(command: Any, *before: str) -> Iterator[list[str]]:
    """The words that lead to a command and to each visible one below it."""
    yield list(before)
    for name, each in getattr(command, "commands", {}).items():
        if not each.hidden:
            yield from _walks(each, *before, name)


def hook_points() -> str:
    """Which hook points each family has, as its self-check at load found on a tiny random model."""
    from mlxterp.core.hook_points import LAYER_NAMES
    from mlxterp.core.model import InterpretableModel
    from tests.tiny_models import FAMILIES, ByteTokenizer, tiny_module

    rows = ["| family | " + " | ".join(f"`{name}`" for name in LAYER_NAMES) + " |", "|---" * 11 + "|"]
    models = {f: InterpretableModel(tiny_module(f), ByteTokenizer()) for f in sorted(FAMILIES)}
    models["toy-induction"] = InterpretableModel("toy-induction")
    for family, model in models.items():
        marks = ["yes" if model.capabilities[name].available else "—" for name in LAYER_NAMES]
        rows.append(f"| {family} | {' | '.join(marks)} |")
    return "\n".join(rows)


def errors() -> str:
    """The tree of errors, from the module that defines it."""
    from mlxterp import errors as module

    return f"```text\n{(inspect.getdoc(module) or '').strip()}\n```"


GENERATORS: dict[str, Callable[[], str]] = {"cli": cli, "hook_points": hook_points, "errors": errors}


def regenerated(text: str) -> str:
    """A page with its generated blocks made anew."""
    return _BLOCK.sub(lambda m: f"{m[1]}{GENERATORS[m[2]]()}\n{m[3]}", text)


def pages() -> list[Path]:
    """The pages that hold a generated block."""
    return [
        page for page in sorted(REFERENCE.glob("*.md")) if _BLOCK.search(page.read_text(encoding="utf-8"))
    ]


def main() -> None:
    for page in pages():
        page.write_text(regenerated(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
