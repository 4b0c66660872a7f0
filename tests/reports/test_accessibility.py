"""Our pages by keyboard, by screen reader, in the dark, on a telephone and on paper, in a real browser."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest

from mlxterp.reports import interactive, save_report, write_investigation_report
from mlxterp.reports.dashboard import dashboard, write_dashboard
from tests.chromium import MISSING, REASON, chromium
from tests.reports.test_dashboard import entry as feature
from tests.reports.test_reports import CONFIG, SPENT
from tests.reports.test_traced_numbers import SELFTEST, every_kind_of_line
from tests.results.every_kind import EXAMPLES

pytestmark = [pytest.mark.skipif(MISSING, reason=REASON), pytest.mark.slow]

PAGES = ("investigation", "report", "dashboard", "attention")
LEAST_CONTRAST, LEAST_OF_LARGE = 4.5, 3.0
# Of every visible text: what it says, its contrast with the colours behind it, whether it is large.
CONTRASTS = """
(() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const parts = (text) => [...numbers(text), 1].slice(0, 4);
  const skipped = "script, style, title, .skip, .unseen, .squares, .token";
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = (c) => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parts(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const words = walker.currentNode.textContent.trim();
    if (!words || !element.checkVisibility() || element.closest(skipped)) continue;
    const style = getComputedStyle(element), isSvg = element.namespaceURI.endsWith("svg");
    if (element.closest("svg.figure") && style.fill === "rgb(255, 255, 255)") continue;  // on a strong cell
    const ink = parts(isSvg ? style.fill : style.color);
    ink[3] *= Number(style.opacity) * (isSvg ? Number(style.fillOpacity) : 1);
    const page = behind(element), [a, b] = [luminance(over(ink, page)), luminance(page)];
    const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
    const large = size >= 24 || (size >= 18.6 && bold);
    found.push([words.slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), large]);
  }
  return found;
})()
"""
STOPS = (
    "[...document.querySelectorAll('a[href], summary, [tabindex=\"0\"], input, select, button')]"
    ".filter((e) => e.checkVisibility() && !e.closest('[hidden]')).length"
)
WORDS = (
    "x" * 10_000,
    "\u202egnp.exe \u2066x",
    "<b>" * 40,
    '"><a href="https://example.invalid">x</a>',
    "a " * 3000,
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        found.size(1100, 900)
        found.media()
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    given = {"config": CONFIG, "spent": SPENT, "stop_reason": "STOP", "selftest": SELFTEST}
    steering = ((0.0, " goes on"), (3.0, " is steered"))
    features = [feature(feature_id=i, prompt="It", steering=steering, neighbours=(8,)) for i in (7, 8)]
    return {
        "investigation": write_investigation_report(folder, every_kind_of_line(), **given)[1],
        "report": save_report([make() for make in EXAMPLES.values()], folder / "all.html", title="All"),
        "dashboard": write_dashboard(folder / "features.html", dashboard(features)),
        "attention": interactive(EXAMPLES["attention_pattern"](), folder / "attention.html").path,
    }


def nodes_of(tab):
    """The accessibility tree as a screen reader has it: (role, name, properties) in reading order."""
    tab.call("Accessibility.enable")
    every = tab.call("Accessibility.getFullAXTree")["nodes"]
    by_id = {node["nodeId"]: node for node in every}
    found = []

    def visit(node):
        if not node.get("ignored"):
            properties = {p["name"]: p["value"].get("value") for p in node.get("properties", ())}
            found.append((node["role"]["value"], node.get("name", {}).get("value", ""), properties))
        for child in node.get("childIds", ()):
            if child in by_id:
                visit(by_id[child])

    visit(every[0])
    return found


@pytest.mark.parametrize("name", PAGES)
def test_a_screen_reader_finds_headings_in_order_named_pictures_and_headed_tables(tab, pages, name):
    tab.open(pages[name])
    nodes = nodes_of(tab)

    levels = [properties["level"] for role, _, properties in nodes if role == "heading"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(deeper <= level + 1 for level, deeper in pairwise(levels))
    assert [role for role, _, _ in nodes].count("main") == 1
    pictures = [text for role, text, _ in nodes if role in ("image", "img", "application")]
    assert all(len(text) > 10 for text in pictures)
    unnamed = [
        role for role, text, _ in nodes if role in ("link", "button", "slider", "searchbox") and not text
    ]
    assert unnamed == []
    n_tables = tab.eval("document.querySelectorAll('table').length")
    assert (
        tab.eval(
            "[...document.querySelectorAll('table')].filter((t) => t.querySelector('th[scope=col]')).length"
        )
        == n_tables
    )
    if name == "investigation":
        assert any("0.41, interval 0.33 to 0.48" in text for text in pictures)
        assert any("Together sufficient: L9.H6 and L11.H2" in text for text in pictures)
        assert any(role == "rowheader" for role, _, _ in nodes)


@pytest.mark.parametrize("name", PAGES)
def test_every_control_is_reached_by_tab_and_shows_where_the_focus_is(tab, pages, name):
    tab.open(pages[name])
    tab.key("Tab")
    assert tab.settled("document.activeElement.className", "skip") == "skip"
    seen = 1
    top = "Math.round(document.activeElement.getBoundingClientRect().top)"
    assert tab.eval(f"{top} >= 0")

    for _ in range(tab.eval(STOPS) - 1):
        tab.key("Tab")
        assert tab.eval("document.activeElement !== document.body")
        assert tab.eval("getComputedStyle(document.activeElement).outlineStyle") not in ("none", "")
        seen += 1
    assert seen == tab.eval(STOPS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_text_can_be_read_on_what_is_behind_it(tab, pages, name, scheme):
    tab.media("", scheme)
    tab.open(pages[name])
    tab.eval("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    found = tab.eval(CONTRASTS)
    tab.media()

    assert len(found) > 10
    faint = [
        (text, round(c, 2)) for text, c, large in found if c < (LEAST_OF_LARGE if large else LEAST_CONTRAST)
    ]
    assert faint == []


@pytest.mark.parametrize("name", ["investigation", "report"])
def test_on_paper_nothing_stays_folded(tab, pages, name):
    hidden = (
        "[...document.querySelectorAll('details > :not(summary)')]"
        ".filter((e) => e.textContent.trim() && !e.checkVisibility()).length"
    )
    tab.open(pages[name])
    assert tab.eval(hidden) > 0
    tab.media("print")
    folded = tab.eval(hidden)
    tab.media()

    assert folded == 0


def test_on_a_telephone_pictures_of_effects_and_bars_are_whole(tab, pages):
    tab.size(400, 800)
    tab.open(pages["investigation"])
    cut = ".filter((e) => e.getBoundingClientRect().right > 401).length"
    assert tab.eval(f"[...document.querySelectorAll('svg.effect, svg.sketch')]{cut}") == 0
    assert tab.eval("document.querySelectorAll('svg.effect').length") > 4
    tab.open(pages["report"])
    bars = "[...document.querySelectorAll('svg.figure[aria-label^=Bars]')]"
    assert tab.eval(f"{bars}.length") > 4
    assert tab.eval(f"{bars}{cut}") == 0
    tab.size(1100, 900)


@pytest.mark.parametrize("word", WORDS, ids=["long word", "reordering", "tags", "link", "many words"])
def test_what_an_agent_writes_neither_breaks_the_page_nor_becomes_part_of_it(tab, tmp_path, word):
    entries = []
    for each in every_kind_of_line():
        record = each.record and dict(each.record)
        if record and record.get("declared"):
            said = {"claim": word, "falsified_if": word, "rivals": [word], "site": [word]}
            record["declared"] = dict(record["declared"]) | said
            record["reasons"] = [word]
        entries.append(replace(each, hypothesis=word, conclusion=word, method=word, record=record))
    asked = CONFIG | {"question": word, "model": word}
    _, page = write_investigation_report(tmp_path, entries, config=asked, spent=SPENT, stop_reason=word)

    for width in (400, 1100):
        tab.size(width, 800)
        tab.open(page)
        assert tab.eval("document.documentElement.scrollWidth") <= width
    assert tab.eval("document.querySelectorAll('a:not([href^=\"#\"])').length") == 0
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", tab.eval("document.body.textContent"))
    assert tab.said() == []
