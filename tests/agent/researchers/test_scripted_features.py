"""The scripted researcher's study of features, in worlds whose truth is known."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import pytest

from mlxterp.autointerpret import ExperimentEntry
from mlxterp_agent.researchers.base import BudgetState, Situation
from mlxterp_agent.researchers.scripted.features import CANDIDATES, FEATURES
from mlxterp_agent.researchers.scripted.heads import HEADS
from mlxterp_agent.researchers.scripted.researcher import decide, render, study_of
from mlxterp_agent.researchers.scripted.study import Concluded, Experiment, GiveUp, Next

ORDER = FEATURES.order


@dataclass(frozen=True)
class World:
    """A dictionary as the steps would measure it: features 1, 2, … fire, the first few have good labels."""

    explained: float = 0.8
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
                "n_held_out": 80,
                "explained": self.explained,
                "l0": 31.5,
                "silent_share": 0.1,
                "candidates": list(range(1, self.candidates + 1)),
                "silent": list(self.silent),
            },
            "labels": {"n": len(asked), "kept": kept, "abstained": self.candidates - self.labelled},
            "decoys": {"own": 0.9, "decoy": 0.52},
            "sensitivity": {"tested": {f: {"passed": int(f) <= self.passing} for f in asked}},
            "effects": {
                "measured": {
                    f: {"effect": 0.1, "p_value": 0.04, "stands_out": int(f) in self.standing_out}
                    for f in asked
                }
            },
            "steering": {"n": len(asked), "raised": len(asked)},
            "silent": {"exact": self.exact, "n": len(asked), "largest": 0.0 if self.exact else 0.3},
            "conclusion": {"answered": step.values.get("answered", False)},
        }
        return {"as_predicted": True, **by_step[step.name]}


def entry_of(step: Experiment, world: World, number: int, verdict: str) -> ExperimentEntry:
    record = {"verdict": verdict, "reasons": [], "uid": f"u{number}"}
    if verdict.startswith("invalid"):
        first_line = (ast.get_docstring(ast.parse(render(step))) or "").splitlines()[0]
        return ExperimentEntry(first_line, "", {}, False, "It failed.", 1.0, f"{number:04d}", 0.0, {}, record)
    result = {"step": step.name, "numbers": world.measure(step)}
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

    assert names(steps) == list(ORDER)
    assert end == Concluded("the question is answered: 0008 is the conclusion")
    said = steps[-1].values["conclusion"]
    assert 'Understood and used: f1 (token " w1") and f3 (token " w3").' in said


def test_every_experiment_it_writes_is_a_program_whose_first_line_names_the_step():
    steps, _ = investigate(World())

    for step in steps:
        docstring = ast.get_docstring(ast.parse(render(step)))
        assert docstring is not None
        assert docstring.startswith(f"{step.name}:")


def test_what_is_tested_follows_from_what_was_found():
    steps, _ = investigate(World(labelled=3, passing=2))
    asked = {step.name: step.values.get("features") for step in steps}

    assert asked["labels"] == list(range(1, 21))
    assert asked["sensitivity"] == [1, 2, 3]
    assert asked["effects"] == [1, 2]  # those whose labels hold
    assert asked["silent"] == [900, 901]


def test_without_labels_that_hold_their_tests_are_left_out_and_nothing_is_called_understood():
    steps, end = investigate(World(labelled=0, passing=0, standing_out=(1,)))

    assert names(steps) == ["survey", "labels", "effects", "silent", "conclusion"]
    assert isinstance(end, Concluded)
    assert end.reason.startswith("the question stays open")
    assert "Understood and used" not in steps[-1].values["conclusion"]


def test_labels_that_do_not_pass_and_features_that_do_not_matter_are_said():
    steps, _ = investigate(World(passing=0, standing_out=()))
    said = steps[-1].values["conclusion"]

    assert "On fresh texts 0 of 6 tested labels pass" in said
    assert "No feature was found" in said
    assert steps[-1].values["answered"] is False


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


@pytest.mark.parametrize("step", [name for name in ORDER if name not in ("survey", "conclusion")])
def test_a_step_that_fails_twice_is_left_out_and_the_conclusion_says_so(step):
    steps, end = investigate(World(), failing=(step,))

    assert names(steps).count(step) == 2
    assert isinstance(end, Concluded)
    assert any(f"the step {step} would have shown" in limit for limit in steps[-1].values["not_shown"])


def test_a_second_attempt_asks_for_less():
    steps, _ = investigate(World(candidates=40), failing=("labels",))
    first, second = (step.values["features"] for step in steps if step.name == "labels")

    assert len(second) < len(first) <= CANDIDATES


@pytest.mark.parametrize(("budget", "steps"), [(1, ["conclusion"]), (4, None), (5, None), (8, list(ORDER))])
def test_a_short_budget_is_spent_on_what_is_essential(budget, steps):
    made, _ = investigate(World(), budget=budget)

    assert len(made) <= budget
    if steps is not None:
        assert names(made) == steps
    if budget >= 4:
        assert {"survey", "labels", "sensitivity", "conclusion"} <= set(names(made))
