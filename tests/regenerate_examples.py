"""Runs the pages that show what their code printed and drew, and writes both into them.

`python -m tests.regenerate_examples` for all such pages, or with the paths of some. In a page,

    <!-- output -->            after a Python block: what it printed, up to <!-- end -->
    <!--= EXPRESSION -->…<!--/-->    in a sentence: a value of the page's code, formatted as `{EXPRESSION}` is
    ![words](figures/NAME.png)  a file that the page's code wrote to NAME.png in its working directory

Everything else is written by hand. `test_docs.py` (slow) runs the pages and compares, within a tolerance.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
LARGEST_FIGURE = 150_000

_OUTPUT = "<!-- output -->\n"
_PART = re.compile(
    r"^```python\n(?P<code>.*?)^```$"
    r"|(?P<output><!-- output -->\n).*?(?P<end><!-- end -->)"
    r"|(?P<open><!--= (?P<value>.+?) -->)(?P<said>.*?)(?P<close><!--/-->)",
    re.MULTILINE | re.DOTALL,
)
_FIGURE = re.compile(r"!\[[^\]]*\]\((figures/([\w.-]+))\)")
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Made:
    """A page with its outputs, values and figures made anew."""

    text: str
    figures: dict[str, bytes]


def pages() -> list[Path]:
    """The pages that hold outputs of their own code."""
    return [page for page in sorted(DOCS.rglob("*.md")) if _holds_results(page.read_text(encoding="utf-8"))]


def _holds_results(text: str) -> bool:
    return _OUTPUT in text or "<!--= " in text


def made(page: Path) -> Made:
    """The page after its code has run, top to bottom, in an empty directory."""
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""

    def anew(part: re.Match[str]) -> str:
        nonlocal printed
        if part["code"] is not None:
            line = text[: part.start("code")].count("\n")
            printed = _run("\n" * line + part["code"], page, namespace)
            return part[0]
        if part["output"] is not None:
            return f"{part['output']}```text\n{printed.rstrip()}\n```\n{part['end']}"
        return f"{part['open']}{_value(part['value'], namespace)}{part['close']}"

    with _empty_directory() as directory:
        new = _PART.sub(anew, text)
        names = {match[2] for match in _FIGURE.finditer(text)}
        figures = {name: (directory / name).read_bytes() for name in sorted(names)}
    return Made(new, figures)


def _run(code: str, page: Path, namespace: dict[str, Any]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, str(page), "exec"), namespace)  # the page is ours
    return out.getvalue()


def _value(expression: str, namespace: dict[str, Any]) -> str:
    return str(eval(f"f{('{' + expression + '}')!r}", namespace))


@contextlib.contextmanager
def _empty_directory() -> Iterator[Path]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            yield Path(directory)
        finally:
            os.chdir(before)


def differences(old: str, new: str, *, relative: float = 0.03, absolute: float = 0.015) -> list[str]:
    """Lines whose words differ, or whose numbers differ by more than both tolerances allow."""
    before, after = old.splitlines(), new.splitlines()
    if len(before) != len(after):
        return [f"{len(before)} lines in the page, {len(after)} after running it"]
    return [
        f"page: {a}\nrun:  {b}"
        for a, b in zip(before, after, strict=True)
        if a != b and not _agree(a, b, relative, absolute)
    ]


def _agree(a: str, b: str, relative: float, absolute: float) -> bool:
    if _NUMBER.sub("#", a) != _NUMBER.sub("#", b):
        return False
    pairs = zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True)
    numbers = [(float(x.replace(",", "")), float(y.replace(",", ""))) for x, y in pairs]
    return all(abs(x - y) <= max(absolute, relative * abs(x)) for x, y in numbers)


def main() -> None:
    chosen = [Path(argument).resolve() for argument in sys.argv[1:]] or pages()
    for page in chosen:
        result = made(page)
        page.write_text(result.text, encoding="utf-8")
        for name, content in result.figures.items():
            target = page.parent / "figures" / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        sizes = ", ".join(f"{name} {len(content):,} bytes" for name, content in result.figures.items())
        print(page.relative_to(DOCS), sizes)  # noqa: T201


if __name__ == "__main__":
    main()
