"""The scripted researcher's study of features, in worlds whose truth is known."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import pytest

from mlxterp.autointerpret import ExperimentEntry
from mlxterp.autointerpret.hypothesis import read_hypothesis
from mlxterp_agent.researchers.base import BudgetState, Situation
from mlxterp_agent.researchers.scripted.features import CANDIDATES, CLAIMS, FEATURES
from mlxterp_agent.researchers.scripted.heads import HEADS
from mlxterp_agent.researchers.scripted.researcher import decide, render, study_of
from mlxterp_agent.researchers.scripted.study import Concluded, Experiment, GiveUp, Next

ORDER = FEATURES.order


@dataclass(frozen=True)
class World:
    """A dictionary as the steps would measure it: features 1, 2, … fire, the first few have good labels.

    Attributes:
        used: features with the effect of clamping each on the pairs; supported: the claims that the judge
            supports.
    """

    explained: float = 0.8
    seen: float | None = 0.0
    half_width: float = 0.01
    used: tuple[tuple[int, float], ...] = ((2, 0.66), (7, 0.18), (9, 0.03))
    supported: tuple[str, ...] = ("feature_1", "feature_2", "necessary", "sufficient")
    expected_by_chance: float = 0.4
    p_value: float = 0.004
    candidates: int = 20
    labelled: int = 6
    passing: int = 4
    standing_out: tuple[int, ...] = (1, 3)
    silent: tuple[int, ...] = (900, 901)
    exact: bool = True

    def measure(self, step: Experiment) -> dict[str, Any]:
        """The numbers that this step's experiment would report here."""
        asked = [str(feature) for feature in step.values.get("features", [])]
        kept = {
            str(f): {"label": f'token " w{f}"', "confidence": 0.99 - f / 100, "balanced_accuracy": 0.9}
            for f in range(1, self.labelled + 1)
        }
        by_step: dict[str, dict[str, Any]] = {
            "survey": {
                "hook_point": "L15.resid_post",
                "d_sae": 1024,
                "n_tokens": 30_000,
                "n_documents": 250,
                "explained": self.explained,
                "l0": 31.5,
                "on_kind": {
                    "fresh_texts": {
                        "explained": self.explained,
                        "documents": 80,
                        "seen_in_training": self.seen,
                    },
                    "familiar_texts": {"explained": 0.83, "documents": 60, "seen_in_training": 0.46},
                },
                "silent_share": 0.1,
                "candidates": list(range(1, self.candidates + 1)),
                "silent": list(self.silent),
            },
            "behaviour": {
                "hook_point": "L15.resid_post",
                "n_pairs": 16,
                "example": ["The dogs near the church", " were", " was"],
                "measured": {str(feature): [effect, self.half_width] for feature, effect in self.used},
                "together": sum(effect for _, effect in self.used if effect > 0.07),
                "set_at": 2,
                "set_to": 41.5,
                "sufficient": 0.4,
            },
            "labels": {"n": len(asked), "kept": kept, "abstained": self.candidates - self.labelled},
            "decoys": {"own": 0.9, "decoy": 0.52},
            "sensitivity": {"tested": {f: {"passed": int(f) <= self.passing} for f in asked}},
            "effects": {
                "measured": {
                    f: {"effect": 0.1, "p_value": 0.04, "stands_out": int(f) in self.standing_out}
                    for f in asked
                },
                "tested": len(asked),
                "expected_by_chance": self.expected_by_chance,
                "p_value": self.p_value,
                "holm": [],
            },
            "steering": {"n": len(asked), "raised": len(asked)},
            "silent": {"exact": self.exact, "n": len(asked), "largest": 0.0 if self.exact else 0.3},
            "conclusion": {"answered": step.values.get("answered", False)},
        }
        if step.name in CLAIMS:
            return {"effect": 0.3, "features": list(step.values["claim"].features)}
        return {"as_predicted": True, **by_step[step.name]}


def entry_of(step: Experiment, world: World, number: int, verdict: str) -> ExperimentEntry:
    record = {"verdict": verdict, "reasons": [], "uid": f"u{number}"}
    if verdict.startswith("invalid"):
        first_line = (ast.get_docstring(ast.parse(render(step))) or "").splitlines()[0]
        return ExperimentEntry(first_line, "", {}, False, "It failed.", 1.0, f"{number:04d}", 0.0, {}, record)
    result = {"step": step.name, "numbers": world.measure(step)}
    if step.name in CLAIMS:
        claim = step.values["claim"]
        result |= {"claim": claim.claim, "short": claim.short}
        record["verdict"] = (
            "supported" if step.name in world.supported else "ruled_out" if claim.null else "inconclusive"
        )
    return ExperimentEntry("h", "m", result, True, "c", 1.0, f"{number:04d}", 0.0, {}, record)


def investigate(
    world: World, *, budget: int | None = None, failing: tuple[str, ...] = ()
) -> tuple[list[Experiment], Next]:
    """The whole study of a world: the steps made, and how it ended. Steps in `failing` never succeed."""
    steps: list[Experiment] = []
    log: list[ExperimentEntry] = []
    for number in range(1, 30):
        step = decide(log, None if budget is None else budget - len(log), FEATURES)
        if not isinstance(step, Experiment):
            return steps, step
        steps.append(step)
        verdict = "invalid:execution" if step.name in failing else "lead"
        log.append(entry_of(step, world, number, verdict))
    raise AssertionError(f"no end after {[step.name for step in steps]}")


def names(steps: list[Experiment]) -> list[str]:
    return [step.name for step in steps]


def test_a_setup_with_a_dictionary_is_studied_for_its_features_and_any_other_for_its_heads(tmp_path):
    with_sae, without = (
        Situation(tmp_path, [], BudgetState(), None, facts={"sae": digest}) for digest in ("a digest", None)
    )

    assert study_of(with_sae) is FEATURES
    assert study_of(without) is HEADS


def test_everything_is_asked_in_order_and_the_question_is_answered_by_what_is_both_understood_and_used():
    steps, end = investigate(World())

    assert names(steps) == [name for name in ORDER if name not in ("feature_3", "null_2")]
    assert end == Concluded("the question is answered: 0014 is the conclusion")
    said = steps[-1].values["conclusion"]
    assert said.startswith('Understood and used: f2 (token " w2").')
    assert "Ruled out on held-out pairs: f9 as necessary (5 %)." in said


def test_every_experiment_it_writes_is_a_program_whose_first_line_names_the_step():
    steps, _ = investigate(World())

    for step in steps:
        docstring = ast.get_docstring(ast.parse(render(step)))
        assert docstring is not None
        assert docstring.startswith(f"{step.name}:")


def test_what_is_tested_follows_from_what_was_found():
    steps, _ = investigate(World(labelled=3, passing=2))
    asked = {step.name: step.values.get("features") for step in steps}

    assert asked["labels"] == [2, 7, 1, *range(3, 7), *range(8, 21)]  # what the behaviour uses comes first
    assert asked["sensitivity"] == [2, 1, 3]
    assert asked["effects"] == [2, 1]  # those whose labels hold
    assert asked["silent"] == [900, 901]


def test_without_labels_that_hold_their_tests_are_left_out_and_nothing_is_called_understood():
    steps, end = investigate(World(labelled=0, passing=0, standing_out=(1,)))

    assert names(steps) == [
        *("survey", "behaviour", "labels", "effects", "silent"),
        *("feature_1", "feature_2", "necessary", "sufficient", "null_1", "conclusion"),
    ]
    assert isinstance(end, Concluded)
    assert end.reason.startswith("the question stays open")
    assert "Understood and used" not in steps[-1].values["conclusion"]


@pytest.mark.parametrize("lacking", [{"passing": 0}, {"supported": ()}])
def test_a_label_that_holds_and_a_supported_use_are_both_needed(lacking):
    steps, _ = investigate(World(**lacking))

    assert "No feature was found" in steps[-1].values["conclusion"]
    assert steps[-1].values["answered"] is False


def test_labels_that_do_not_pass_are_counted():
    steps, _ = investigate(World(passing=0))

    assert "On fresh texts 0 of 7 tested labels pass" not in steps[-1].values["conclusion"]
    assert "On fresh texts 0 of 6 tested labels pass" in steps[-1].values["conclusion"]


def test_how_many_features_stand_out_is_compared_with_how_many_do_by_chance():
    """Of eight features one stands out by chance in 32 % of studies."""
    few, _ = investigate(World(standing_out=(1,), p_value=0.32))
    many, _ = investigate(World(standing_out=(1, 2, 3)))
    said_of_few, said_of_many = (steps[-1].values["conclusion"] for steps in (few, many))

    assert "no more than chance explains (0.4 expected, p = 0.32)" in said_of_few
    assert ": more than chance explains (0.4 expected, p = 0.004)" in said_of_many


def test_the_variance_explained_is_given_for_both_kinds_of_text_with_what_of_it_was_in_the_training():
    said = investigate(World(explained=0.61))[0][-1].values["conclusion"]
    unrecorded = investigate(World(seen=None))[0][-1].values["conclusion"]

    assert "61 % of the variance on text of 80 documents (0 % of it was in the training)" in said
    assert "83 % of the variance on text of 60 documents (46 % of it was in the training)" in said
    assert "what it was trained on is not recorded" in unrecorded


def test_features_are_declared_as_clamps_at_the_place_the_dictionary_reads():
    steps = {step.name: step for step in investigate(World())[0]}
    declared = {
        name: read_hypothesis(render(steps[name]).encode()).to_dict() for name in CLAIMS if name in steps
    }

    ablated = {"op": "clamp_feature", "source": "corrupted", "value": 0.0, "align": "strict"}
    assert declared["feature_1"]["intervention"] == {**ablated, "features": [2]}
    assert declared["feature_1"]["site"] == ["L15.resid_post"]
    assert declared["feature_1"]["sesoi"] == 0.3
    assert declared["feature_1"]["claim"].startswith(
        'The model uses feature f2 (token " w2") to say "were" and not "was" after "The dogs near the '
    )
    assert declared["feature_2"]["sesoi"] == 0.1
    assert declared["necessary"]["intervention"]["features"] == [2, 7]
    sufficient = declared["sufficient"]
    assert sufficient["site"] == ["L15.resid_post@2"]
    assert sufficient["intervention"] == {**ablated, "source": "clean", "value": 41.5, "features": [2]}
    assert declared["null_1"]["forecast"]["ruled_out"] > 0.5


@pytest.mark.parametrize(("effect", "step"), [(0.074, None), (0.0751, "feature_1"), (0.0374, "null_1")])
def test_a_feature_is_claimed_from_one_and_a_half_times_the_smallest_effect_of_interest_on(effect, step):
    """Below three quarters of it, its null is."""
    steps, _ = investigate(World(used=((2, effect),)))

    claimed = [name for name in names(steps) if name in CLAIMS and name != "sufficient"]
    assert claimed == ([] if step is None else [step])


@pytest.mark.parametrize(("half_width", "claimed"), [(0.02, ["null_1"]), (0.0201, [])])
def test_a_null_is_claimed_where_the_explored_interval_ends_below_what_is_to_be_ruled_out(
    half_width, claimed
):
    steps, _ = investigate(World(used=((2, 0.03),), half_width=half_width))

    assert [name for name in names(steps) if name in CLAIMS] == claimed


def test_a_poor_dictionary_is_the_first_limit():
    steps, _ = investigate(World(explained=0.2))

    assert "explains too little" in steps[-1].values["not_shown"][0]
    assert "20 %" in steps[-1].values["conclusion"]


def test_a_broken_instrument_is_said():
    steps, _ = investigate(World(exact=False))

    assert any("the ablation is wrong" in sentence for sentence in steps[-1].values["shown"])


def test_without_a_survey_it_gives_up():
    _, end = investigate(World(), failing=("survey",))

    assert isinstance(end, GiveUp)
    assert end.reason.startswith("the dictionary could not be surveyed")


@pytest.mark.parametrize("step", [name for name in ORDER if name not in (*CLAIMS, "survey", "conclusion")])
def test_a_step_that_fails_twice_is_left_out_and_the_conclusion_says_so(step):
    steps, end = investigate(World(), failing=(step,))

    assert names(steps).count(step) == 2
    assert isinstance(end, Concluded)
    assert any(f"the step {step} would have shown" in limit for limit in steps[-1].values["not_shown"])


def test_a_second_attempt_asks_for_less():
    steps, _ = investigate(World(candidates=40), failing=("labels",))
    first, second = (step.values["features"] for step in steps if step.name == "labels")

    assert len(second) < len(first) <= CANDIDATES


@pytest.mark.parametrize(("budget", "steps"), [(1, ["conclusion"]), (5, None), (6, None)])
def test_a_short_budget_is_spent_on_what_is_essential(budget, steps):
    made, _ = investigate(World(), budget=budget)

    assert len(made) <= budget
    if steps is not None:
        assert names(made) == steps
    if budget >= 5:
        assert {"survey", "behaviour", "labels", "sensitivity", "conclusion"} <= set(names(made))
