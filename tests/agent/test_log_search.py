"""What `search_log` finds: an entry by id, entries by site in any spelling, entries by words; in 3 kB."""

from __future__ import annotations

import pytest

from mlxterp.autointerpret import ExperimentEntry
from mlxterp_agent.log_search import search_text


def entry(number: int, hypothesis: str = "h", *, numbers=None, declared=None, conclusion: str = "c"):
    record = {"verdict": "lead", "tier": "lead", "reasons": [], "run": f"{number:04d}", "declared": declared}
    result = {"numbers": numbers or {}}
    identity = {"experiment_id": f"{number:04d}", "record": record}
    return ExperimentEntry(hypothesis, "patching", result, True, conclusion, 1.0, **identity)


LOG = [
    entry(1, "L1.H1 copies", numbers={"L1.H1": 0.97, "L0.H2": 0.5}),
    entry(2, "the MLPs do it", numbers={"L3.mlp": 0.1}),
    entry(3, "declared", declared={"claim": "c", "site": ["L1.z.h1"], "rivals": ["a rival"]}),
    entry(4, "about L11.H1", conclusion="nothing at L11.H1"),
]


def ids(text: str) -> list[str]:
    return [line[:4] for line in text.splitlines() if line[:4].isdigit()]


@pytest.mark.parametrize("query", ["0001", "1", " 0001 "])
def test_an_id_gives_the_entry_with_its_numbers(query):
    found = search_text(LOG, query)

    assert ids(found) == ["0001"]
    assert "numbers: L1.H1 0.97, L0.H2 0.5" in found


@pytest.mark.parametrize("site", ["L1.H1", "L1.z.h1", "L1.z.H1"])
def test_a_site_is_found_in_any_spelling_where_it_is_declared_measured_or_named(site):
    found = search_text(LOG, site)

    assert ids(found) == ["0003", "0001"]
    assert "L1.H1 0.97" in found


def test_another_spelling_of_an_mlp_is_the_same_site():
    assert ids(search_text(LOG, "L3.mlp_out")) == ["0002"]


def test_words_are_found_in_any_order_newest_first_and_what_is_not_there_is_said():
    assert ids(search_text(LOG, "lead declared")) == ["0003"]
    assert ids(search_text(LOG, "", last=2)) == ["0004", "0003"]
    assert search_text(LOG, "nowhere").startswith("none of the 4 entries matches 'nowhere'")
    assert search_text(LOG, "0099").startswith("none of the 4 entries matches '0099'")


def test_no_answer_is_longer_than_three_kilobytes():
    long = [
        entry(i, "word " + "h" * 9_000, conclusion="c" * 9_000, numbers={f"n{j}": 0.123 for j in range(999)})
        for i in range(1, 40)
    ]

    assert all(len(search_text(long, query).encode()) <= 3000 for query in ("word", "0007", ""))


def test_an_analysis_is_not_repeated():
    whole = entry(1, numbers={"x": 1.0})
    whole.result["analysis"] = {"effects": [[0.5] * 9_000]}

    assert len(search_text([whole], "0001")) < 300
