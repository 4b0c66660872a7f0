"""Rewrites what is generated in docs/reference: `python -m tests.regenerate_docs`.

A block stands between `<!-- generated: NAME -->` and `<!-- end -->`; everything else of a page is written by
hand. `test_docs.py` compares the blocks with the code. `results.schema.json` is generated as a whole.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
API = REFERENCE / "api"
_GENERATED = "<!-- written by tests/regenerate_docs.py from the source -->"
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
    return f"<!-- laid out by typer {typer_version()} -->\n\n" + "\n\n".join(shown)


def typer_version() -> str:
    """The first two numbers: layouts of help differ between them."""
    import typer

    return ".".join(typer.__version__.split(".")[:2])


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


def api() -> str:
    """The public modules with their names, each linked to its page."""
    parts: list[str] = []
    for module, names in api_modules().items():
        parts.append(f"## [{module}](api/{module}.md)")
        lines = [f"- [`{each.name}`](api/{module}.md#{each.name.lower()}): {_first(each)}" for each in names]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def api_modules() -> dict[str, list[Any]]:
    """Every public name by its module, read from the source as `autointerp api` is."""
    from mlxterp_agent import api_help as help_

    modules: dict[str, list[Any]] = {}
    for public in help_.public_names():
        modules.setdefault(public.module, []).append(public)
    return modules


def api_page(module: str, names: list[Any]) -> str:
    """The page of a module: every name with its signature, its documentation and an executed example."""
    from mlxterp_agent import api_help as help_

    examples = help_.examples()
    parts = [f"# {module}", _GENERATED]
    for public in names:
        rest = public.doc.partition("\n\n")[2]
        parts += [f"## {public.name}", f"```py\n{_in_lines(help_.signature(public.definition))}\n```"]
        parts.append(_first(public))
        methods = help_.methods_of(public)
        parts += [f"```text\n{each}\n```" for each in (rest.rstrip(), methods) if each]
        if public.name in examples:
            parts.append(f"```python-console\n{examples[public.name].rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _first(public: Any) -> str:
    """The first paragraph of a name's documentation, on one line."""
    return " ".join(public.doc.partition("\n\n")[0].split()).replace("<", "&lt;")


def _in_lines(signature: str, width: int = 88) -> str:
    """A long signature with one argument a line."""
    if len(signature) <= width:
        return signature
    before, depth, piece, arguments = signature.index("("), 0, "", []
    for place in range(before, len(signature)):
        sign = signature[place]
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0:
            break
        if sign == "," and depth == 1:
            arguments.append(piece.strip())
            piece = ""
        elif place > before:
            piece += sign
    lines = "".join(f"    {each},\n" for each in [*arguments, piece.strip()] if each)
    return f"{signature[:before]}(\n{lines}{signature[place:]}"


def endings() -> str:
    """How a run ends, and what to do next."""
    from mlxterp_agent.endings import table

    return f"\n{table()}\n"


GENERATORS: dict[str, Callable[[], str]] = {
    "api": api,
    "cli": cli,
    "hook_points": hook_points,
    "errors": errors,
    "endings": endings,
}


def regenerated(text: str) -> str:
    """A page with its generated blocks made anew."""
    return _BLOCK.sub(lambda m: f"{m[1]}{GENERATORS[m[2]]()}\n{m[3]}", text)


def pages() -> list[Path]:
    """The pages that hold a generated block."""
    return [
        page for page in sorted(REFERENCE.glob("*.md")) if _BLOCK.search(page.read_text(encoding="utf-8"))
    ]


def api_pages() -> dict[Path, str]:
    """By file, what the page of each public module is."""
    return {API / f"{module}.md": api_page(module, names) for module, names in api_modules().items()}


def results_schema() -> str:
    """The JSON Schema of every kind of result, as `results.schema.json` holds it."""
    from mlxterp.results import json_schema

    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    (REFERENCE / "results.schema.json").write_text(results_schema(), encoding="utf-8")
    API.mkdir(exist_ok=True)
    wanted = api_pages()
    for stale in set(API.glob("*.md")) - set(wanted):
        stale.unlink()
    for page, text in wanted.items():
        page.write_text(text, encoding="utf-8")
    for page in pages():
        page.write_text(regenerated(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
