"""Results: what they hold, how they are read back, what they say and show."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from mlxterp.errors import ResultError
from mlxterp.results import (
    AblationResult,
    AblationRow,
    AnalysisResult,
    Bars,
    Component,
    HeadScoresResult,
    Heatmap,
    MetricsResult,
    MetricsRow,
    Note,
    PatchingResult,
    Show,
    Table,
    is_result,
    kinds,
    markdown,
)
from mlxterp.results.views import Floats
from tests.results import every_kind

TOKENS = ["The", " Tower", " is"]


def patching(**changes):
    effects = np.zeros((4, 3), dtype=np.float32)
    effects[1, 1], effects[3, 2], effects[2, 0] = 0.75, 0.5, -0.25
    plain = {"effects": effects, "labels": {"pos": TOKENS}, "ci_low": None, "ci_high": None}
    return every_kind.patching(**(plain | {"per_example": None, "cautions": ()} | changes))


def heads():
    effects = np.zeros((3, 2))
    effects[2, 1] = 0.9
    return patching(
        effects=effects,
        axes=("layer", "head"),
        component="z",
        by="layer_head",
        labels={},
        ci_low=effects - 0.1,
        ci_high=effects + 0.1,
    )


def attribution(**changes):
    heads = np.array([[0.5, -0.25], [1.0, 0.0]])
    numbers = {"head_contributions": heads, "attn_contributions": heads.sum(axis=1), "bias_contribution": 0.0}
    return every_kind.attribution(**(numbers | {"total": 2.0, "logit": 2.0} | changes))


def ablation():
    return AblationResult(
        rows=[
            AblationRow(
                label="found heads", components=("L1.H0", "L2.H1"), value=1.0, share=0.25, ci=(0.2, 0.3)
            ),
            AblationRow(label="L3.mlp_out", components=("L3.mlp_out",), value=3.8, share=0.95, group="null"),
            AblationRow(
                label="random set 1", components=("L0.H0", "L0.H1"), value=4.0, share=1.0, group="random"
            ),
            AblationRow(
                label="random set 2", components=("L0.H0", "L1.H1"), value=3.6, share=0.9, group="random"
            ),
            AblationRow(label="found heads", components=("L1.H0", "L2.H1"), value=2.4, share=0.6, keep=True),
        ],
        ablation="mean",
        metric="logit_diff",
        clean_metric=4.0,
    )


def scores():
    previous = np.array([[0.9, 0.1], [0.2, 0.1]])
    return HeadScoresResult(
        scores={"previous_token": previous, "induction": previous.T[::-1]}, expected={"induction": 0.1}
    )


def metrics():
    return MetricsResult(
        rows=[
            MetricsRow(prompt="a", answer=" x", foil=" y", prob=0.5, rank=1, logit_diff=2.0, top_token=" x"),
            MetricsRow(prompt="b", answer=" y", foil=" x", prob=0.1, rank=3, logit_diff=-1.0),
            MetricsRow(
                prompt="c", answer=" x", foil=" y", prob=0.3, rank=2, logit_diff=math.nan, run="corrupted"
            ),
        ],
        totals={"gap": math.inf},
    )


EVERY = [patching, heads, attribution, ablation, scores, metrics]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_survives_json_that_every_parser_accepts(value):
    result = patching(effects=[[0.0, value, 0.5]] * 4, clean_metric=value)

    text = result.to_json()

    parsed = json.loads(text, parse_constant=lambda word: pytest.fail(f"bare {word} in JSON"))
    back = AnalysisResult.from_dict(parsed)
    assert isinstance(back, PatchingResult)
    np.testing.assert_equal(back.effects[0, 1], value)
    np.testing.assert_equal(back.clean_metric, value)
    assert back == result


def test_a_token_that_reads_like_a_number_stays_a_token():
    result = patching(labels={"pos": ["NaN", "Infinity", "1"]})

    back = AnalysisResult.from_json(result.to_json())

    assert isinstance(back, PatchingResult)
    assert back.labels["pos"] == ("NaN", "Infinity", "1")


def test_results_that_differ_in_one_value_are_not_equal():
    assert patching() != patching(clean_metric=4.5)
    assert patching() != heads()


def test_to_dict_holds_plain_values_with_nan_as_a_number():
    plain = patching(corrupted_metric=math.nan).to_dict()

    assert math.isnan(plain["corrupted_metric"])
    assert plain["effects"][1][1] == 0.75
    assert is_result(plain)


def test_importing_results_loads_neither_mlx_nor_matplotlib():
    code = (
        "import sys, mlxterp.results, mlxterp.reports;"
        "print([m for m in ('mlx', 'matplotlib') if m in sys.modules])"
    )

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "[]"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"kind": "horoscope"}, "Known kinds: ablation"),
        ({}, "no result kind None"),
        ({"kind": "patching"}, "missing fields"),
        ({"kind": "metrics", "rows": [], "colour": 1}, "unknown fields \\['colour'\\]"),
        ({"kind": "metrics", "rows": 3}, "cannot be read"),
        ({"kind": "metrics", "rows": [], "schema": "mlxterp-result/9"}, "mlxterp-result/1"),
    ],
)
def test_what_is_not_a_result_is_refused_by_name(data, says):
    with pytest.raises(ResultError, match=says):
        AnalysisResult.from_dict(data)


def test_text_that_is_not_json_is_refused():
    with pytest.raises(ResultError, match="not JSON"):
        AnalysisResult.from_json("{")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"axes": ("layer",)}, "cannot have the axes"),
        ({"axes": ("layer", "neuron")}, "Axes are 'layer'"),
        ({"direction": "sideways"}, "denoising, noising"),
        ({"labels": {"pos": ["a"]}}, "1 labels for the axis 'pos', which has 3"),
        ({"ci_low": np.zeros(2)}, "ci_low of shape"),
        ({"per_example": np.zeros((5, 2))}, "n_examples"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(changes, says):
    with pytest.raises(ResultError, match=says):
        patching(**changes)


def test_a_new_kind_registers_itself_and_reads_back():
    @dataclass(frozen=True, eq=False, kw_only=True)
    class WeightResult(AnalysisResult):
        kind: ClassVar[str] = "test_weight"
        values: Floats

        @property
        def title(self) -> str:
            return "Weights"

        def summary(self) -> str:
            return "two weights"

        def shows(self) -> tuple[Show, ...]:
            return (Note("nothing"),)

        def components(self) -> tuple[Component, ...]:
            return ()

    made = WeightResult(values=[1, 2])

    assert "test_weight" in kinds()
    assert AnalysisResult.from_json(made.to_json()) == made


def test_two_classes_cannot_share_a_kind():
    with pytest.raises(ResultError, match="belongs to PatchingResult"):
        type("Other", (PatchingResult,), {"kind": "patching"})


@pytest.mark.parametrize(
    ("make", "labels"),
    [
        (patching, ["L1 pos 1 ' Tower'", "L3 pos 2 ' is'", "L2 pos 0 'The'"]),
        (heads, ["L2.H1"]),
        (attribution, ["L0.mlp_out", "L1.mlp_out", "L1.H0"]),
        (ablation, ["found heads", "random set 2", "L3.mlp_out"]),
    ],
)
def test_the_top_components_are_the_largest_effects_by_name(make, labels):
    top = make().top_components(len(labels))

    assert [c.label for c in top] == labels
    assert [abs(c.effect) for c in top] == sorted((abs(c.effect) for c in top), reverse=True)


def test_a_component_carries_the_numbers_an_experiment_needs_next():
    found = heads().top_components(1)[0]

    assert (found.layer, found.head, found.pos, found.name, found.effect) == (2, 1, None, "z", 0.9)
    assert found.ci == pytest.approx((0.8, 1.0))


def test_swept_layers_keep_their_numbers_when_some_were_left_out():
    result = patching(
        effects=[0.1, 0.9],
        axes=("layer",),
        by="layer",
        component="mlp_out",
        labels={},
        indices={"layer": [4, 9]},
    )

    assert result.top_components(1)[0].label == "L9.mlp_out"
    assert result.shows()[0].labels == ("L4", "L9")


def test_an_effect_that_is_missing_is_never_a_top_component():
    result = patching(effects=[[math.nan, 0.5, 0.1]] * 4)

    assert all(math.isfinite(c.effect) for c in result.top_components(100))
    assert any(isinstance(s, Note) and s.tone == "caution" for s in result.shows())


def test_an_unknown_component_lists_those_that_exist():
    with pytest.raises(ResultError, match=r"no component 'L7.H7'.*L0.H0, L0.H1"):
        heads().find("L7.H7")


def test_an_attribution_shows_the_sum_beside_what_the_model_computed():
    table = next(show for show in attribution().shows() if isinstance(show, Table))

    assert dict(table.rows)["sum of the contributions"] == 2.0
    assert dict(table.rows)["attention"] == pytest.approx(1.25)


def test_an_attribution_that_does_not_add_up_says_so():
    notes = [show for show in attribution(logit=2.5).shows() if isinstance(show, Note)]

    assert "miss the model's own value by 0.5" in notes[0].text


def test_a_model_without_mlps_has_no_mlp_components():
    labels = [c.label for c in attribution(mlp_contributions=None, total=1.5, logit=1.5).components()]

    assert labels == ["embed", "L0.H0", "L0.H1", "L1.H0", "L1.H1"]


def test_an_ablation_is_told_beside_random_sets_of_its_own_kind():
    text = ablation().summary()

    assert "Ablating found heads (2 components) leaves 25 % of it" in text
    assert "2 random sets of that kind: 95 %, 90 % to 100 %" in text
    assert "Keeping only found heads (2 components) leaves 60 % of it (logit_diff 2.4)." in text


def test_a_set_is_ranked_among_random_sets_of_its_kind():
    def rows(group, keep, *shares):
        return [
            AblationRow(
                label=f"{group} {i}",
                components=(f"L{i}.H0",),
                value=0.0,
                share=share,
                keep=keep,
                group=group,
            )
            for i, share in enumerate(shares)
        ]

    found = AblationResult(
        rows=[
            *rows("found", False, 0.2),
            *rows("random", False, 0.1, 0.2, 0.3, 0.9),
            *rows("found", True, 0.8),
            *rows("random", True, *[0.1] * 18, 0.9),
        ],
        ablation="mean",
        metric="logit_diff",
        clean_metric=4.0,
    )

    assert found.p_among_random("found 0") == pytest.approx(3 / 5)
    assert found.p_among_random("found 0", keep=True) == pytest.approx(2 / 20)
    assert "The best beside 4 random sets has p = 0.2" in found.summary()
    enough = replace(found, rows=[row for row in found.rows if row.keep])
    assert "It takes 19" not in enough.summary()
    assert replace(found, rows=found.rows[:1]).p_among_random("found 0") is None
    twice = replace(found, rows=[*found.rows, *found.rows[1:5]])
    assert twice.p_among_random("found 0") == pytest.approx(3 / 5)


def test_an_ablation_without_random_sets_carries_a_caution():
    result = AblationResult(
        rows=[AblationRow(label="a", components=("L0.H0",), value=1, share=0.5)],
        ablation="zero",
        metric="logit_diff",
        clean_metric=2,
    )

    assert any(isinstance(show, Note) and show.tone == "caution" for show in result.shows())


def test_an_ablated_set_is_found_by_its_label_and_by_what_was_done():
    result = ablation()

    assert result.row("found heads").share == 0.25
    assert result.row("found heads", keep=True).share == 0.6
    with pytest.raises(ResultError, match=r"random set 2 \(ablated\)"):
        result.row("found head")


def test_head_scores_are_ranked_within_one_score():
    result = scores()

    assert [c.label for c in result.top_heads("previous_token", 2)] == ["L0.H0", "L1.H0"]
    assert result.top_components(1)[0].label == "L0.H0 previous token"
    with pytest.raises(ResultError, match="previous_token, induction"):
        result.score("inducton")


def test_behaviour_is_counted_per_run():
    text = metrics().summary()

    assert "clean: the answer ranks first on 1 of 2 prompts; the answer beats the foil on 1 of 2" in text
    assert "mean logit difference 0.5" in text
    assert metrics().mean("prob", run="corrupted") == 0.3


def test_a_sweep_is_shown_with_depth_from_left_to_right_and_limits_about_zero():
    shown = patching().shows()[0]

    assert isinstance(shown, Heatmap)
    assert shown.column_labels == ("L0", "L1", "L2", "L3")
    assert shown.row_labels == ("0 'The'", "1 ' Tower'", "2 ' is'")
    assert shown.low == -shown.high == -0.75
    assert shown.marks[0] == (1, 1)
    assert shown.values[1][1] == 0.75


def test_a_sweep_over_three_axes_is_reduced_to_its_strongest_entries_with_their_sign():
    effects = np.zeros((2, 3, 2))
    effects[1, 2, 0], effects[1, 2, 1] = 0.2, -0.6
    result = patching(effects=effects, axes=("layer", "pos", "head"), component="z", by="layer_pos_head")

    by_pos, by_head = (show for show in result.shows() if isinstance(show, Heatmap))

    assert by_pos.values[2][1] == -0.6
    assert (by_head.values[0][1], by_head.values[1][1]) == (0.2, -0.6)
    assert result.top_components(1)[0].label == "L1.H1 pos 2 ' is'"


def test_effects_of_layers_are_bars_in_the_order_of_the_layers():
    result = patching(effects=[0.1, 0.7, -0.2], axes=("layer",), by="layer", component="mlp_out", labels={})

    shown = result.shows()[0]

    assert isinstance(shown, Bars)
    assert shown.ordered
    assert shown.values == (0.1, 0.7, -0.2)
    assert shown.accented[0] == 1


@pytest.mark.parametrize("make", EVERY)
def test_markdown_holds_the_summary_and_every_table(make):
    result = make()

    text = result.to_markdown()

    assert text.startswith(f"## {markdown.escape(result.title)}")
    for show in result.shows():
        if isinstance(show, Table):
            assert markdown.table(show) in text
