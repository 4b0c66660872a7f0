"""Reports: complete, escaped, self-contained, and honest about what was confirmed."""

from __future__ import annotations

import base64
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.errors import ResultError
from mlxterp.plots import cell_title
from mlxterp.reports import generate_report, interactive, save_report, write_investigation_report
from mlxterp.reports.investigation import investigation
from mlxterp.results import AblationResult, AblationRow, MetricsResult, MetricsRow
from tests.payloads import PAYLOADS, Seen, assert_harmless, assert_harmless_markdown, rendered
from tests.results import every_kind
from tests.results.every_kind import EXAMPLES


def patching(text=" Tower", **changes):
    effects = np.zeros((4, 3))
    effects[1, 1] = 0.75
    plain = {"effects": effects, "labels": {"pos": ["The", text, " is"]}, "ci_low": None, "ci_high": None}
    return every_kind.patching(**(plain | {"per_example": None, "cautions": ()} | changes))


def ablation(text="found heads"):
    return AblationResult(
        rows=[AblationRow(label=text, components=("L1.H0",), value=1.0, share=0.25)],
        ablation="mean",
        metric=text,
        clean_metric=4.0,
        measured_on={text: text},
    )


def metrics(text="The Tower is in"):
    return MetricsResult(rows=[MetricsRow(prompt=text, answer=text, prob=0.5, rank=1, top_token=text)])


def entry(number=1, *, verdict="lead", tier="lead", record=True, **changes):
    given = {
        "hypothesis": "The landmark is read at its last token.",
        "method": "activation_patching",
        "result": {
            "step": "residual_sweep",
            "numbers": {"recovery": 0.75, "sites": 12},
            "analysis": patching().to_dict(),
        },
        "informative": True,
        "conclusion": "The residual stream at ' Tower' recovers 0.75 of the gap. Nothing else does.",
        "duration_seconds": 9.3,
        "experiment_id": f"{number:04d}",
        "timestamp": 1_790_000_000.0 + number,
    }
    evidence = {
        "verdict": verdict,
        "tier": tier,
        "rule": "keep/1",
        "driver": {"name": "scripted"},
        "reasons": [],
    }
    evidence |= changes.pop("evidence", {})
    return ExperimentEntry(**(given | changes), record=evidence if record else None)


CONFIG = {"question": "How does it recall the city?", "model": "tiny", "max_experiments": 40, "max_usd": 5.0}
SPENT = {"experiments": 3, "seconds": 192.3, "usd": 0.5}


def view(tmp_path, entries, **changes):
    return investigation(
        tmp_path, entries, **({"config": CONFIG, "spent": SPENT, "stop_reason": "STOP"} | changes)
    )


def write(tmp_path, entries, **changes):
    given = {"config": CONFIG, "spent": SPENT, "stop_reason": "the question is answered"}
    paths = write_investigation_report(tmp_path, entries, **(given | changes))
    return tuple(path.read_text(encoding="utf-8") for path in paths)


def test_a_markdown_report_holds_title_description_summary_and_numbers():
    report = generate_report(patching(), title="Factual Recall", description="First part.\n\nSecond part.")

    assert report.startswith("# Factual Recall\n\nFirst part.\n\nSecond part.\n")
    assert "## Patching resid\\_pre" not in report
    assert "L1 pos 1 ' Tower' recovers 0.75 of the gap" in report
    assert "<td>L1 pos 1 ' Tower'</td>" in rendered(report)


def test_a_single_result_is_its_own_title_and_several_are_sections():
    assert generate_report(patching()).startswith("# Patching resid_pre by layer and position\n")

    several = generate_report([patching(), ablation()], title="Both")

    assert re.findall(r"^#+ .*", several, re.MULTILINE) == [
        "# Both",
        "## Patching resid_pre by layer and position",
        "## Ablating found heads (mean ablation)",
    ]


def test_what_to_dict_gives_is_reported_like_the_result_itself():
    made = re.compile(r"Made by mlxterp, .*")

    assert made.sub("", generate_report(patching().to_dict())) == made.sub("", generate_report(patching()))


def test_an_html_report_is_one_harmless_page_with_a_figure():
    report = generate_report([patching(), ablation(), metrics()], format="html")

    assert_harmless(report)
    assert report.count("<svg") == 2
    assert '<html lang="en">' in report
    assert '<meta charset="utf-8">' in report


def test_without_plots_the_figure_is_described_in_words():
    report = generate_report(patching(), format="html", include_plots=False)

    assert "<svg" not in report
    assert (
        "Heatmap of recovery, 3 positions by 4 layers. Strongest: L1 position 1 &#39; Tower&#39;: 0.75."
        in report
    )


@pytest.mark.parametrize("format", ["markdown", "html"])
def test_the_json_appendix_is_one_array_that_reads_back(format):
    report = generate_report([patching("```` </script>"), ablation()], format=format, include_json=True)

    if format == "html":
        text = re.search(r"<pre>(.*?)</pre>", report, re.DOTALL)[1]
        text = (
            text.replace("&#34;", '"')
            .replace("&#39;", "'")
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&amp;", "&")
        )
    else:
        (text,) = (token.content for token in MarkdownIt().parse(report) if token.type == "fence")
    assert [each["kind"] for each in json.loads(text)] == ["patching", "ablation"]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_in_any_field_of_a_result_stays_text(payload):
    results = [
        patching(
            payload, metric=payload, component=payload, measured_on={payload: payload, "prompts": [payload]}
        ),
        ablation(payload),
        metrics(payload),
    ]

    given = {"title": payload, "description": payload, "include_plots": False, "include_json": True}
    page = generate_report(results, format="html", **given)
    text = generate_report(results, title=payload, description=payload)

    assert_harmless(page)
    assert_harmless_markdown(text)


def hostile_entries(payload):
    result = {
        "step": payload,
        "numbers": {payload: payload, "x": [payload]},
        "analysis": metrics(payload).to_dict(),
    }
    evidence = {
        "reasons": [payload],
        "blas": payload,
        "machine": {payload: payload},
        "driver": {"name": payload},
    }
    return [
        entry(hypothesis=payload, method=payload, conclusion=payload, result=result, evidence=evidence),
        entry(2, verdict=payload, tier=payload, conclusion=payload, result=result),
        entry(
            3,
            verdict=f"invalid:{payload}",
            tier="invalid",
            evidence={"reasons": [payload]},
            result={payload: 1.0},
        ),
        entry(experiment_id=payload, conclusion=payload, metadata={"role": "conclusion"}, result={}),
    ]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_in_any_field_of_an_entry_stays_text(tmp_path, payload):
    config = {"question": payload, "model": payload}

    text, page = write(tmp_path, hostile_entries(payload), config=config, stop_reason=payload)

    assert_harmless(page)
    assert_harmless_markdown(text)


def test_a_payload_is_still_readable_as_what_it_is():
    page = Seen(generate_report(patching("<b>$x$</b>"), title="<i>t</i>", format="html"))

    assert "<i>t</i>" in page.text
    assert "1 '<b>$x$</b>'" in page.text


def test_markdown_figures_stand_beside_the_page_and_stale_ones_go(tmp_path):
    path = save_report([patching(), ablation()], tmp_path / "new" / "report.md")

    linked = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", path.read_text(encoding="utf-8"))
    assert [target for _, target in linked] == [
        "report_files/001-patching-resid-pre-by-layer-and-position.png",
        "report_files/002-what-is-left-after-ablating.png",
    ]
    assert "Strongest: L1 position 1 ' Tower': 0.75" in linked[0][0]
    assert (path.parent / linked[0][1]).read_bytes().startswith(b"\x89PNG")

    (path.parent / "report_files" / "mine.png").write_bytes(b"kept")
    save_report(patching(), path)

    assert sorted(p.name for p in (path.parent / "report_files").iterdir()) == [
        Path(linked[0][1]).name,
        "mine.png",
    ]


@pytest.mark.parametrize("name", ["r.html", "r.HTML", "r.htm", "r.md", "r.Markdown"])
def test_the_suffix_says_the_format(tmp_path, name):
    path = save_report(patching(), tmp_path / name, title="T")

    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") == name.lower().startswith("r.h")


def test_an_unknown_suffix_or_format_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ResultError, match=r"'r.docx'.*\.md, \.markdown, \.html, \.htm, \.ipynb"):
        save_report(patching(), tmp_path / "r.docx")
    with pytest.raises(ResultError, match=r"'r.PDF': PDF is made by a browser\. Save it as 'r\.html'"):
        save_report(patching(), tmp_path / "r.PDF")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ResultError, match="markdown, html"):
        generate_report(patching(), format="pdf")  # type: ignore[arg-type]


@pytest.mark.parametrize("results", [[], [3], {"kind": "patching"}, "text"])
def test_what_is_no_result_is_refused(results):
    with pytest.raises(ResultError):
        generate_report(results)


def test_a_report_that_cannot_be_made_leaves_the_old_one(tmp_path):
    path = save_report(patching(), tmp_path / "report.html", title="old")

    with pytest.raises(ResultError):
        save_report([patching(), {"kind": "nothing"}], path)

    assert "<title>old</title>" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_figures_are_never_written_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "report_files").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ResultError, match="is a link"):
        save_report(patching(), tmp_path / "report.md")

    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_notebook_shows_a_result_with_its_figure():
    html = patching("<b>")._repr_html_()

    assert "<svg" in html
    assert "<b>" not in re.sub(r"<figcaption><b>", "", html)


def test_the_investigation_opens_with_question_tally_and_answer(tmp_path):
    answer = entry(
        3,
        conclusion="It is read at the landmark. Two heads move it.",
        result={},
        metadata={"role": "conclusion"},
    )

    text, page = write(tmp_path, [entry(1), entry(2, verdict="note", tier="note", informative=False), answer])

    opening = "**0 findings, 2 leads, 1 note**; 3 min 12 s, \\$0.50; nothing needs you."
    assert text.startswith(f"# How does it recall the city?\n\n{opening}")
    assert "## What the researcher concludes\n\n**It is read at the landmark.** Two heads move it.\n" in text
    seen = "".join(Seen(page).text)
    assert (
        seen.index("0 findings, 2 leads") < seen.index("Two heads move it.") < seen.index("Everything tried")
    )


def test_a_lead_is_said_to_be_unconfirmed_and_never_stands_among_findings(tmp_path):
    text, _ = write(tmp_path, [entry(1)])

    assert "## Findings" not in text
    assert "The supervisor has confirmed none on pairs that it holds out; which pairs" in text
    assert "The supervisor has not confirmed it on the pairs that it holds out." in text


DECLARED = {
    "site": ["L9.z.h6"],
    "intervention": {"op": "patch", "source": "clean"},
    "sesoi": 0.1,
    "forecast": {"supported": 0.8, "refuted": 0.1, "ruled_out": 0.1},
    "rivals": ["Any head of layer 9 does as well."],
    "falsified_if": "the effect is below 0.1",
}
JUDGED = {"declared": DECLARED, "measured": {"confirm": {"sha256": "0" * 64}}, "rule": "keep/2"}


def closing(number, **held_out):
    """The line that shows held-out numbers, as the supervisor appends it."""
    numbers = {name: {"n": 24, "placebos": 24, "bar": 0.02, **each} for name, each in held_out.items()}
    record = {"verdict": "closing", "tier": None}
    return entry(number, result={"held_out": numbers}, conclusion="Closed.", evidence=record)


def test_a_finding_comes_with_its_held_out_effect_what_would_change_it_and_its_replay(tmp_path):
    entries = [
        entry(1, verdict="supported", tier="finding", evidence=JUDGED),
        entry(2, verdict="ruled_out", tier="finding", evidence=JUDGED),
        entry(3),
        closing(
            4,
            **{
                "0001": {"effect": 0.41, "low": 0.33, "high": 0.48},
                "0002": {"effect": 0.01, "low": -0.02, "high": 0.04},
            },
        ),
    ]
    shown = view(tmp_path, entries)
    text, page = write(tmp_path, entries)

    assert str(shown.tally) == "1 finding, 1 ruled out, 1 lead"
    assert [item.id for item in shown.findings] == ["0001", "0002"]
    assert [item.id for item in shown.leads] == ["0003"]
    assert [item.id for item in shown.tried] == ["0001", "0002", "0003"]
    assert str(shown.findings[0].evidence.effect) == (
        "Held-out effect 0.41, interval 0.33 to 0.48, on 24 independent clusters that no experiment saw; the "
        "smallest effect of interest is 0.1, and 24 placebos set a bar of 0.02."
    )
    assert shown.effects.labels == ("0001 L9.H6", "0002 L9.H6")
    assert shown.effects.intervals == ((0.33, 0.48), (-0.02, 0.04))
    assert "It would be wrong if the effect is below 0.1. Rival explanations: Any head of layer 9" in text
    assert "autointerp replay 0001" in page


def test_before_closing_a_finding_shows_no_number_and_says_when(tmp_path):
    text, page = write(tmp_path, [entry(1, verdict="supported", tier="finding", evidence=JUDGED)])

    for each in (text, page):
        assert "Its held-out numbers are shown once the investigation is closed." in each
        assert "Held-out effect" not in each


def test_what_a_person_must_put_right_is_counted_on_the_first_line(tmp_path):
    few = {**JUDGED, "reasons": ["needs >= 24 independent clusters, setup.py has 10"]}
    text, page = write(tmp_path, [entry(1, verdict="inconclusive", tier="note", evidence=few)])

    assert "; 1 thing needs you." in text
    assert "setup.py has 10" in "".join(Seen(page).text)
    assert "Decide 0001, which is open" in text


def test_surprises_are_failed_predictions_and_verdicts_that_the_forecast_gave_little(tmp_path):
    predicted = {
        "sha256": "0" * 64,
        "numbers": [
            {"name": "recovery", "value": 0.2, "interval": [0.1, 0.3], "measured": 0.75, "held": False},
            {"name": "sites", "value": 12, "interval": [11, 13], "measured": 12, "held": True},
        ],
    }
    shown = view(
        tmp_path,
        [
            entry(1, evidence={"predicted": predicted}),
            entry(2, verdict="refuted", tier="finding", evidence=JUDGED),
            entry(3, verdict="supported", tier="finding", evidence=JUDGED),
        ],
    )

    first, second = map(str, shown.surprises)
    assert first == "0001: recovery was predicted within [0.1, 0.3] and came out as 0.75."
    assert second.startswith("0002 came out as refuted, which its forecast gave 0.1")
    assert str(shown.calibration).startswith("2 forecasts gave what happened a probability of 0.45")


def test_a_retracted_finding_is_no_finding_and_names_what_overturned_it(tmp_path):
    shown = view(
        tmp_path,
        [
            entry(1, verdict="supported", tier="finding", evidence=JUDGED),
            entry(
                2,
                verdict="refuted",
                tier="finding",
                evidence=JUDGED | {"relations": {"retracts": ["0001"]}},
            ),
        ],
    )

    assert [item.id for item in shown.findings] == ["0002"]
    assert [item.id for item in shown.wrong] == ["0001"]
    assert str(shown.wrong[0].overturned) == "It was 0002."
    assert list(map(str, shown.needs)) == ["0001 is retracted: 0002 measured the opposite."]


@pytest.mark.parametrize(
    ("verdict", "tier", "group"),
    [
        ("lead", "lead", "lead"),
        ("note", "note", "note"),
        ("supported", "finding", "finding"),
        ("refuted", "finding", "finding"),
        ("supported", "claim", "finding"),
        ("ruled_out", "finding", "ruled out"),
        ("inconclusive", "note", "inconclusive"),
        ("invalid:contract", "invalid", "invalid"),
        ("interrupted", "invalid", "interrupted"),
        ("supported", "retracted", "retracted"),
    ],
)
def test_every_verdict_has_its_place_in_the_tally(tmp_path, verdict, tier, group):
    shown = view(tmp_path, [entry(1, verdict=verdict, tier=tier)])

    assert shown.tried[0].group == group
    assert shown.tried[0].badge.meaning
    assert bool(shown.wrong) == (group in ("invalid", "interrupted", "retracted"))


def test_what_went_wrong_is_told_with_its_reasons(tmp_path):
    broken = entry(
        2, verdict="invalid:execution", tier="invalid", evidence={"reasons": ["stopped after 120 s"]}
    )

    text, _ = write(tmp_path, [entry(1), broken])

    assert "It crashed, ran out of time or memory, or was killed. Recorded: stopped after 120 s." in text


def test_a_guide_style_entry_logged_by_hand_gets_its_numbers_in_a_table(tmp_path):
    by_hand = entry(record=False, result={"layer_5_effect": 0.82, "layer_10_effect": 0.15})

    text, page = write(tmp_path, [by_hand])

    assert "| layer 5 effect | 0.82 |" in text
    assert "**1 logged by hand**" in text
    assert "No supervisor saw them run." in text
    assert "layer 10 effect" in page


def test_an_analysis_logged_as_the_result_itself_is_drawn(tmp_path):
    text, page = write(tmp_path, [entry(result=patching().to_dict())])

    assert page.count("<svg") == 2  # at the lead, and on the first screen, since no claim was decided
    assert "report_files/001-patching-resid-pre-by-layer-and-position.png" in text


@pytest.mark.parametrize(
    "analysis",
    [
        {"kind": "patching"},
        patching().to_dict() | {"effects": "oops"},
        patching().to_dict() | {"labels": 3},
        patching().to_dict() | {"effects": [], "axes": ["layer"], "labels": {}},
        {"kind": "logit_attribution", "head_contributions": 1},
        {"kind": "ablation", "rows": [{"label": 1}], "ablation": "mean", "metric": "m", "clean_metric": 1},
        {"kind": "head_scores", "scores": {}},
    ],
)
def test_an_analysis_that_cannot_be_shown_is_named_and_the_report_is_made(tmp_path, analysis):
    text, page = write(tmp_path, [entry(result={"analysis": analysis}), entry(2)])

    assert "0002" in text
    assert_harmless(page)
    assert ("cannot be shown" in page) or ("No effect is a finite number" in page)


def test_nested_numbers_of_a_step_are_named_by_their_path(tmp_path):
    numbers = {"strongest": {"site": "L1 pos 1 ' Tower'", "ci": [0.5, 0.75]}, "arrives": None, "heads": []}

    shown = view(tmp_path, [entry(result={"step": "residual", "numbers": numbers})])

    assert shown.leads[0].numbers == (
        ("strongest site", "L1 pos 1 ' Tower'"),
        ("strongest ci", "0.5, 0.75"),
        ("arrives", "none"),
        ("heads", "none"),
    )


def test_a_failed_run_shows_what_it_left_behind(tmp_path):
    left = {"error": "ZeroDivisionError: division by zero", "traceback": "line 3, in <module>"}
    failed = entry(1, verdict="invalid:execution", tier=None, method="", result=left, informative=False)

    _, page = write(tmp_path, [failed])

    assert "ZeroDivisionError: division by zero\n\nline 3, in &lt;module&gt;" in page


def test_a_run_that_the_supervisor_did_not_survive_is_interrupted_not_invalid(tmp_path):
    ended = entry(
        1, verdict="invalid:execution", tier=None, evidence={"execution": {"status": "interrupted"}}
    )

    assert str(view(tmp_path, [ended]).tally) == "0 findings, 0 leads, 1 interrupted"


def test_an_empty_log_makes_a_report_that_says_so(tmp_path):
    text, page = write(tmp_path, [], spent={})

    assert "**No experiments**; dollars not known; nothing needs you." in text
    assert "No entry was kept." in page


def test_what_is_not_known_is_never_a_zero(tmp_path):
    shown = view(tmp_path, [], spent={"experiments": 3, "seconds": None, "usd": None})

    assert "dollars not known" in str(shown.spent)
    assert {limit.name: (str(limit.spent), str(limit.limit)) for limit in shown.limits} == {
        "experiments": ("3", "of 40"),
        "dollars": ("not known", "of $5.00"),
    }


def test_the_report_names_model_machine_and_blas_from_the_log(tmp_path):
    shown = view(tmp_path, [entry(evidence={"machine": "Linux x86_64", "blas": "OpenBLAS 0.3.30"})])

    assert dict(shown.measured_with) == {
        "model": "tiny",
        "computed by": "OpenBLAS 0.3.30; reference BLAS",
        "machine": "Linux x86_64",
        "researcher": "scripted",
        "rule": "keep/1",
    }


def test_a_kept_entry_links_its_files_and_its_commit(tmp_path):
    (tmp_path / "findings" / "0001-the-residual-stream").mkdir(parents=True)

    text, page = write(tmp_path, [entry(1)])

    assert "git log --grep 'Autointerp-Experiment: 0001'" in text
    assert "findings/0001-the-residual-stream/" in text
    assert "findings/0001-the-residual-stream/" in page


def test_numbers_that_are_not_finite_are_shown_as_not_available(tmp_path):
    shown = view(tmp_path, [entry(result={"numbers": {"a": math.nan, "b": "Infinity", "c": "NaN"}})])

    assert shown.leads[0].numbers == (("a", "n/a"), ("b", "infinity"), ("c", "n/a"))


def test_the_same_log_gives_the_same_report_but_for_the_time_it_was_made(tmp_path):
    made = re.compile(r"Made by mlxterp from results.jsonl, [^.]*")
    entries = [entry(1), entry(2, verdict="note", tier="note")]

    first = [made.sub("", text) for text in write(tmp_path, entries)]

    assert [made.sub("", text) for text in write(tmp_path, entries)] == first


def test_a_report_holds_fifty_sections_with_twenty_figures():
    results = [patching() for _ in range(20)] + [metrics() for _ in range(30)]

    report = generate_report(results, format="html")

    assert report.count("<svg") == 20


def test_a_description_is_commonmark_that_can_do_nothing():
    text = "# Why\n\n*Two* prompts, `code`, [paper](https://example.invalid)\n\n- <b>one</b>\n\n![x](y.png)"

    page = generate_report(patching(), description=text, format="html")

    header = page[page.index("<header>") : page.index("</header>")]
    assert "<h3>Why</h3>" in header
    assert "<em>Two</em> prompts, <code>code</code>" in header
    assert '<a href="https://example.invalid" rel="noopener noreferrer">paper</a>' in header
    assert "&lt;b&gt;one&lt;/b&gt;" in header
    assert "<img" not in header


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("*Two* prompts.\n\n- one\n- `two`", True),
        ("[paper](https://example.invalid)", True),
        ("[local](file:///etc/passwd)", False),
        ("<b>bold</b>", False),
        ("![x](https://example.invalid/x.png)", False),
        ("```\nleft open", False),
        ("[x]: https://example.invalid", False),
        ("# A heading of its own", False),
    ],
)
def test_a_description_stays_as_it_is_in_markdown_only_where_it_is_harmless(text, kept):
    report = generate_report(patching(), description=text)

    assert (f"\n\n{text}\n\n" in report) == kept
    assert "L1 pos 1 ' Tower' recovers 0.75 of the gap" in "".join(Seen(rendered(report)).text)
    assert "<td>L1 pos 1" in rendered(report)


def test_a_workflow_has_a_section_for_each_of_its_steps():
    workflow = EXAMPLES["workflow"]()

    page = generate_report([workflow, patching()], format="html")
    text = generate_report([workflow, patching()], title="Both")

    assert re.findall(r"^#+ .*", text, re.MULTILINE) == [
        "# Both",
        "## Behavior localization",
        "### dla: Direct logit attribution: ' Paris' over ' Rome'",
        "### patch_mlp: Patching resid_pre by layer and position",
        "## Patching resid_pre by layer and position",
    ]
    assert re.findall(r"<h(\d)>", page) == ["1", "2", "3", "3", "2"]
    assert text.index("MLPs write most. They are late.") < text.index("The logit difference is")
    assert text.count("model: tiny") == 2  # the steps' own is the workflow's, and is said once


def test_a_long_report_begins_with_its_contents():
    page = generate_report([patching()] * 5, format="html")

    targets = [
        value
        for tag, name, value in Seen(page).attributes
        if tag == "a" and name == "href" and value != "#main"
    ]
    assert targets == [f"#section-{i}" for i in range(1, 6)]
    assert set(re.findall(r'<section id="([^"]*)"', page)) == {target[1:] for target in targets}


def test_a_notebook_is_valid_and_holds_its_figures_and_its_results(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="the extra `notebook` brings it")
    path = save_report([patching(), ablation()], tmp_path / "new" / "r.IPYNB", title="T", include_json=True)

    made = nbformat.read(path, as_version=4)
    nbformat.validate(made)
    assert [cell.cell_type for cell in made.cells] == ["markdown"] * 3 + ["code"]
    assert made.cells[0].source.startswith("# T\n")
    (name,) = re.findall(r"\(attachment:([\w.-]+)\)", made.cells[1].source)
    assert base64.b64decode(made.cells[1].attachments[name]["image/png"]).startswith(b"\x89PNG")
    loaded = {}
    exec(made.cells[3].source.rpartition("\n")[0], loaded)
    assert loaded["results"] == [patching(), ablation()]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_stays_text_in_a_notebook(tmp_path, payload):
    nbformat = pytest.importorskip("nbformat", reason="the extra `notebook` brings it")
    path = save_report(
        [patching(payload)],
        tmp_path / "r.ipynb",
        title=payload,
        description=payload,
        include_plots=False,
        include_json=True,
    )

    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            assert_harmless_markdown(cell.source)
        else:
            compile(cell.source, "cell", "exec")


def test_without_nbformat_a_notebook_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nbformat", None)

    with pytest.raises(ResultError, match=r"pip install 'mlxterp\[notebook\]'"):
        save_report(patching(), tmp_path / "r.ipynb")


def test_a_page_to_explore_has_a_title_for_each_cell_with_its_interval(tmp_path):
    effects = np.array([[0.5, -0.25, 0.0]])
    result = patching(effects=effects, ci_low=effects - 0.1, ci_high=effects + 0.1)

    view = interactive(result, tmp_path / "new" / "page.html", title="T")

    assert view.path.read_text(encoding="utf-8") == view.html
    assert_harmless(view.html, scripts=1)
    titles = re.findall(r"<title>([^<]*)</title>", view.html)
    assert titles == [
        "T",
        "layer L0, position 0 &#39;The&#39;: 0.5 (0.4 to 0.6)",
        "layer L0, position 1 &#39; Tower&#39;: −0.25 (−0.35 to −0.15)",
    ]
    with pytest.raises(ResultError, match=r"'page\.md'"):
        interactive(result, tmp_path / "page.md")


def test_each_head_of_a_sweep_over_three_axes_has_its_own_map_to_explore():
    effects = np.arange(12.0).reshape(2, 3, 2)
    result = patching(
        effects=effects,
        axes=("layer", "pos", "head"),
        component="z",
        by="layer_pos_head",
        ci_low=effects - 1,
        ci_high=effects + 1,
    )

    first, second = result.panels()

    assert (first.within, second.within) == ("H0", "H1")
    assert np.array_equal(second.values, effects[:, :, 1].T)
    assert cell_title(second, 2, 1) == "H1, layer L1, position 2 ' is': 11 (10 to 12)"


def test_a_notebook_shows_a_page_to_explore_in_a_frame_that_reaches_nothing():
    shown = interactive(patching("<b>"))._repr_html_()

    assert type(shown) is str
    (frame,) = [attrs for tag, attrs in Seen(shown).elements if tag == "iframe"]
    assert dict(frame)["sandbox"] == "allow-scripts"
    assert_harmless(dict(frame)["srcdoc"], scripts=1)
    assert len(Seen(shown).tags) == 1


def test_a_page_to_explore_of_a_result_without_matrices_shows_its_figures():
    page = interactive(metrics()).html

    assert "How the model answers" in page
    assert 'class="map"' not in page


def test_colour_says_the_sign_and_opacity_the_size_in_a_page_to_explore():
    page = interactive(patching(effects=np.array([[0.5, -1.0, math.nan]]))).html

    cells = re.findall(r'<rect [^>]*class="(\w+)" fill-opacity="([\d.]+)"><title>', page)
    assert cells == [("positive", "0.5"), ("negative", "1"), ("missing", "0.3")]
    assert "position 2 &#39; is&#39;: n/a" in page
