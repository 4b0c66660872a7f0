"""Which pairs experiments see and which judge: by cluster, by the salt alone, and never both."""

from __future__ import annotations

import json

import pytest

from mlxterp.errors import ProjectError
from mlxterp_agent.judge.held_out import divide, read_items, salt_of, seed_of, take_items
from mlxterp_agent.storage.state_dir import open_state


def _facts(n: int, *, mirrored: bool = False, **more) -> dict:
    """What the worker reports of a dataset of n clusters, each of one pair or of one in both directions."""
    pairs = [
        {
            "clean": f"a{i}",
            "corrupted": f"b{i}",
            "cluster": f"c{i}",
            "n_tokens": [7, 7],
            "holds_answer": False,
        }
        for i in range(n)
    ]
    if mirrored:
        back = [{**pair, "clean": pair["corrupted"], "corrupted": pair["clean"]} for pair in pairs]
        pairs = [each for both in zip(pairs, back, strict=True) for each in both]
    return {"pairs": pairs, "confirm_pairs": False, **more}


@pytest.mark.parametrize(
    ("n", "explored", "confirm"), [(24, 8, 16), (56, 8, 48), (71, 8, 48), (72, 24, 48), (90, 24, 48)]
)
def test_a_dataset_is_divided_by_cluster_and_no_pair_serves_both(n, explored, confirm):
    held_out = divide(_facts(n), None, "salt")

    confirming = held_out.pairs(0, 24, 1)["dataset"] + held_out.pairs(24, 48, 1)["dataset"]
    assert held_out.source == "dataset"
    assert (len(held_out.explore), len(confirming)) == (explored, confirm)
    assert not set(held_out.explore) & set(confirming)


def test_another_salt_divides_otherwise_and_the_same_one_alike():
    one, same, other = (divide(_facts(48), None, salt) for salt in ("one", "one", "other"))

    assert (one.explore, one.order) == (same.explore, same.order)
    assert one.explore != other.explore


def test_below_24_clusters_everything_is_explored_and_nothing_can_be_judged():
    held_out = divide(_facts(23, mirrored=True), None, "salt")

    assert (held_out.source, held_out.explore) == (None, None)
    assert held_out.reason == "needs >= 24 independent clusters, setup.py has 23"


def test_of_a_couple_in_both_directions_experiments_see_both_and_the_judge_measures_one():
    held_out = divide(_facts(48, mirrored=True), None, "salt")

    measured = held_out.pairs(0, 48, 0)["dataset"]
    assert held_out.mirrored
    assert len(held_out.explore) == 2 * 8
    assert len(measured) == len({i // 2 for i in measured}) == 40
    # The salt decides which: not always the first.
    assert {i % 2 for i in measured} == {0, 1}


def test_fresh_pairs_or_items_leave_the_whole_dataset_to_experiments():
    items = [{"clean": f"x{i}", "corrupted": f"y{i}", "answer": "x", "foil": "y"} for i in range(60)]

    fresh = divide(_facts(10, confirm_pairs=True), items, "salt")
    held = divide(_facts(10), items, "salt")

    assert (fresh.source, fresh.explore) == ("confirm_pairs", None)
    assert fresh.pairs(24, 48, 7) == {"confirm": {"n": 48, "seed": 7, "clusters": [24, 48]}}
    assert (held.source, held.explore, len(held.order)) == ("heldout.jsonl", None, 48)
    assert all(item in items for item in held.pairs(0, 24, 0)["heldout"])


def test_spent_clusters_are_left_out_until_none_is_left():
    held_out = divide(_facts(48), None, "salt")

    some, none = held_out.without(held_out.order[:30]), held_out.without(held_out.order)

    assert some.order == held_out.order[30:]
    assert (none.source, none.reason) == (None, "held-out pairs are spent")


def test_a_dataset_that_is_no_list_of_pairs_cannot_be_divided():
    assert "setup.py has 0" in divide({"pairs": None}, None, "salt").reason


def test_the_salt_is_drawn_once_and_seeds_follow_from_it(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "project").mkdir()
    state = open_state(tmp_path / "project")

    salt = salt_of(state)

    assert salt_of(state) == salt
    assert (state.root / "salt").stat().st_mode & 0o077 == 0
    assert seed_of(salt, "a") == seed_of(salt, "a") != seed_of(salt, "b")
    assert seed_of(salt, "a") != seed_of("other", "a")


ITEM = {"clean": "a", "corrupted": "b", "answer": "x", "foil": "y"}


def test_items_move_out_of_the_project_once(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    project = tmp_path / "project"
    project.mkdir()
    state = open_state(project)
    (project / "heldout.jsonl").write_text(json.dumps(ITEM) + "\n\n")

    assert "was moved to" in take_items(project, state, reseal=False)
    assert take_items(project, state, reseal=False) is None
    assert read_items(state) == [ITEM]
    (project / "heldout.jsonl").write_text(json.dumps(ITEM | {"clean": "c"}) + "\n")
    with pytest.raises(ProjectError, match="not the one that this investigation began with"):
        take_items(project, state, reseal=False)
    assert take_items(project, state, reseal=True)
    assert read_items(state)[0]["clean"] == "c"


@pytest.mark.parametrize(
    ("text", "says"),
    [('{"clean": "a"}', "line 1 has clean. Give"), ("nonsense", "line 1"), ("\n", "holds no item")],
)
def test_items_that_cannot_be_read_stay_where_they_are_and_say_what_to_write(
    tmp_path, monkeypatch, text, says
):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    project = tmp_path / "project"
    project.mkdir()
    (project / "heldout.jsonl").write_text(text)

    with pytest.raises(ProjectError, match=says):
        take_items(project, open_state(project), reseal=False)
    assert (project / "heldout.jsonl").exists()


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
    said = divide(_facts(n), None, "salt").describe()

    assert said.startswith(says)
    assert decides in said


def test_fresh_pairs_leave_all_that_is_there_to_explore():
    said = divide(_facts(16, confirm_pairs=True), None, "salt").describe()

    assert said.startswith("16 independent clusters to explore, up to 48 fresh ones for each declared claim")


def test_fresh_pairs_decide_also_where_the_dataset_holds_texts():
    said = divide({"pairs": None, "confirm_pairs": True}, None, "salt").describe()

    assert said.startswith(
        "setup.dataset holds no prompt pairs; up to 48 fresh pairs for each declared claim: enough for "
    )


def test_items_of_a_file_are_counted_beside_the_dataset():
    items = [{"clean": f"a{i}", "corrupted": f"b{i}", "answer": "y", "foil": "n"} for i in range(20)]

    said = divide(_facts(4), items, "salt").describe()

    assert said.startswith("4 independent clusters to explore, 20 of heldout.jsonl to decide")


def test_too_few_items_and_no_pairs_at_all_are_said_to_decide_nothing():
    items = [{"clean": f"a{i}", "corrupted": f"b{i}", "answer": "y", "foil": "n"} for i in range(15)]

    assert divide(_facts(4), items, "salt").describe().endswith("too few for any verdict, which takes 16")
    assert divide({"pairs": None}, None, "salt").describe() == (
        "no declared effect can be decided: setup.dataset holds no prompt pairs"
    )
