"""A declaration made from a result can be read, is about the right site, and points the right way."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.autointerpret import declare, read_hypothesis
from mlxterp.autointerpret.hypothesis import SESOI_GRID, Hypothesis
from mlxterp.errors import DeclarationError
from mlxterp.results import (
    AblationResult,
    AblationRow,
    HeadScoresResult,
    MetricsResult,
    PatchingResult,
    PathPatchingResult,
)


def patching(effects, **changes) -> PatchingResult:
    values = {
        "effects": np.array(effects, dtype=np.float64),
        "axes": ("layer", "head"),
        "component": "z",
        "by": "layer_head",
        "direction": "denoising",
        "metric": "logit_diff",
        "clean_metric": 2.0,
        "corrupted_metric": -2.0,
    }
    return PatchingResult(**{**values, **changes})


def read(text: str) -> Hypothesis:
    found = read_hypothesis(text.encode())
    assert found is not None
    return found


def test_the_strongest_head_is_claimed_at_half_of_its_effect():
    found = read(declare(patching([[0.02, 0.1], [0.44, 0.3]])))

    assert found.site == ("L1.z.h0",)
    assert (found.direction, found.sesoi, found.metric) == ("increase", 0.2, "logit_diff")
    assert (found.intervention.op, found.intervention.source) == ("patch", "clean")


@pytest.mark.parametrize(
    ("effect", "direction", "clean", "moves"),
    [
        (0.6, "denoising", 2.0, "increase"),
        (-0.6, "denoising", 2.0, "decrease"),
        (0.6, "noising", 2.0, "decrease"),
        (-0.6, "noising", 2.0, "increase"),
        (0.6, "denoising", -4.0, "decrease"),  # a metric that is lower in the clean run
        (0.6, "noising", -4.0, "increase"),
    ],
)
def test_the_direction_says_where_the_metric_moves(effect, direction, clean, moves):
    found = read(declare(patching([[effect]], direction=direction, clean_metric=clean)))

    assert found.direction == moves
    assert found.intervention.source == ("clean" if direction == "denoising" else "corrupted")


@pytest.mark.parametrize(
    ("effect", "sesoi"), [(0.1, 0.05), (0.199, 0.05), (0.2, 0.1), (0.99, 0.3), (1.0, 0.5)]
)
def test_the_smallest_effect_is_the_largest_allowed_one_at_or_below_half(effect, sesoi):
    assert read(declare(patching([[effect]]))).sesoi == sesoi


def test_an_effect_below_twice_the_smallest_is_not_claimed_and_its_absence_can_be():
    weak = patching([[0.09, 0.001]])

    with pytest.raises(DeclarationError, match=r"0.09 at L0.z.h0, is too small to claim.*site='L0.z.h0'"):
        declare(weak)
    null = read(declare(weak, site="L0.H1"))
    assert (null.site, null.direction, null.sesoi) == (("L0.z.h1",), "none", 0.1)


@pytest.mark.parametrize(("effect", "sesoi"), [(0.0, 0.1), (0.025, 0.1), (0.026, 0.2), (-0.05, 0.2)])
def test_the_absence_of_an_effect_is_claimed_at_four_times_what_was_measured(effect, sesoi):
    assert read(declare(patching([[effect]]), site="L0.H0")).sesoi == sesoi


def test_an_effect_between_a_claim_and_a_null_is_neither():
    with pytest.raises(DeclarationError, match="too small to claim and too large to rule out"):
        declare(patching([[0.06]]), site="L0.H0")


def test_positions_of_a_whole_sweep_count_from_the_end():
    result = patching(
        [[0.1, 0.2, 0.9]],
        axes=("layer", "pos"),
        by="layer_pos",
        component="resid_post",
        labels={"pos": ("a", "b", "c")},
    )

    assert read(declare(result)).site == ("L0.resid_post@-1",)


def test_positions_of_some_stay_as_they_were_given():
    result = patching(
        [[0.1, 0.9]],
        axes=("layer", "pos"),
        by="layer_pos",
        component="mlp_out",
        labels={"pos": ("a", "b")},
        indices={"pos": (2, 5)},
    )

    assert read(declare(result)).site == ("L0.mlp_out@5",)


def test_an_ablated_set_is_declared_as_a_set():
    rows = (
        AblationRow(label="found heads", components=("L1.H1", "L0.H2"), value=0.2, share=0.1),
        AblationRow(label="random set 1", components=("L1.H3",), value=0.0, share=0.0, group="random"),
    )
    result = AblationResult(
        rows=rows, ablation="mean", metric="logit_diff", clean_metric=2.0, corrupted_metric=-2.0
    )

    found = read(declare(result))

    assert (set(found.site), found.intervention.op) == ({"L1.z.h1", "L0.z.h2"}, "mean")
    assert (found.direction, found.sesoi) == ("decrease", 0.3)


def test_a_share_of_the_metric_alone_is_claimed_at_a_quarter():
    row = AblationRow(label="L1.H1", components=("L1.H1",), value=0.0, share=0.0)
    result = AblationResult(rows=(row,), ablation="zero", metric="logit_diff", clean_metric=2.0)

    assert read(declare(result)).sesoi == 0.2


def test_paths_are_declared_with_their_receivers():
    result = PathPatchingResult(
        senders=("L0.H2", "L0.H1 + L0.mlp"),
        effects=np.array([0.1, 0.8]),
        receivers=("L1.H1.k",),
        through="mlps",
        metric="logit_diff",
        clean_metric=2.0,
        corrupted_metric=-2.0,
    )

    found = read(declare(result))

    assert set(found.site) == {"L0.z.h1", "L0.mlp_out"}
    assert found.intervention.receivers == ("L1.H1.k",)
    assert (found.direction, found.sesoi) == ("decrease", 0.3)


def test_where_a_head_attends_is_declared_as_its_role():
    scores = {"induction": np.array([[0.1, 0.2], [0.05, 0.85]]), "of their own": np.ones((2, 2))}

    found = read(declare(HeadScoresResult(scores=scores)))

    assert (found.site, found.role, found.intervention) == (("L1.z.h1",), "induction head", None)


def test_a_site_that_was_not_measured_is_refused_with_those_that_were():
    with pytest.raises(DeclarationError, match=r"does not hold L7.H7. It holds 2, .*: L0.z.h1, L0.z.h0"):
        declare(patching([[0.3, 0.4]]), site="L7.H7")


def test_what_no_claim_can_be_made_from_is_refused():
    with pytest.raises(
        DeclarationError, match=r"given a MetricsResult. Give the result of activation_patching"
    ):
        declare(MetricsResult(rows=()))
    with pytest.raises(DeclarationError, match="nothing to claim"):
        declare(patching([[np.nan]]))


def test_every_smallest_effect_of_the_grid_can_come_out():
    assert {read(declare(patching([[2 * sesoi]]))).sesoi for sesoi in SESOI_GRID} == set(SESOI_GRID)
