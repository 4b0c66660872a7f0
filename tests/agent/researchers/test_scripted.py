"""The scripted researcher in worlds whose truth is known: what it asks, in which order, what it concludes."""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlxterp.autointerpret import (
    ExperimentEntry,
    ExperimentLog,
    Hypothesis,
    init_autointerpret,
    read_hypothesis,
)
from mlxterp_agent.researchers.base import (
    BudgetState,
    Done,
    ExperimentOutcome,
    Failed,
    Idle,
    Situation,
)
from mlxterp_agent.researchers.scripted import ScriptedResearcher
from mlxterp_agent.researchers.scripted.heads import HEADS, _layers_to_search
from mlxterp_agent.researchers.scripted.researcher import decide, experiments_left, render
from mlxterp_agent.researchers.scripted.study import Concluded, Experiment, GiveUp, Next

ORDER = HEADS.order

HEAD_NAME = re.compile(r"L\d+\.H\d+")


@dataclass(frozen=True)
class World:
    """A model as the steps would measure it: 12 layers of 8 heads, position 2 varies, layer 6 moves it."""

    accuracy: float = 1.0
    n_pairs: int = 16
    carried: dict[str, dict[str, float]] = field(
        default_factory=lambda: {
            "2": {"recovery": 0.9, "layer": 0},
            "7": {"recovery": 0.8, "layer": 9},
        }
    )
    arrives: int | None = 7
    heads: dict[str, float] = field(default_factory=lambda: {"L6.H3": 0.7, "L1.H5": 0.4})
    steered: dict[str, float] = field(default_factory=lambda: {"L1.H5 -> L6.H3": 0.6})
    measured: dict[str, list[float]] = field(default_factory=lambda: {"L5.H0": [0.06, 0.02]})
    together: float = 0.9
    tie: bool = False
    verdicts: dict[str, str] = field(default_factory=dict)
    opposing: dict[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def measure(self, step: Experiment) -> dict[str, Any]:
        """The numbers that this step's experiment would report here."""
        ours = {name: effect for name, effect in self.heads.items() if step.name != "more_heads"}
        names = ("mlp_out", "z", "pattern", "unembedding", "final_norm_formula", "head_outputs", "attn_out")
        by_step: dict[str, dict[str, Any]] = {
            "baseline": {
                "accuracy": self.accuracy,
                "clean": 6.0 if self.accuracy > 0.6 else 0.1,
                "corrupted": -6.0,
                "n_layers": 12,
                "n_heads": 8,
                "d_model": 64,
                "n_pairs": self.n_pairs,
                "n_tokens": 8,
                "varied": [2],
                "fixed": [0, 1, 3, 4, 5, 6, 7],
                "tokens": ["The", ' "', "Tower\n", " {x}", " is", " '", " in", " city"],
                "capabilities": {name: name not in self.missing for name in names},
            },
            "attribution": {
                "total": 6.0,
                "heads": dict.fromkeys(ours, 3.0) | {"L0.H0": 0.1},
                "mlps": {"L8.mlp_out": 0.5},
                "agreement": 1.0,
            },
            "residual": {"carried": self.carried, "arrives": self.arrives},
            "attention": {
                "sites": [{"layer": 6, "pos": 7, "recovery": 0.75, "ci": [0.6, 0.9]}] if ours else [],
                "last": {"6": [0.75, 0.1], "9": [0.13, 0.02]},
                "tie": False,
            },
            "mlp": {
                "sites": [{"layer": 0, "pos": 2, "recovery": 0.5, "ci": [0.4, 0.6]}],
                "last": {},
                "tie": False,
            },
            "heads": {
                "found": ours,
                "opposing": self.opposing,
                "measured": {name: [effect, 0.05] for name, effect in ours.items()} | self.measured,
                "last_only": step.name == "heads",
                "tie": self.tie,
            },
            "roles": {"scores": {}, "roles": {}},
            "composition": {"looks": {}, "steered": self.steered, "largest": 0.1},
            "together": {"sufficient": self.together, "necessary": self.together},
            "conclusion": {"answered": step.values.get("answered", False)},
        }
        if "claim" in step.values:
            return {"effect": 0.5, "sesoi": step.values["claim"].sesoi, "null": step.values["claim"].null}
        numbers = by_step["heads" if step.name == "more_heads" else step.name]
        return {"as_predicted": step.name != "composition", **numbers}

    def verdict(self, step: Experiment) -> str:
        """What a judge would decide."""
        if "claim" not in step.values:
            return "lead"
        return self.verdicts.get(step.name, "ruled_out" if step.values["claim"].null else "supported")


Fault = Callable[[Experiment], str | None]


def entry_of(
    step: Experiment, world: World, number: int, verdict: str = "lead", **numbers: Any
) -> ExperimentEntry:
    """The line that a supervisor would log."""
    reasons = ["missing: interval"] if verdict == "inconclusive" else []
    record = {"verdict": verdict, "reasons": reasons, "uid": f"u{number}"}
    if verdict.startswith("invalid") or verdict == "interrupted":
        first_line = ast.get_docstring(ast.parse(render(step))).splitlines()[0]
        return ExperimentEntry(
            first_line, "", {}, False, "The run did not end well.", 1.0, f"{number:04d}", 0.0, {}, record
        )
    result = {"step": step.name, "numbers": {**world.measure(step), **numbers}}
    if claim := step.values.get("claim"):
        result |= {"claim": claim.claim, "short": claim.short}
    return ExperimentEntry("h", "m", result, True, "c", 1.0, f"{number:04d}", 0.0, {}, record)


def investigate(
    world: World, *, budget: int | None = None, fault: Fault = lambda _: None
) -> tuple[list[Experiment], list[ExperimentEntry], Next]:
    """The whole investigation of a world: the steps made, the log, and how it ended."""
    steps: list[Experiment] = []
    log: list[ExperimentEntry] = []
    for number in range(1, 40):
        step = decide(log, None if budget is None else budget - len(log))
        if not isinstance(step, Experiment):
            return steps, log, step
        steps.append(step)
        log.append(entry_of(step, world, number, fault(step) or world.verdict(step)))
    raise AssertionError(f"no end after {[step.name for step in steps]}")


def hypothesis_of(step: Experiment) -> str:
    return keyword(ast.parse(render(step)), "hypothesis")


def names(steps: list[Experiment]) -> list[str]:
    return [step.name for step in steps]


def failing(*which: str, times: int = 1, verdict: str = "invalid:execution") -> Fault:
    """The first runs of these steps end badly."""
    seen: dict[str, int] = {}

    def fault(step: Experiment) -> str | None:
        seen[step.name] = seen.get(step.name, 0) + 1
        return verdict if step.name in which and seen[step.name] <= times else None

    return fault


# what it asks, and what it concludes


EXPLORED = tuple(name for name in ORDER if not name.startswith(("site_", "null_", "suff", "nec", "conc")))


def test_a_planted_circuit_is_explored_declared_and_concluded_from_the_verdicts():
    steps, log, end = investigate(World())

    declared = ["site_1", "site_2", "sufficient", "necessary", "null_1", "null_2"]
    assert names(steps) == [*(name for name in EXPLORED if name != "more_heads"), *declared, "conclusion"]
    assert isinstance(end, Concluded)
    assert "the question is answered" in end.reason
    conclusion = steps[-1].values
    assert conclusion["answered"]
    assert conclusion["conclusion"].startswith("A mechanism is established")
    assert (
        "Supported on held-out pairs: L6.H3 by itself (30 %), L1.H5 by itself (20 %)"
        in conclusion["conclusion"]
    )
    assert "L6.H3 (0.70) moves the answer to the last position, in layer 6" in conclusion["conclusion"]
    assert "L1.H5 (0.40) matters before that; L1.H5 steers where L6.H3 looks" in conclusion["conclusion"]
    assert steps[-1].values["metadata"]["role"] == "conclusion"
    assert conclusion["evidence"] == {
        step.name: e.experiment_id for step, e in zip(steps[:-1], log, strict=False)
    }


def declared_by(steps: list[Experiment]) -> dict[str, Hypothesis]:
    """What each file declares, as a supervisor reads it."""
    found = {step.name: read_hypothesis(render(step).encode()) for step in steps}
    return {name: hypothesis for name, hypothesis in found.items() if hypothesis is not None}


def test_the_strongest_sites_are_declared_first_then_their_set_by_two_methods_then_nulls():
    declared = declared_by(investigate(World())[0])

    assert list(declared) == ["site_1", "site_2", "sufficient", "necessary", "null_1", "null_2"]
    assert declared["site_1"].site == ("L6.z.h3@-1",)
    assert (declared["site_1"].direction, declared["site_1"].sesoi) == ("increase", 0.3)
    assert declared["sufficient"].site == declared["necessary"].site == ("L6.z.h3@-1", "L1.z.h5@-1")
    assert [declared[name].intervention.source for name in ("sufficient", "necessary")] == [
        "clean",
        "corrupted",
    ]
    assert [declared[name].direction for name in ("sufficient", "necessary")] == ["increase", "decrease"]
    assert [(declared[f"null_{i}"].site, declared[f"null_{i}"].sesoi) for i in (1, 2)] == [
        (("L5.z.h0@-1",), 0.1),
        (("L9.attn_out@-1",), 0.2),
    ]


@pytest.mark.parametrize(
    ("explored", "sesoi"),
    [(0.02, None), (0.026, 0.05), (0.045, None), (0.06, 0.1), (-0.06, 0.1), (0.09, None), (0.12, 0.2)],
)
def test_a_null_is_declared_of_what_reached_half_of_what_is_to_be_ruled_out_and_not_nearly_all(
    explored, sesoi
):
    declared = declared_by(investigate(World(measured={"L5.H0": [explored, 0.001]}))[0])

    nulls = [h for name, h in declared.items() if name.startswith("null_") and "z" in h.site[0]]
    assert [h.sesoi for h in nulls] == ([] if sesoi is None else [sesoi])
    assert all(h.direction == ("increase" if explored > 0 else "decrease") for h in nulls)


def test_an_effect_that_may_be_too_large_to_rule_out_comes_after_surer_ones():
    declared = declared_by(investigate(World(measured={"L5.H0": [0.06, 0.2]}))[0])

    nulls = [h.site for name, h in declared.items() if "null" in name]
    assert nulls == [("L9.attn_out@-1",), ("L5.z.h0@-1",)]


def test_an_experiment_that_crashed_is_known_by_what_it_declared():
    steps, log, _ = investigate(World())
    index = names(steps).index("site_1")
    record = {"verdict": "invalid:execution", "reasons": [], "declared": {"id": "site_1"}}
    log[index] = ExperimentEntry(
        steps[index].values["claim"].claim, "", {}, False, "crashed", 0.1, record=record
    )

    assert decide(log[: index + 1], None).name == "site_2"


def test_a_head_that_works_against_the_answer_is_declared_to_and_is_not_in_the_set():
    declared = declared_by(investigate(World(opposing={"L9.H0": -0.5}))[0])

    assert declared["site_2"].site == ("L9.z.h0@-1",)
    assert declared["site_2"].direction == "decrease"
    assert "L9.z.h0@-1" not in declared["sufficient"].site


def test_at_most_six_sites_are_declared():
    many = World(heads={f"L6.H{i}": 0.9 - i / 10 for i in range(8)}, steered={})
    declared = declared_by(investigate(many)[0])

    assert [name for name in declared if name.startswith("site_")] == [f"site_{i}" for i in range(1, 7)]
    assert [declared[f"site_{i}"].site[0] for i in (1, 6)] == ["L6.z.h0@-1", "L6.z.h5@-1"]


def test_a_head_found_alone_is_declared_as_the_set_and_not_twice():
    declared = declared_by(investigate(World(heads={"L6.H3": 0.7}, steered={}))[0])

    assert [name for name in declared if "null" not in name] == ["sufficient", "necessary"]


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [
        ({"sufficient": "inconclusive"}, "sufficient: inconclusive (missing: interval)"),
        ({"necessary": "refuted"}, "necessary: refuted on held-out pairs"),
        ({"necessary": "ruled_out"}, "necessary: ruled out on held-out pairs"),
        ({"null_1": "supported"}, "that nothing else does it: Supported on held-out pairs: L5.H0 by itself"),
        ({"null_1": "inconclusive", "null_2": "inconclusive"}, "no candidate was ruled out"),
    ],
)
def test_unless_both_set_claims_and_the_null_check_hold_no_mechanism_is_established(verdicts, says):
    steps, _, end = investigate(World(verdicts=verdicts))

    conclusion = steps[-1].values
    assert conclusion["conclusion"].startswith("No mechanism is established. Missing: ")
    assert says in conclusion["conclusion"]
    assert not conclusion["answered"]
    assert "stays open" in end.reason


def test_a_recovery_beyond_the_whole_is_an_overshoot_and_never_enough():
    steps, _, _ = investigate(World(together=1.97))

    assert not steps[-1].values["answered"]
    assert (
        "that the found heads are sufficient: more than all of it is an overshoot"
        in (steps[-1].values["conclusion"])
    )
    assert any("recovered 197 % of the logit" in sentence for sentence in steps[-1].values["shown"])


def test_a_claim_that_could_not_be_judged_is_not_declared_again_and_is_said():
    steps, _, end = investigate(World(), fault=failing("sufficient", verdict="invalid:instrument"))

    assert names(steps).count("sufficient") == 1
    assert isinstance(end, Concluded)
    assert "that the found heads are sufficient: not declared, it failed" in steps[-1].values["conclusion"]


def test_the_next_step_follows_from_what_was_found_not_from_a_script():
    here = {step.name: step for step in investigate(World())[0]}
    elsewhere = World(
        carried={"4": {"recovery": 0.9, "layer": 0}}, arrives=3, heads={"L2.H0": 0.7}, steered={}
    )
    there = {step.name: step for step in investigate(elsewhere)[0]}

    assert here["attention"].values["positions"] == [2, 7]
    assert there["attention"].values["positions"] == [4, 7]
    assert here["together"].values["sites"] == ["L6.z.h3@-1", "L1.z.h5@-1"]
    assert there["together"].values["sites"] == ["L2.z.h0@-1"]
    assert "layer 6" in hypothesis_of(here["attention"])
    assert "layer 2" in hypothesis_of(there["attention"])


def test_in_a_world_where_nothing_matters_no_head_is_named_and_the_question_stays_open():
    nothing = World(carried={}, arrives=None, heads={}, steered={})

    steps, _, end = investigate(nothing)

    conclusion = steps[-1].values
    assert "Nothing was found" in conclusion["conclusion"]
    assert not HEAD_NAME.search(conclusion["conclusion"])
    assert not conclusion["answered"]
    assert "stays open" in end.reason
    assert not {"together", "roles", "composition", *ORDER[-12:-1]} & set(names(steps))


def test_without_heads_at_the_last_position_other_positions_are_looked_at_before_it_gives_up():
    steps, _, _ = investigate(World(heads={}, steered={}))

    first, second = (step.values for step in steps if step.name in ("heads", "more_heads"))
    assert (first["last_only"], second["last_only"]) == (True, False)
    assert second["layers"] == [3, 4, 5, 6, 7, 8]  # layer 6 moves the answer
    assert "No single head recovers enough" in steps[-1].values["conclusion"]


def test_a_model_without_the_behaviour_is_not_investigated():
    steps, _, _ = investigate(World(accuracy=0.5))

    assert names(steps) == ["baseline", "conclusion"]
    assert "There is no mechanism to look for" in steps[-1].values["conclusion"]
    assert not steps[-1].values["answered"]


def test_a_single_pair_gives_no_interval_and_the_person_is_told_to_add_more():
    steps, _, _ = investigate(World(n_pairs=1))

    assert names(steps) == ["baseline", "conclusion"]
    assert "setup.py needs more" in steps[-1].values["conclusion"]


def test_near_ties_are_said():
    tied, _, _ = investigate(World(tie=True))
    clear, _, _ = investigate(World(tie=False))

    assert any("too close to say" in sentence for sentence in tied[-1].values["shown"])
    assert not any("too close to say" in sentence for sentence in clear[-1].values["shown"])


@pytest.mark.parametrize(
    ("missing", "left_out"),
    [("mlp_out", "mlp"), ("unembedding", "attribution"), ("z", "heads"), ("pattern", "roles")],
)
def test_a_step_that_the_model_cannot_answer_is_left_out_and_is_no_failure(missing, left_out):
    steps, _, end = investigate(World(missing=(missing,)))

    assert left_out not in names(steps)
    assert isinstance(end, Concluded)
    assert not any("failed" in limit for limit in steps[-1].values["not_shown"])


# failures


def test_a_step_that_crashed_is_tried_again_cheaper_and_the_investigation_goes_on():
    steps, _, end = investigate(World(), fault=failing("attention"))

    tries = [step for step in steps if step.name == "attention"]
    assert [step.attempt for step in tries] == [1, 2]
    assert render(tries[0]) != render(tries[1])
    assert names(steps).count("heads") == 1
    assert "question is answered" in end.reason


def test_after_a_second_crash_a_step_is_left_out_and_the_conclusion_says_so():
    steps, _, _ = investigate(World(), fault=failing("together", times=2))

    assert names(steps).count("together") == 2
    assert any(
        "what the step together would have shown: it failed: The run did not end well." in limit
        for limit in steps[-1].values["not_shown"]
    )


@pytest.mark.parametrize(
    "step", [name for name in ORDER if name not in ("baseline", "conclusion", "more_heads", "site_3")]
)
def test_whichever_step_cannot_be_made_there_is_a_conclusion(step):
    steps, _, end = investigate(World(), fault=failing(step, times=2))

    assert names(steps)[-1] == "conclusion"
    assert isinstance(end, Concluded)


def test_a_behaviour_that_cannot_be_measured_ends_the_investigation_with_the_reason():
    steps, _, end = investigate(World(), fault=failing("baseline", times=2))

    assert names(steps) == ["baseline", "baseline"]
    assert end == GiveUp("the behaviour could not be measured: The run did not end well")


def test_a_run_that_was_interrupted_is_made_again_as_it_was():
    steps, _, end = investigate(World(), fault=failing("heads", verdict="interrupted"))

    first, second = (step for step in steps if step.name == "heads")
    assert render(first) == render(second)
    assert "question is answered" in end.reason


def test_a_step_that_is_interrupted_again_and_again_is_left_out():
    steps, _, end = investigate(World(), fault=failing("mlp", times=99, verdict="interrupted"))

    assert names(steps).count("mlp") == 6
    assert isinstance(end, Concluded)


def test_a_report_without_numbers_counts_as_a_failure():
    steps, log, _ = investigate(World())
    index = names(steps).index("residual")
    log[index] = ExperimentEntry("h", "m", {"step": "residual"}, True, "c", 1.0, "0003")

    again = decide(log[: index + 1], None)

    assert (again.name, again.attempt) == ("residual", 2)


# the log is all it knows


def test_after_any_experiment_a_new_researcher_goes_on_as_the_old_one_would_have():
    steps, log, _ = investigate(World(), fault=failing("attention", "roles"))

    resumed = [decide(log[:done], None) for done in range(len(log))]

    assert resumed == steps


def test_entries_of_others_change_nothing():
    steps, log, _ = investigate(World())
    others = [
        ExperimentEntry("a person's", "m", {"effect": 0.3}, True, "c", 1.0, "1000"),
        ExperimentEntry(
            "crashed", "", {}, False, "c", 1.0, "1001", 0.0, {}, {"verdict": "invalid:execution"}
        ),
        ExperimentEntry("other", "m", {"step": "dance", "numbers": {}}, True, "c", 1.0, "1002"),
    ]

    assert decide([*others, *log[:4]], None) == steps[4]


# budget


def test_a_short_budget_is_spent_on_what_is_essential():
    steps, _, _ = investigate(World(), budget=5)

    assert names(steps) == ["baseline", "residual", "heads", "site_1", "conclusion"]
    assert any("the budget did not reach that far" in limit for limit in steps[-1].values["not_shown"])


@pytest.mark.parametrize("budget", range(1, 20))
def test_whatever_the_budget_its_last_experiment_is_the_conclusion(budget):
    steps, log, end = investigate(World(), budget=budget)

    assert names(steps)[-1] == "conclusion"
    assert len(log) <= budget
    assert isinstance(end, Concluded)


def test_what_the_model_cannot_do_is_not_budgeted_for():
    steps, _, _ = investigate(World(missing=("mlp_out",)), budget=10)

    assert len(steps) == 10


def situation(project: Path, log: list[ExperimentEntry], **budget: Any) -> Situation:
    return Situation(project, log, BudgetState(**budget), log[-1] if log else None)


def test_experiments_for_which_there_is_no_time_are_not_counted_on(tmp_path):
    _, log, _ = investigate(World())  # each took 1 s

    assert experiments_left(situation(tmp_path, log, experiments_left=9, seconds_left=6.0)) == 4
    assert experiments_left(situation(tmp_path, log, experiments_left=3, seconds_left=600.0)) == 3
    assert experiments_left(situation(tmp_path, log)) is None


# the files


def every_file() -> Iterator[tuple[str, str]]:
    nothing = World(carried={}, arrives=None, heads={})
    for world in (World(), World(missing=("mlp_out",)), World(missing=("z",)), World(measured={}), nothing):
        for step in investigate(world, fault=failing("residual", "heads"))[0]:
            yield f"{step.name}, attempt {step.attempt}", render(step)


def test_every_experiment_parses_and_imports_only_public_names_that_exist():
    for name, source in every_file():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.ImportFrom) or node.module == "setup":
                continue
            module = importlib.import_module(node.module)
            assert [
                a.name for a in node.names if a.name.startswith("_") or not hasattr(module, a.name)
            ] == [], name


def test_every_experiment_begins_with_its_step_and_states_a_rival():
    for step in investigate(World())[0]:
        tree = ast.parse(render(step))

        assert ast.get_docstring(tree).startswith(f"{step.name}: ")
        assert "Rival: " in keyword(tree, "hypothesis")
        assert keyword(tree, "metadata") == step.values["metadata"]


def keyword(tree: ast.Module, name: str) -> Any:
    """The literal given for a keyword of the ExperimentEntry."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    entry = next(call for call in calls if getattr(call.func, "id", "") == "ExperimentEntry")
    return ast.literal_eval(next(word.value for word in entry.keywords if word.arg == name))


def test_texts_of_the_prompts_reach_the_file_as_they_are():
    """The tokens of this world hold quotes, a line feed and braces."""
    step = investigate(World())[0][-1]

    assert keyword(ast.parse(render(step)), "conclusion") == step.values["conclusion"]
    assert r"'Tower\n'" in step.values["conclusion"]


# the driver


def test_a_turn_writes_the_file_and_is_over(tmp_path):
    driver = ScriptedResearcher()

    driver.begin_turn(situation(tmp_path, []))

    assert driver.poll() == Idle()
    assert (tmp_path / "experiment.py").read_text().startswith('"""baseline: ')
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.py"]


def test_the_driver_is_done_when_the_conclusion_is_logged(tmp_path):
    _, log, _ = investigate(World())
    driver = ScriptedResearcher()

    driver.begin_turn(situation(tmp_path, log))

    assert driver.poll() == Done(f"the question is answered: {log[-1].experiment_id} is the conclusion")
    assert not (tmp_path / "experiment.py").exists()


def test_the_driver_fails_with_the_reason_when_there_is_no_baseline(tmp_path):
    _, log, _ = investigate(World(), fault=failing("baseline", times=2))
    driver = ScriptedResearcher()

    driver.begin_turn(situation(tmp_path, log))

    assert driver.poll() == Failed("the behaviour could not be measured: The run did not end well")


def test_a_file_that_was_not_run_is_not_written_again_for_ever(tmp_path):
    driver = ScriptedResearcher()
    driver.begin_turn(situation(tmp_path, []))
    driver.tell(ExperimentOutcome(None, (), "not run: these bytes ran before as 0001"))

    driver.begin_turn(situation(tmp_path, []))

    assert driver.poll() == Failed("the experiment was not run: not run: these bytes ran before as 0001")


# for real


def run_by_hand(project: Path) -> Iterator[ExperimentEntry]:
    """Each experiment of the scripted researcher, written by its driver and run in this process."""
    driver = ScriptedResearcher()
    while True:
        log = ExperimentLog("results.jsonl").entries()
        driver.begin_turn(situation(project, log, experiments_left=30 - len(log)))
        if driver.poll() != Idle():
            assert isinstance(driver.poll(), Done)
            return
        runpy.run_path("experiment.py", run_name="__main__")
        after = ExperimentLog("results.jsonl").entries()
        assert len(after) == len(log) + 1
        yield after[-1]


@pytest.fixture
def induction(tmp_path, monkeypatch):
    project = init_autointerpret(tmp_path / "project", scaffold="induction")
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    yield project
    sys.modules.pop("setup", None)


def test_the_planted_heads_of_toy_induction_are_found_tested_and_named(induction):
    from mlxterp.models.toy import weights_file

    truth = json.loads(weights_file().with_suffix(".json").read_text())

    entries = list(run_by_hand(induction))

    conclusion = entries[-1]
    assert len(entries) >= 8
    explored = conclusion.conclusion.partition("What exploring showed")[2]
    assert set(HEAD_NAME.findall(explored)) == {
        truth["previous_token_head"],
        truth["induction_head"],
    }
    assert f"{truth['induction_head']} (induction head, 1.00) moves the answer" in conclusion.conclusion
    assert f"{truth['previous_token_head']} (previous-token head, 1.00)" in conclusion.conclusion
    assert conclusion.metadata["role"] == "conclusion"
    assert all(entry.informative for entry in entries[:-1])
    # By hand nobody judges, so nothing is established, however clear exploring was.
    assert not conclusion.result["numbers"]["answered"]
    assert "the found heads are sufficient: not judged" in conclusion.conclusion


def test_a_head_that_writes_against_the_answer_is_no_reason_to_search_its_layer():
    steps, log, _ = investigate(World())
    numbers = {step.name: entry.result["numbers"] for step, entry in zip(steps, log, strict=True)}
    numbers["attribution"] = {"total": 6.0, "heads": {"L2.H0": -3.0, "L9.H1": 2.0}}
    known = {name: numbers[name] for name in ("baseline", "attribution")}

    layers = _layers_to_search(types.SimpleNamespace(numbers=lambda step: known.get(step, {})))

    assert layers[0] == 9
    assert 2 not in layers


def test_what_the_sentences_say_of_heads_is_what_the_figure_beside_them_shows(
    tiny_llama, tmp_path, monkeypatch
):
    from mlxterp.causal import PromptPair
    from mlxterp.results import AnalysisResult

    setup = types.ModuleType("setup")
    setup.model = tiny_llama
    setup.dataset = [PromptPair(f"{c}bcdx", f"{c}bcdy", answer="x", foil="y") for c in "abcdef"]
    monkeypatch.setitem(sys.modules, "setup", setup)
    monkeypatch.chdir(tmp_path)
    (step,) = [each for each in investigate(World())[0] if each.name == "attribution"]

    exec(compile(render(step), "experiment.py", "exec"), {"__name__": "__main__"})

    (entry,) = ExperimentLog("results.jsonl").entries()
    drawn = AnalysisResult.from_dict(entry.result["analysis"])
    shown = {c.label: c.effect for c in drawn.top_components(99) if ".H" in c.label}
    strongest = next(iter(shown))
    assert entry.conclusion.startswith(f"{strongest} writes {shown[strongest]:+.2f}")
    assert entry.result["numbers"]["heads"] == pytest.approx(dict(list(shown.items())[:8]), abs=1e-5)


def test_two_couples_in_both_directions_have_no_interval_so_nothing_is_found(induction):
    with (induction / "setup.py").open("a") as file:
        file.write(
            "\nfrom mlxterp.causal import PromptPair\n"
            "turned = [PromptPair(p.corrupted, p.clean, answer=p.foil, foil=p.answer) for p in dataset[:2]]\n"
            "dataset = [*dataset[:2], *turned]\n"
        )

    entries = list(run_by_hand(induction))

    numbers = {
        entry.metadata["step"]: entry.result["numbers"] for entry in entries if "step" in entry.metadata
    }
    assert numbers["heads"]["found"] == numbers["heads"]["measured"] == {}
    assert numbers["residual"]["carried"] == {}
    assert "no head was found to declare" in entries[-1].conclusion


def test_every_analysis_of_the_investigation_can_be_read_back_and_drawn(induction):
    from mlxterp.results import AnalysisResult

    analyses = [
        AnalysisResult.from_dict(value)
        for entry in run_by_hand(induction)
        for value in entry.result.values()
        if isinstance(value, dict) and "kind" in value
    ]

    assert {result.kind for result in analyses} >= {"metrics", "logit_attribution", "patching"}
    assert all(result.shows() for result in analyses)
