"""A person's prompt pairs beside a model: which count, which do not and why. On the toy, whose behaviour is
known: it continues a word that it has read before."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from mlxterp import InterpretableModel
from mlxterp.autointerpret import init_autointerpret
from mlxterp.autointerpret.prompt_file import PromptCheck
from mlxterp.causal import PromptPair
from mlxterp.datasets import repeated_random_pairs
from mlxterp.errors import ModelError, PromptFileError
from mlxterp.workflows import check_prompts
from mlxterp.workflows.prompt_check import pairs_of

Row = tuple[str, str, str, str]


@pytest.fixture(scope="module")
def toy() -> InterpretableModel:
    return InterpretableModel("toy-induction")


@pytest.fixture(scope="module")
def drawn(toy) -> list[Row]:
    """Pairs that the toy shows, each a cluster of its own."""
    pairs = repeated_random_pairs(toy, n=26, period=8, repeats=1, seed=3)
    return [(str(p.clean), str(p.corrupted), str(p.answer), str(p.foil)) for p in pairs]


def checked(model: InterpretableModel, directory: Path, rows: list[Row]) -> PromptCheck:
    path = directory / "pairs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("clean", "corrupted", "answer", "foil"), *rows])
    return check_prompts(model, path)


def test_pairs_that_the_model_shows_are_the_dataset_and_independent(toy, drawn, tmp_path):
    check = checked(toy, tmp_path, drawn)

    assert {row.use for row in check.rows} == {"dataset"}
    assert check.n_clusters == 26
    assert check.gate == ()
    assert all(row.clean > 0 > row.corrupted and row.answer_rank == 1 for row in check.rows)


def test_the_logit_differences_are_those_of_the_models_own_forward(toy, drawn, tmp_path):
    row = checked(toy, tmp_path, drawn[:2]).rows[0]

    logits = np.array(toy.logits(row.item.clean))[0, -1]
    expected = logits[toy.to_single_token(row.answer)] - logits[toy.to_single_token(row.foil)]
    assert row.clean == pytest.approx(float(expected), abs=1e-4)


def test_every_pair_that_does_not_count_says_why_and_what_to_change(toy, drawn, tmp_path):
    clean, corrupted, answer, foil = drawn[2]
    word = clean.split()[0]
    rows = [
        *drawn[:2],
        (f"{word} {clean}", corrupted, answer, foil),
        (f"Paris {clean}", f"Paris {corrupted}", answer, foil),
        (clean, corrupted, f"{answer}{foil}", foil),
        (clean, clean, answer, foil),
        (clean, corrupted, answer, answer.strip()),
        (clean, corrupted, foil, answer),
    ]

    check = checked(toy, tmp_path, rows)

    assert [row.use for row in check.rows] == [*["dataset"] * 2, *["dropped"] * 5, "candidate"]
    said = [
        ("clean has", "choose words with as many tokens"),
        ("cannot", "'Paris'"),
        ("is 2 tokens", "choose a word of one token"),
        ("the same tokens", "change what is asked"),
        ("answer and foil are both", "give what each prompt is continued with"),
        ("prefers the foil", "ask about something that it knows"),
    ]
    for row, (what, advice) in zip(check.rows[2:], said, strict=True):
        assert what in row.reason
        assert advice in row.reason


def test_one_token_length_is_kept_that_with_the_most_clusters(toy, drawn, tmp_path):
    longer = repeated_random_pairs(toy, n=2, period=10, repeats=1, seed=4)
    others = [(str(p.clean), str(p.corrupted), str(p.answer), str(p.foil)) for p in longer]

    check = checked(toy, tmp_path, [*others, *drawn[:3]])

    assert [row.use for row in check.rows] == ["dropped", "dropped", "dataset", "dataset", "dataset"]
    assert "a position means another thing" in check.rows[0].reason


def test_pairs_that_share_a_prompt_are_one_cluster(toy, drawn, tmp_path):
    clean, corrupted, answer, foil = drawn[0]

    check = checked(toy, tmp_path, [drawn[0], (corrupted, clean, foil, answer), drawn[1]])

    assert (len(check.used_as("dataset")), check.n_clusters) == (3, 2)


def test_a_behaviour_that_the_model_does_not_show_is_refused_with_the_table(toy, drawn, tmp_path):
    wrong = [(clean, corrupted, foil, answer) for clean, corrupted, answer, foil in drawn[:3]]

    with pytest.raises(PromptFileError, match=r"no pair of 3, and a dataset takes two") as refused:
        checked(toy, tmp_path, wrong)

    assert "the model prefers the foil" in str(refused.value)


def test_where_most_pairs_fail_the_gate_says_that_there_is_no_behaviour(toy, drawn, tmp_path):
    wrong = [(clean, corrupted, foil, answer) for clean, corrupted, answer, foil in drawn[4:]]

    check = checked(toy, tmp_path, [*drawn[:4], *wrong])

    assert any("of unselected candidates show it" in reason for reason in check.gate)
    assert "invalid:instrument" in check.summary()


def test_the_written_setup_py_gives_the_dataset_that_was_checked(toy, drawn, tmp_path):
    check = checked(toy, tmp_path, drawn)

    path = init_autointerpret(tmp_path / "p", research_question="Why?", prompts=check)

    setup: dict[str, list[PromptPair]] = {}
    exec(compile((path / "setup.py").read_bytes(), "setup.py", "exec"), setup)
    assert setup["dataset"] == pairs_of(check)
    assert len(setup["candidates"]) == 26


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError):
        check_prompts("toy-induction", tmp_path / "pairs.csv")  # type: ignore[arg-type]


@pytest.mark.slow
def test_answers_without_a_space_are_read_with_it_where_the_model_continues_so(tmp_path):
    rows = [
        ("The capital of France is", "The capital of Italy is", "Paris", "Rome"),
        ("The capital of Germany is", "The capital of Spain is", "Berlin", "Madrid"),
        ("The capital of Greece is", "The capital of Madagascar is", "Athens", "Antananarivo"),
    ]

    check = checked(InterpretableModel("smollm2-135m"), tmp_path, rows)

    assert [row.answer for row in check.used_as("dataset")] == [" Paris", " Berlin"]
    assert "read with a space in front (' Paris' for 'Paris')" in check.notes[0]
    assert check.rows[2].use == "dropped"
    assert "corrupted" in check.rows[2].reason or "tokens" in check.rows[2].reason
