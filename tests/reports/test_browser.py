"""Our pages in a real browser: they draw, hostile words do nothing, the console stays silent."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mlxterp.autointerpret import ExperimentEntry
from mlxterp.reports import interactive, save_report, write_investigation_report
from mlxterp.reports.dashboard import Accuracy, dashboard, write_dashboard
from tests.chromium import MISSING, REASON, chromium
from tests.payloads import PAYLOADS
from tests.reports.test_dashboard import entry
from tests.results.every_kind import (
    EXAMPLES,
    patching,
    rotated,
    with_words,
)

pytestmark = [pytest.mark.skipif(MISSING, reason=REASON), pytest.mark.slow]

# If it ran, the page would hold "0wned" in one piece.
SCRIPT = "document.body.append('0w' + 'ned')"
HOSTILE = f'</script><img src=x onerror="{SCRIPT}"><svg onload="{SCRIPT}"><a href="javascript:{SCRIPT}">x</a>'
WORDS = [*PAYLOADS, HOSTILE]
FOREIGN = (
    "document.querySelectorAll('img, iframe, object, embed, base, form, foreignObject, a[href^=j]').length"
)
READOUT = "document.querySelector('.readout output').textContent"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        found.size(1100, 900)
        found.media()
        yield found


def assert_quiet(tab, scripts=0):
    assert tab.asked_for() == []
    assert tab.said() == []
    assert tab.eval(FOREIGN) == 0
    assert tab.eval("document.querySelectorAll('script:not([type])').length") == scripts
    assert "0wned" not in tab.eval("document.body.innerText")


def middle_of(tab, selector, nth=0):
    box = json.loads(
        tab.eval(f"JSON.stringify(document.querySelectorAll({selector!r})[{nth}].getBoundingClientRect())")
    )
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_cell_that_is_pointed_at_tells_what_its_title_says(tab, tmp_path):
    interactive(patching(), tmp_path / "page.html")
    tab.open(tmp_path / "page.html")

    for nth in (0, 5, 11):
        tab.point_at(*middle_of(tab, "svg.map .squares rect", nth))
        title = tab.eval(f"document.querySelectorAll('svg.map .squares rect')[{nth}].textContent")
        assert tab.settled(READOUT, title) == title

    assert "layer L" in title
    assert "position" in title
    assert "Tower" in tab.eval("document.querySelector('.tokens').textContent")
    assert_quiet(tab, scripts=1)


def test_cells_are_reached_by_the_keyboard(tab, tmp_path):
    result = EXAMPLES["attention_pattern"]()
    interactive(result, tmp_path / "page.html")
    tab.open(tmp_path / "page.html")

    for key in ("Tab", "Tab", "Tab", "ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
        tab.key(key)

    told = f"L2.H3, source 1 'The', destination 2 ' Tower': {result.patterns[1][2, 1]:.3g}"
    assert tab.settled(READOUT, told) == told
    large = "document.querySelector('.panel.large figcaption')?.textContent"
    assert tab.settled(large, "Attention of L2.H3") == "Attention of L2.H3"
    tab.key("ArrowUp")
    above = f"L2.H3, source 1 'The', destination 1 'The': {result.patterns[1][1, 1]:.3g}"
    assert tab.settled(READOUT, above) == above


def test_a_feature_is_found_by_typing_and_reached_by_arrows(tab, tmp_path):
    features = [entry(f"word {i}", feature_id=i, density=i / 1000) for i in range(1000)]
    write_dashboard(tmp_path / "page.html", dashboard(features))
    tab.open(tmp_path / "page.html")
    assert tab.eval("document.querySelectorAll('#rows li').length") == 200

    tab.key("/")
    tab.type("word 99")

    assert tab.settled("document.getElementById('count').textContent", "19 of 1000") == "19 of 1000"
    assert tab.eval("document.querySelectorAll('#rows .label')[0].textContent") == "word 99"
    tab.key("ArrowDown")
    assert tab.settled("document.querySelector('#feature h2').textContent", "f99 word 99") == "f99 word 99"
    tab.key("ArrowDown")
    assert tab.settled("location.hash", "#f199") == "#f199"
    tab.eval("document.getElementById('sort').value = 'density'")
    tab.eval("document.getElementById('sort').dispatchEvent(new Event('change'))")
    assert tab.eval("document.querySelectorAll('#rows .label')[0].textContent") == "word 999"
    assert tab.eval("document.querySelector('.texts .token').title") == "2"
    assert_quiet(tab, scripts=1)


def test_the_first_screen_of_a_feature_has_examples_a_slider_and_neighbours(tab, tmp_path):
    steering = ((0.0, " goes on"), (3.0, " is steered"))
    features = [entry(feature_id=i, prompt="It", steering=steering, neighbours=(8,)) for i in (7, 8)]
    write_dashboard(tmp_path / "page.html", dashboard(features))
    tab.open(tmp_path / "page.html")

    parts = ", ".join(f"#feature {part}" for part in (".texts", ".steering", ".neighbours", "table"))
    order = f"[...document.querySelectorAll('{parts}')]"
    kinds = tab.eval(f"{order}.map((e) => e.className.split(' ')[0]).join()")
    assert kinds.startswith("texts,steering,neighbours")
    bottom = "document.querySelector('#feature .neighbours').getBoundingClientRect().bottom"
    assert tab.eval(bottom) <= 900
    assert tab.eval("document.querySelector('.continuation').textContent") == "It goes on"
    tab.eval("document.querySelector('.steering input').value = 1")
    tab.eval("document.querySelector('.steering input').dispatchEvent(new Event('input'))")
    assert tab.eval("document.querySelector('.continuation').textContent") == "It is steered"
    assert_quiet(tab, scripts=1)


def test_a_column_without_values_is_not_drawn(tab, tmp_path):
    accuracies = (Accuracy("rule", 0.9, 0.8, 0.95), Accuracy("random label", 0.5, 0.4, 0.6))
    write_dashboard(tmp_path / "page.html", dashboard([entry(accuracies=accuracies)]))
    tab.open(tmp_path / "page.html")

    cells = "[...document.querySelector('#feature table').querySelectorAll('thead th')]"
    heads = tab.eval(f"{cells}.map((e) => e.textContent).join()")
    assert heads == "score,balanced accuracy,interval"


def test_hostile_words_of_an_investigation_stay_words(tab, tmp_path):
    by_hand = ExperimentEntry(
        experiment_id="0001",
        timestamp=1_790_000_000.0,
        hypothesis=HOSTILE,
        method=HOSTILE,
        result={"effect": 0.82, HOSTILE: 1.5},
        informative=True,
        conclusion=HOSTILE,
        duration_seconds=1.0,
    )
    asked = {"question": HOSTILE, "model": HOSTILE}
    _, page = write_investigation_report(tmp_path, [by_hand], config=asked, spent={}, stop_reason=HOSTILE)

    tab.open(page)

    assert_quiet(tab)
    assert HOSTILE in tab.eval("document.querySelector('h1').textContent")


@pytest.mark.parametrize("offset", range(0, len(WORDS), 7))
def test_hostile_words_in_every_field_of_every_kind_do_nothing(tab, tmp_path, offset):
    results = [with_words(make(), rotated(WORDS, offset + i)) for i, make in enumerate(EXAMPLES.values())]
    word = WORDS[offset]

    path = save_report(results, tmp_path / "page.html", title=word, description=word, include_json=True)

    tab.open(path)
    assert_quiet(tab)
    assert tab.eval("document.querySelectorAll('main > section').length") == len(EXAMPLES) + 1
    assert tab.eval("document.querySelectorAll('svg.figure[aria-label]').length") >= len(EXAMPLES)


def test_hostile_words_do_nothing_in_pages_with_a_script(tab, tmp_path):
    for i, (kind, make) in enumerate(EXAMPLES.items()):
        interactive(with_words(make(), rotated(WORDS, i)), tmp_path / f"{kind}.html", title=WORDS[i % 7])
        tab.open(tmp_path / f"{kind}.html")
        for key in ("Tab", "ArrowDown", "ArrowRight", "Enter"):
            tab.key(key)
        assert_quiet(tab, scripts=1)

    write_dashboard(tmp_path / "page.html", dashboard([entry(w, feature_id=i) for i, w in enumerate(WORDS)]))
    tab.open(tmp_path / "page.html")
    tab.key("/")
    for i in range(1, len(WORDS)):
        tab.key("ArrowDown")
        assert tab.settled("location.hash", f"#f{i}") == f"#f{i}"
        assert_quiet(tab, scripts=1)


def test_pages_fit_a_telephone_the_dark_and_paper(tab, tmp_path):
    long = with_words(patching(), rotated([" a rather long word or two", "x" * 300], 0))
    results = [*(make() for make in EXAMPLES.values()), long]
    pages = [
        save_report(results, tmp_path / "report.html"),
        interactive(EXAMPLES["attention_pattern"](), tmp_path / "attention.html").path,
        interactive(EXAMPLES["workflow"](), tmp_path / "workflow.html").path,
        write_dashboard(tmp_path / "dashboard.html", dashboard([entry("x" * 300)])),
    ]

    for page in pages:
        tab.open(page)
        paper = {}
        for name, width, medium, scheme in (
            ("telephone", 400, "", "light"),
            ("light", 1100, "", "light"),
            ("dark", 1100, "", "dark"),
            ("paper", 1100, "print", "light"),
        ):
            tab.size(width, 900)
            tab.media(medium, scheme)
            tab.picture(tmp_path / f"{page.stem}-{name}.png", whole=False)
            assert tab.eval("document.documentElement.scrollWidth") <= width, (page.stem, name)
            paper[name] = tab.eval("getComputedStyle(document.body).backgroundColor")
        tab.size(1100, 900)
        tab.media()
        assert paper["light"] == paper["paper"] == "rgb(255, 255, 255)"
        assert paper["dark"] == "rgb(20, 23, 27)"
        assert len({(tmp_path / f"{page.stem}-{n}.png").read_bytes() for n in paper}) == 4


def test_without_its_script_a_cell_still_has_its_title(tab, tmp_path):
    interactive(patching(), tmp_path / "page.html")
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(tmp_path / "page.html")
        titles = tab.eval("document.querySelectorAll('svg.map rect > title').length")
        hidden = tab.eval("document.querySelector('.readout').hidden")
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)

    assert titles == 12
    assert hidden


def test_a_large_page_of_patterns_tells_each_cell_though_few_have_titles(tab, tmp_path):
    rng = np.random.default_rng(0)
    weights = np.tril(rng.random((90, 24, 24)))
    patterns = weights / weights.sum(-1, keepdims=True)
    heads = tuple((i // 9, i % 9) for i in range(90))
    result = replace(
        EXAMPLES["attention_pattern"](), heads=heads, patterns=patterns, tokens=[f" t{i}" for i in range(24)]
    )

    page = interactive(result, tmp_path / "page.html")
    tab.open(tmp_path / "page.html")
    tab.eval("document.querySelectorAll('svg.map')[89].focus()")
    for key in ("ArrowDown", "ArrowDown"):
        tab.key(key)

    told = f"L9.H8, source 0 ' t0', destination 2 ' t2': {patterns[89][2, 0]:.3g}"
    assert tab.settled(READOUT, told) == told
    assert len(page.html) < 8_000_000
    tab.eval("document.querySelector('.choose input').focus()")
    tab.type("l4. h3")
    assert tab.settled("document.querySelector('.choose output').textContent", "1 of 90") == "1 of 90"
