"""Every Python block of README and docs runs as written, top to bottom, page by page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import regenerate_docs

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _program(page: Path) -> str:
    """The page's blocks in one file whose line numbers are the page's own, so that a failure points there."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for match in BLOCK.finditer(text):
        first = text[: match.start(1)].count("\n")
        for offset, line in enumerate(match.group(1).splitlines()):
            lines[first + offset] = line
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_python_blocks_of_a_page_run_in_order(page, tmp_path):
    program = tmp_path / page.name.replace(".md", ".py")
    program.write_text(_program(page), encoding="utf-8")

    run = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )

    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]

    broken = [
        t
        for t in targets
        if t and "://" not in t and not t.startswith("mailto:") and not (page.parent / t).exists()
    ]

    assert broken == []


def test_decision_records_are_short_and_each_number_is_used_once():
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    lengths = {record.name: len(record.read_text(encoding="utf-8").splitlines()) for record in records}

    assert len({record.name[:4] for record in records}) == len(records)
    assert {name: length for name, length in lengths.items() if length > 40} == {}


@pytest.mark.parametrize("page", regenerate_docs.pages(), ids=lambda page: page.name)
def test_generated_blocks_say_what_the_code_says(page):
    text = page.read_text(encoding="utf-8")

    assert text == regenerate_docs.regenerated(text), "run `python -m tests.regenerate_docs`"
