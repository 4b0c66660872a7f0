"""`AutoInterpret`: every call is logged, the keep rule decides, the budget ends it."""

# ruff: noqa: T201 - the guide's examples print

from __future__ import annotations

import itertools
import json
import math
import os

import numpy as np
import pytest

from mlxterp.autointerpret import AutoInterpret, ExperimentLog
from mlxterp.errors import BudgetReached, ContractError, CorruptLog
from mlxterp.results import PatchingResult


def patching(*effects: float) -> PatchingResult:
    return PatchingResult(
        effects=np.array(effects),
        axes=("layer",),
        component="mlp_out",
        by="layer",
        direction="denoising",
        metric="logit_diff",
        clean_metric=2.0,
        corrupted_metric=-1.0,
        measured_on={"model": "toy"},
    )


@pytest.fixture
def runner(tmp_path) -> AutoInterpret:
    ticks = itertools.count(0.0, 0.5)
    return AutoInterpret(
        output_dir=tmp_path / "out", max_experiments=5, clock=lambda: 9.0, timer=lambda: next(ticks)
    )


def test_the_guides_example_runs_as_written(tmp_path, monkeypatch, capsys, tiny_llama):
    from mlxterp.autointerpret import AutoInterpret
    from mlxterp.causal import activation_patching

    monkeypatch.chdir(tmp_path)
    model = tiny_llama
    clean, corrupted = "The Eiffel Tower", "The Green Tower "

    runner = AutoInterpret(
        model=model,
        clean="The Eiffel Tower is in",
        corrupted="The Colosseum is in",
        output_dir="my_experiment",
        max_experiments=50,
    )

    # Run experiments
    entry = runner.run_experiment(
        name="mlp_patching",
        fn=lambda: activation_patching(model, clean, corrupted, component="mlp"),
        hypothesis="MLPs at mid-layers are important",
    )

    print(f"Result: {entry.conclusion}")
    print(f"Informative: {entry.informative}")

    # Check progress
    print(runner.summary())
    print(f"Experiments: {runner.n_experiments}/{runner.max_experiments}")
    print(f"Done: {runner.is_done}")

    printed = capsys.readouterr().out
    assert "Experiments: 1/50" in printed
    assert "Done: False" in printed
    assert entry.result["analysis"]["kind"] == "patching"
    assert entry.metadata["clean"] == "The Eiffel Tower is in"
    assert entry.hypothesis == "MLPs at mid-layers are important"
    assert ExperimentLog("my_experiment/results.jsonl").entries() == [entry]


def test_an_effect_is_kept_with_its_conclusion_and_a_finding_file(runner):
    entry = runner.run_experiment("MLP patching!", lambda: patching(0.01, 0.9, 0.2), "layer 1")

    assert (entry.informative, entry.metadata["verdict"]) == (True, "lead")
    assert entry.conclusion == patching(0.01, 0.9, 0.2).summary().splitlines()[0]
    assert entry.duration_seconds == 0.5
    (finding,) = (runner.output_dir / "findings").iterdir()
    assert finding.name == "001-mlp-patching.json"
    assert json.loads(finding.read_text()) == entry.to_dict()


def test_effects_that_are_all_small_are_logged_and_not_kept(runner):
    entry = runner.run_experiment("heads", lambda: patching(0.04, -0.05, 0.0))

    assert (entry.informative, entry.metadata["verdict"]) == (False, "note")
    assert not (runner.output_dir / "findings").exists()


@pytest.mark.parametrize(
    ("returned", "result", "conclusion"),
    [
        ({"a": 0.5, "b": 2}, {"a": 0.5, "b": 2}, "a = 0.5, b = 2"),
        (0.25, {"value": 0.25}, "value = 0.25"),
        (np.array([1.0, 3.0]), {"values": [1.0, 3.0]}, "values = 2 numbers from 1 to 3"),
    ],
)
def test_plain_values_are_logged_and_described(runner, returned, result, conclusion):
    entry = runner.run_experiment("x", lambda: returned)

    assert (entry.result, entry.conclusion, entry.informative) == (result, conclusion, True)


@pytest.mark.parametrize("returned", [None, "words only", {}, math.nan, [math.nan] * 3])
def test_a_result_without_finite_numbers_is_not_informative(runner, returned):
    assert not runner.run_experiment("x", lambda: returned).informative


def test_an_experiment_that_raises_is_logged_with_its_error(runner):
    def broken() -> None:
        raise ZeroDivisionError("no gap")

    entry = runner.run_experiment("broken", broken, "it works")

    assert (entry.informative, entry.metadata["verdict"]) == (False, "invalid:execution")
    assert entry.conclusion == "failed with ZeroDivisionError: no gap"
    assert "in broken" in entry.metadata["traceback"]
    assert (entry.method, runner.n_experiments) == ("broken", 1)


def test_the_callers_check_decides_and_sees_what_was_returned(runner):
    seen: list[object] = []

    entry = runner.run_experiment(
        name="x", fn=lambda: {"a": 0.9}, informative_check=lambda returned: (seen.append(returned), False)[1]
    )

    assert seen == [{"a": 0.9}]
    assert not entry.informative


def test_a_check_that_raises_does_not_cost_the_result(runner):
    entry = runner.run_experiment("x", lambda: {"a": 0.9}, informative_check=lambda returned: returned["b"])

    assert (entry.result, entry.informative) == ({"a": 0.9}, False)
    assert entry.conclusion == "the result is logged, and its check failed with KeyError: 'b'"


def test_the_same_numbers_under_another_name_are_a_no_op_and_under_the_same_name_a_repeat(runner):
    first = runner.run_experiment("layer 3", lambda: patching(0.1, 0.2, 0.9))
    other = runner.run_experiment("layer 4", lambda: patching(0.1, 0.2, 0.9))
    again = runner.run_experiment("layer 3", lambda: patching(0.1, 0.2, 0.9))

    assert (other.metadata["verdict"], other.informative) == ("invalid:no_op", False)
    assert (
        f"the numbers are those of {first.experiment_id}, a different experiment" in other.metadata["reasons"]
    )
    assert (again.metadata["verdict"], again.metadata["reasons"]) == ("note", ["it repeats 0001"])


def test_the_budget_ends_the_runner_and_is_continued_from_the_log(runner):
    for i in range(5):
        runner.run_experiment(f"e{i}", lambda i=i: {"x": i})

    assert runner.is_done
    with pytest.raises(BudgetReached, match=r"'more' was not run: 5 of 5.*Raise max_experiments"):
        runner.run_experiment("more", lambda: pytest.fail("it was run"))
    resumed = AutoInterpret(output_dir=runner.output_dir, max_experiments=6)
    entry = resumed.run_experiment("sixth", lambda: {"x": 6})

    assert (entry.experiment_id, resumed.n_experiments, resumed.is_done) == ("0006", 6, True)


def test_a_runner_does_not_start_on_a_log_it_cannot_read(tmp_path):
    (tmp_path / "results.jsonl").write_text("not json\n")

    with pytest.raises(CorruptLog, match="line 1"):
        AutoInterpret(output_dir=tmp_path)


def test_a_runner_starts_on_a_log_with_a_torn_tail(runner):
    runner.run_experiment("x", lambda: {"x": 1})
    path = runner.log.path
    path.write_bytes(path.read_bytes() + b'{"half')

    assert AutoInterpret(output_dir=runner.output_dir).n_experiments == 1


@pytest.mark.parametrize("budget", [0, -1, 2.5, True, "50"])
def test_a_budget_that_is_no_count_is_refused(tmp_path, budget):
    with pytest.raises(ContractError, match="Give a whole number"):
        AutoInterpret(output_dir=tmp_path, max_experiments=budget)


def test_under_supervision_the_supervisor_keeps_the_finding(runner, monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setenv("AUTOINTERP_OUTBOX", f"fd:{writing}")

    entry = runner.run_experiment("x", lambda: patching(0.9, 0.0))
    os.close(writing)
    with os.fdopen(reading) as pipe:
        frame = json.loads(pipe.read())

    assert frame["entry"] == entry.to_dict()
    assert (entry.experiment_id, entry.informative, runner.n_experiments) == ("", True, 1)
    assert not (runner.output_dir / "findings").exists()


def test_the_model_is_named_in_each_entry(tmp_path):
    class Model:
        name = "toy-induction"

    runner = AutoInterpret(model=Model(), output_dir=tmp_path)

    assert runner.run_experiment("x", lambda: 1.0).metadata["model"] == "toy-induction"
