"""STATE.md: what a researcher without memory reads, in 6 kB, with nothing of an agent's that acts."""

from __future__ import annotations

import pytest

from mlxterp.autointerpret import ExperimentEntry
from mlxterp_agent.researcher_notes import LIMIT, NoteRefused, add_note, notes_of
from mlxterp_agent.researchers.base import BudgetState
from mlxterp_agent.state_md import overview_of, state_text
from tests.payloads import PAYLOADS, assert_harmless_markdown


def entry(number: int, verdict: str = "lead", **more):
    record = {"verdict": verdict, "tier": "lead" if verdict == "lead" else "note", "reasons": [], **more}
    hypothesis = more.pop("hypothesis", f"claim {number}")
    identity = {"experiment_id": f"{number:04d}", "record": record}
    return ExperimentEntry(hypothesis, "m", {"x": 1.0}, True, f"found {number}", 1.0, **identity)


def text_of(entries, **more) -> str:
    return state_text(question="q", model="m", log=overview_of(entries), budget=BudgetState(), **more)


def predicted(*held: bool):
    each = {"name": "a", "value": 1.0, "interval": [0.0, 2.0], "measured": 1.0}
    return {"sha256": "0", "numbers": [{**each, "held": value} for value in held]}


def test_it_says_that_leads_are_not_findings_and_what_the_judge_takes():
    assert "None of your 2 leads was tested on held-out pairs" in text_of([entry(1), entry(2)])
    assert "Your one lead was not tested" in text_of([entry(1), entry(2, "note")])
    assert "held-out" not in text_of([entry(1, "note")])


def test_predictions_are_counted_against_their_intervals():
    log = [entry(1, predicted=predicted(True, False)), entry(2, "note", predicted=predicted(True))]

    assert "- Predictions: 2 of 3 numbers lay in their intervals; 90 % would be calibrated." in text_of(log)


def test_rivals_of_plain_entries_stay_open_until_something_closes_them():
    log = [
        entry(1, hypothesis="One head. Rival: several share it."),
        entry(2, "ruled_out", hypothesis="Another. Rival: closed by now."),
    ]

    assert "- 0001: several share it." in text_of(log)
    assert "closed by now" not in text_of(log)


def declared(site: str, claim: str, source: str = "clean"):
    return {
        "id": claim,
        "claim": claim,
        "site": [site],
        "metric": "logit_diff",
        "intervention": {"op": "patch", "source": source},
    }


def test_what_the_judge_measured_before_is_shown_once_however_it_was_worded():
    first = entry(1, "supported", tier="finding", declared=declared("L1.z.h1", "the only result"))
    repeats = [
        entry(i, "supported", tier="finding", declared=declared("L1.H2", f"wording {i}"))
        for i in range(2, 32)
    ]

    kept = text_of([first, *repeats]).split("## Kept")[1].split("##")[0]

    assert "- 0001 supported: found 1" in kept
    assert kept.count("\n- ") == 2
    assert "the same was measured in 0030, 0029, 0028, 0027, 0026 …" in kept


def test_a_lead_names_its_control_or_that_there_is_none():
    with_control = entry(1)
    with_control.metadata["control"] = "random heads: 0.01"

    found = text_of([with_control, entry(2)])

    assert "found 1 Control: random heads: 0.01." in found
    assert "found 2 Control: none is named." in found


def test_notes_are_shown_newest_first():
    found = text_of([], notes=["the first", "the second"])

    assert found.index("the second") < found.index("the first")


def test_six_kilobytes_hold_whatever_there_is():
    log = [entry(i, hypothesis="h" * 5_000 + " Rival: " + "r" * 5_000) for i in range(1, 80)]

    assert len(text_of(log, notes=["n" * 1_000] * 50).encode()) <= 6000


def test_texts_of_agents_are_text():
    log = [entry(i, hypothesis=f"{payload} Rival: {payload}") for i, payload in enumerate(PAYLOADS, 1)]

    for payload in PAYLOADS:
        assert_harmless_markdown(text_of([entry(1, hypothesis=payload)], notes=[payload] if payload else []))
    assert_harmless_markdown(text_of(log))


def test_a_note_is_kept_once_in_one_line_and_has_at_most_a_kilobyte(project):
    add_note(project, "two\nlines")
    add_note(project, "two lines")
    add_note(project, "é" * (LIMIT // 2))

    assert notes_of(project) == ["two lines", "é" * (LIMIT // 2)]
    with pytest.raises(NoteRefused, match=r"1,002 bytes, and a note has at most 1,000"):
        add_note(project, "é" * (LIMIT // 2 + 1))
    with pytest.raises(NoteRefused, match="is empty"):
        add_note(project, " \x1b[0m\n")
