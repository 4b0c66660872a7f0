"""Every Python block of README and docs runs as written, top to bottom, page by page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import chromium, regenerate_docs, regenerate_examples

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SLOW = {
    "docs/examples/causal_tracing.md",
    "docs/examples/indirect_objects.md",
    "docs/examples/induction_heads.md",
    "docs/examples/logit_lens.md",
    "docs/guides/features.md",
    "docs/tutorial.md",
}
"""Pages whose code takes more than ten seconds: the slow group runs it, and compares the numbers too."""
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


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if _name(page) not in SLOW and BLOCK.search(page.read_text(encoding="utf-8"))],
    ids=_name,
)
def test_the_python_blocks_of_a_page_run_in_order(page, tmp_path):
    program = tmp_path / page.name.replace(".md", ".py")
    program.write_text(_program(page), encoding="utf-8")

    run = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )

    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=_name)
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
    layout = re.search(r"<!-- laid out by typer (\S+) -->", text)

    anew = regenerate_docs.regenerated(text)

    if layout is not None and layout[1] != regenerate_docs.typer_version():
        named = re.compile(
            r"^## .*|(?<=\s)--[a-z][a-z-]*", re.MULTILINE
        )  # another typer: commands and options
        text, anew = (sorted(set(named.findall(each))) for each in (text, anew))
    assert text == anew, "run `python -m tests.regenerate_docs`"


def test_every_public_module_has_a_page_that_says_what_the_code_says():
    wanted = regenerate_docs.api_pages()
    written = {page: page.read_text(encoding="utf-8") for page in regenerate_docs.API.glob("*.md")}

    assert written == wanted, "run `python -m tests.regenerate_docs`"
    names = [line for text in written.values() for line in text.splitlines() if line.startswith("## ")]
    assert len(names) == len(set(names)), "a name stands on two pages"


@pytest.mark.slow
@pytest.mark.timeout(900)  # the longest takes 100 CPU seconds, and may have to share its cores
@pytest.mark.parametrize("page", regenerate_examples.pages(), ids=_name)
def test_a_page_says_what_its_code_printed(page):
    made = regenerate_examples.made(page)

    differences = regenerate_examples.differences(page.read_text(encoding="utf-8"), made.text)
    assert differences == [], "run `python -m tests.regenerate_examples`\n" + "\n".join(differences)
    for name, content in made.figures.items():
        assert (page.parent / "figures" / name).stat().st_size <= regenerate_examples.LARGEST_FIGURE
        assert len(content) <= regenerate_examples.LARGEST_FIGURE


def test_no_output_was_forgotten():
    empty = [
        _name(page) for page in PAGES if "<!-- output -->\n<!-- end -->" in page.read_text(encoding="utf-8")
    ]

    assert empty == [], "run `python -m tests.regenerate_examples`"


def test_every_figure_is_one_that_a_page_makes_and_has_words_for_who_cannot_see_it():
    images = [
        (page, words, target)
        for page in PAGES
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    ]
    drawn = {page.parent / target for page, _, target in images if target.startswith("figures/")}

    assert [target for _, words, target in images if len(words) < 10] == []
    assert set((ROOT / "docs").rglob("figures/*")) == drawn


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("L9.H6 0.412", "L9.H6 0.415", True),
        ("L9.H6 0.412", "L9.H6 0.512", False),
        ("L9.H6 0.412", "L9.H7 0.412", False),
        ("104 rows", "104 words", False),
        ("12,400 words", "12,390 words", True),
    ],
)
def test_numbers_of_a_page_are_compared_within_a_tolerance_and_its_words_exactly(old, new, same):
    assert (regenerate_examples.differences(old, new) == []) is same


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; every warning of the build is an error."""
    pytest.importorskip("material", reason="install the `docs` extra to run this: pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    config = ROOT / "docs" / "site" / "mkdocs.yml"
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(out)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert build.returncode == 0, build.stderr[-3000:]
    return out


@pytest.mark.slow
def test_every_page_is_in_the_site(site):
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in PAGES[1:]}
    index = {Path("decisions/README.html"): Path("decisions/index.html")}

    missing = [str(page) for page in sorted(pages) if not (site / index.get(page, page)).is_file()]

    assert missing == []


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    loads = re.compile(
        r'<(?:script|img|iframe|source)[^>]*src="([^"]+)"|<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"'
    )
    loaded = {
        target
        for page in site.rglob("*.html")
        for match in loads.finditer(page.read_text(encoding="utf-8"))
        for target in [match[1] or match[2]]
    }

    assert loaded
    assert (site / "site" / "extra.css").is_file()
    assert {target for target in loaded if target.startswith(("http:", "https:", "//"))} == set()


@pytest.mark.slow
@pytest.mark.skipif(chromium.MISSING, reason=chromium.REASON)
@pytest.mark.parametrize(("scheme", "said"), [("light", "default"), ("dark", "slate")])
def test_the_pages_of_the_site_ask_for_nothing_and_fit_a_narrow_screen(site, tmp_path, scheme, said):
    with chromium.chromium(tmp_path) as tab:
        tab.media(scheme=scheme)
        tab.size(400, 900)
        for page in sorted(set(site.rglob("*.html")) - {site / "404.html"}):  # that one needs a server
            tab.open(page)
            asked = tab.asked_for()
            width = tab.eval("document.documentElement.scrollWidth")

            assert asked == [], page.name
            assert width <= 400, page.name
            assert tab.eval("document.body.dataset.mdColorScheme") == said
