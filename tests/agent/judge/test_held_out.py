"""What is said about the evidence before the first experiment: how many clusters, and what they decide."""

from __future__ import annotations

from typing import Any

import pytest

from mlxterp_agent.judge.held_out import divide


def facts(n: int, **others: Any) -> dict[str, Any]:
    """What a worker reports of `n` pairs, each a cluster."""
    pairs = [
        {"clean": f"c{i}", "corrupted": f"x{i}", "cluster": f"k{i}", "n_tokens": [4, 4]} for i in range(n)
    ]
    return {"pairs": pairs, "confirm_pairs": False, **others}


@pytest.mark.parametrize(
    ("n", "says", "decides"),
    [
        (23, "no declared effect can be decided: needs >= 24 independent clusters, setup.py has 23", ""),
        (
            24,
            "8 independent clusters to explore, 16 to decide declared claims on",
            "from 1.5",
        ),
        (
            31,
            "8 independent clusters to explore, 23 to decide declared claims on",
            "from 1.5",
        ),
        (
            32,
            "8 independent clusters to explore, 24 to decide declared claims on",
            "from 1.25",
        ),
        (71, "8 independent clusters to explore, 48 to decide declared claims on", "from 1.25"),
        (72, "24 independent clusters to explore, 48 to decide declared claims on", "from 1.25"),
    ],
)
def test_the_clusters_of_a_dataset_are_counted_and_what_they_decide_is_said(n, says, decides):
    said = divide(facts(n), None, "salt").describe()

    assert said.startswith(says)
    assert decides in said


def test_fresh_pairs_leave_all_that_is_there_to_explore():
    said = divide(facts(16, confirm_pairs=True), None, "salt").describe()

    assert said.startswith("16 independent clusters to explore, up to 48 fresh ones for each declared claim")


def test_items_of_a_file_are_counted_beside_the_dataset():
    items = [{"clean": f"a{i}", "corrupted": f"b{i}", "answer": "y", "foil": "n"} for i in range(20)]

    said = divide(facts(4), items, "salt").describe()

    assert said.startswith("4 independent clusters to explore, 20 of heldout.jsonl to decide")


def test_too_few_items_and_no_pairs_at_all_are_said_to_decide_nothing():
    items = [{"clean": f"a{i}", "corrupted": f"b{i}", "answer": "y", "foil": "n"} for i in range(15)]

    assert divide(facts(4), items, "salt").describe().endswith("too few for any verdict, which takes 16")
    assert divide({"pairs": None}, None, "salt").describe() == (
        "no declared effect can be decided: setup.dataset holds no prompt pairs"
    )
