"""What a workflow found: its steps by name, its account, what survives JSON."""

from __future__ import annotations

import json

import pytest

from mlxterp.errors import ResultError
from mlxterp.results import AnalysisResult, MetricsResult, PatchingResult, Step, WorkflowResult
from tests.results.every_kind import patching

ON = {"model": "tiny", "prompts": [{"clean": "a"}]}


def sweep(effects, axes, component, **facts) -> PatchingResult:
    return patching(
        effects=effects,
        axes=axes,
        component=component,
        labels={},
        per_example=None,
        ci_low=None,
        ci_high=None,
        cautions=(),
        measured_on=ON | facts,
    )


def heads(effects=((0.0, 0.9), (0.25, 0.0))) -> PatchingResult:
    return sweep(effects, ("layer", "head"), "z", seed=3)


def mlps() -> PatchingResult:
    return sweep([0.5, -0.75], ("layer",), "mlp_out")


def workflow(**changes) -> WorkflowResult:
    given = {
        "name": "behavior_localization",
        "question": "Which components make it so?",
        "steps": (
            Step("patch_mlp", mlps(), "L1.mlp_out removes 0.75. More was seen.", ("It is one pair.",)),
            Step("patch_heads", heads()),
        ),
        "conclusion": "L0.H1 does most.",
        "cautions": ("Lengths differ.",),
        "measured_on": ON,
    }
    return WorkflowResult(**(given | changes))


def test_a_step_is_found_by_its_name():
    assert workflow().get_step("patch_heads") == heads()
    assert workflow().step_names == ("patch_mlp", "patch_heads")


def test_an_unknown_step_is_refused_and_the_steps_are_listed():
    with pytest.raises(ResultError, match=r"no step 'dla'.*patch_mlp, patch_heads"):
        workflow().get_step("dla")


def test_two_steps_of_one_name_are_refused():
    with pytest.raises(ResultError, match="twice"):
        workflow(steps=(Step("a", heads()), Step("a", mlps())))


def test_a_step_holds_a_result_and_nothing_else():
    with pytest.raises(ResultError, match="holds a list"):
        workflow(steps=(Step("a", [1, 2]),))


def test_components_come_from_a_step_that_exists():
    with pytest.raises(ResultError, match="no step 'dla'"):
        workflow(components_from=("dla",))


def test_the_narrative_has_the_question_each_step_the_conclusion_and_every_caution():
    told = workflow().narrative

    parts = (
        "Which components",
        "L1.mlp_out removes 0.75. More",
        "It is one pair.",
        "L0.H1 does most.",
        "Lengths",
    )
    assert [part for part in parts if part not in told] == []
    assert "L0.H1 recovers 0.9 of the gap" in told  # a step without sentences is told by its own summary


def test_the_summary_has_one_sentence_of_each_step():
    lines = workflow().summary().splitlines()

    assert "patch_mlp: L1.mlp_out removes 0.75." in lines
    assert "Caution: Lengths differ." in lines


def test_components_are_ranked_within_one_unit():
    assert [c.label for c in workflow().top_components(1)] == ["L0.H1"]  # of the last step
    both = workflow(components_from=("patch_mlp", "patch_heads"))
    assert [c.label for c in both.top_components(3)] == ["L0.H1", "L1.mlp_out", "L0.mlp_out"]


def test_it_survives_json_with_its_steps():
    there_and_back = AnalysisResult.from_json(workflow().to_json())

    assert there_and_back == workflow()
    assert isinstance(there_and_back.get_step("patch_heads"), PatchingResult)
    assert there_and_back.step("patch_mlp").cautions == ("It is one pair.",)


def test_a_workflow_in_a_workflow_survives_json_too():
    outer = workflow(steps=(Step("inner", workflow()),))

    assert AnalysisResult.from_json(outer.to_json()).get_step("inner") == workflow()


def test_a_change_in_one_step_makes_it_another_result():
    other = workflow(steps=(workflow().steps[0], Step("patch_heads", heads(((0.0, 0.9), (0.25, 1e-9))))))

    assert other != workflow()


def test_json_never_holds_nan():
    with_nan = workflow(steps=(Step("patch_heads", heads(((0.0, float("nan")), (0.25, 0.0)))),))

    json.loads(with_nan.to_json(), parse_constant=lambda name: pytest.fail(name))
    assert AnalysisResult.from_json(with_nan.to_json()) == with_nan


def test_the_page_has_a_section_per_step_and_says_once_what_all_steps_share():
    text = workflow().to_markdown()

    assert text.count("### patch_mlp") == text.count("### patch_heads") == 1
    assert text.count("model: tiny") == 1
    assert "seed: 3" in text
    assert text.count("It is one pair.") == 1


def test_the_plot_has_a_panel_per_step_that_has_something_to_draw():
    told_only = Step("behaviour", MetricsResult(rows=()))
    drawn = workflow(steps=(*workflow().steps, told_only)).plot()

    titles = [text.get_text() for text in drawn.texts]
    assert [any(t.startswith(f"{step}:") for t in titles) for step in ("patch_mlp", "patch_heads")] == [
        True,
        True,
    ]
    assert not any(t.startswith("behaviour:") for t in titles)
