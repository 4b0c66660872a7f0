"""Every number of the report of an investigation stands in a line of the log, and the page says in which."""

from __future__ import annotations

import re

import pytest

from mlxterp.autointerpret import ExperimentEntry
from mlxterp.reports.investigation import write_investigation_report
from tests.reports.test_reports import CONFIG, DECLARED, JUDGED, SPENT, closing, entry, patching
from tests.reports.traced_numbers import Records, untraced, walked

STOP = "the question is answered: 0011 is the conclusion"
SELFTEST = "In 250 claims about nothing this rule kept 0."
EXPLORED = {"kind": "patching", **patching().to_dict()}


def judged(site, verdict, tier="finding", *, checks=None, **declared):
    said = {"claim": f"{site[0]} carries 20% of it.", "site": list(site), **declared}
    return JUDGED | {
        "verdict": verdict,
        "tier": tier,
        "declared": DECLARED | said,
        "checks": {"positive_control": True},
        "reasons": ["measured again on 24 independent clusters"],
    }


PREDICTED = {
    "sha256": "0" * 64,
    "numbers": [
        {"name": "recovery of L9", "value": 0.2, "interval": [0.1, 0.3], "measured": 0.75, "held": False}
    ],
}
GATE = {"model": {"preference": 0.979, "t": 14.21}, "twin": {"preference": 0.5, "t": 0.4}}


def every_kind_of_line():
    """A log in which each part of the report has something to say."""
    sets = ("L9.z.h6", "L11.z.h2")
    return [
        entry(1, result={"step": "sweep", "analysis": EXPLORED}, evidence={"predicted": PREDICTED}),
        entry(2, result={"numbers": {"a": 1.5, "b": -0.25}}),
        entry(3, evidence=judged(["L9.z.h6"], "supported")),
        entry(4, evidence=judged(["L9.z.h7"], "ruled_out")),
        entry(5, evidence=judged(["L10.z.h1"], "refuted")),
        entry(6, evidence=judged(sets, "supported", "claim")),
        entry(7, evidence=judged(["L8.z.h1"], "inconclusive", "note") | {"reasons": ["missing: interval"]}),
        entry(8, evidence=judged(["L3.z.h3"], "supported")),
        entry(9, evidence=judged(["L3.z.h3"], "refuted") | {"relations": {"retracts": ["0008"]}}),
        entry(
            10,
            verdict="invalid:contract",
            tier="invalid",
            evidence={"reasons": ["it changed setup.py 3 times"], "execution": {"isolation": "none"}},
            result={"error": "ended after 120 s", "numbers": {}},
        ),
        entry(11, verdict="note", tier="note", metadata={"role": "conclusion"}, result={}),
        entry(12, record=False, result={"layer_5_effect": 0.82}),
        closing(
            13,
            **{
                "0003": {
                    "effect": 0.4123,
                    "low": 0.334,
                    "high": 0.481,
                    "level": 0.00134,
                    "look": 1,
                    "gate": GATE,
                },
                "0004": {"effect": -0.0004, "low": -0.0021, "high": 0.0013, "level": 0.002, "look": 2},
                "0005": {"effect": -0.31, "low": -0.4, "high": -0.22, "level": 0.002, "look": 1},
                "0006": {"effect": 0.55, "low": 0.5, "high": 0.6, "level": 0.002, "look": 1},
                "0008": {"effect": 0.2, "low": 0.15, "high": 0.25, "level": 0.002, "look": 1},
                "0009": {"effect": -0.2, "low": -0.25, "high": -0.15, "level": 0.002, "look": 1},
            },
        ),
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page, and what its numbers may come from."""
    entries = every_kind_of_line()
    asked = CONFIG | {"question": "Do 2 heads of layer 9 do it?", "hours": 2.0}
    _, page = write_investigation_report(
        tmp_path_factory.mktemp("project"),
        entries,
        config=asked,
        spent=SPENT,
        stop_reason=STOP,
        selftest=SELFTEST,
    )
    accounts = {"spent": SPENT, "config": asked, "run": {"stop_reason": STOP, "selftest": SELFTEST}}
    lines = {each.experiment_id: each.to_dict() for each in entries}
    return page.read_text(encoding="utf-8"), Records(lines, accounts)


def test_every_number_of_the_report_is_what_its_line_holds(report):
    html, records = report

    assert untraced(html, records) == []
    fields = {element.attrs.get("data-field", "") for element, _ in walked(html).sourced}
    for wanted in (
        "/result/held_out/0003/effect",
        "/result/held_out/0003/gate/model/preference",
        "/result/held_out/0004/high",
        "/record/declared/sesoi",
        "/record/declared/forecast",
        "/record/predicted/numbers/0/interval/1",
        "/result/analysis/effects",
        "/record/reasons/0",
    ):
        assert wanted in fields, wanted


@pytest.mark.parametrize(
    ("written", "changed"),
    [
        (">0.41</data>", ">0.42</data>"),
        ('value="0.4123"', 'value="0.4124"'),
        ("<h2>Findings</h2>", "<h2>Findings: 7</h2>"),
        ('data-field="/result/held_out/0003/low"', 'data-field="/result/held_out/0003/lowest"'),
        (">98 %</data>", ">97 %</data>"),
        (">3 min 12 s</data>", ">5 min 12 s</data>"),
        (">L9.z.h6 carries 20% of it.</span>", ">L9.z.h6 carries 30% of it.</span>"),
    ],
)
def test_a_number_that_is_changed_is_found(report, written, changed):
    html, records = report
    assert written in html

    assert untraced(html.replace(written, changed, 1), records)


def test_every_reference_to_a_line_leads_somewhere(report):
    html, _ = report

    wanted = set(re.findall(r'href="#([^"]+)"', html))
    assert wanted <= walked(html).ids
    assert {f"experiment-{i:04d}" for i in range(1, 13)} <= walked(html).ids


def test_the_first_line_counts_what_was_decided_what_it_cost_and_what_needs_a_person(report):
    html, _ = report

    lede = re.search(r'<p class="lede">(.*?)</p>', html)[1]
    assert re.sub("<[^>]*>", "", lede) == (
        "4 findings, 1 ruled out, 1 retracted, 1 inconclusive, 2 leads, 1 invalid, 1 note, 1 logged by hand; "
        "3 min 12 s, $0.50; 2 things need you."
    )


def test_a_finding_names_sites_searched_gate_placebos_rivals_and_its_replay(report):
    html, _ = report

    article = re.search(r'<article id="experiment-0003".*?</article>', html, re.DOTALL)[0]
    text = " ".join(re.sub("<[^>]*>", "", article).split())
    for said in (
        "Supported: L9.z.h6 carries 20% of it.",
        "Held-out effect 0.41, interval 0.33 to 0.48, on 24 independent clusters that no experiment saw",
        "24 placebos set a bar of 0.02",
        "Sites searched before it was declared: 12, while exploring in 0001.",
        "the answer is preferred in 98 % of runs, the gap is 14.2 standard errors from zero",
        "with shuffled weights the answer is preferred in 50 % and the gate fails",
        "It would be wrong if the effect is below 0.1.",
        "autointerp replay 0003",
    ):
        assert said in text
    assert 'class="effect"' in article


def test_the_sketch_holds_supported_sites_only_and_says_so_in_words(report):
    html, _ = report

    sketch = re.search(r'<svg class="sketch".*?</svg>', html, re.DOTALL)[0]
    assert re.findall(r'class="site name"[^>]*>([^<]*)<', sketch) == ["L9.H6", "L11.H2"]
    said = re.sub(
        "<[^>]*>", "", re.search(r'id="circuit-text">(.*?)</span></figcaption>', html, re.DOTALL)[1]
    )
    assert said == (
        "From the input up: L9.H6: effect 0.41 (0003, 0006); L11.H2 (0006). Together sufficient: L9.H6 and "
        "L11.H2: effect 0.55 (0006). No edge between them was tested by a claim, so none is drawn."
    )


def test_the_next_experiments_are_of_several_kinds(report):
    html, _ = report

    listed = re.search(r"<ol>(.*?)</ol>", html[html.index('id="continue"') :], re.DOTALL)[1]
    lines = [re.sub("<[^>]*>", "", each) for each in re.findall(r"<li>(.*?)</li>", listed)]
    assert lines[0].startswith("Decide 0007, which is open: missing: interval")
    assert lines[1].startswith("Test the rival of 0006: Any head of layer 9")
    assert lines[2].startswith("Find out why 0001 came out otherwise")
    assert lines[3].startswith("Test the rival of 0003")


def test_ids_that_may_not_stand_in_an_address_do_not(tmp_path):
    odd = ExperimentEntry(
        experiment_id='"><b>1',
        hypothesis="h",
        method="m",
        result={"a": 1.5},
        informative=True,
        conclusion="c 1",
        duration_seconds=1.0,
    )
    _, page = write_investigation_report(tmp_path, [odd], config={}, spent={}, stop_reason="")

    assert "experiment-unnumbered" in walked(page.read_text(encoding="utf-8")).ids
