"""Attribution patching that patches what it found: compared with patching, with the plain estimate, and
where the estimate is wrong by construction."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial

import jsonschema
import mlx.core as mx
import numpy as np
import pytest

from mlxterp import causal
from mlxterp.causal import PromptPair, activation_patching
from mlxterp.causal.gradients.verification import at_most_above
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import ResultError, SweepError
from mlxterp.models import toy
from mlxterp.results import AnalysisResult, json_schema
from tests.causal.conftest import FIRST_DIFFERENCE, PAIR, PAIRS
from tests.rounding import backward_error

# One step and nothing patched: what most of these tests are about. The defaults have their own.
attribution_patching = partial(causal.attribution_patching, steps=1, verify=0)
attribution_patchings = partial(causal.attribution_patchings, steps=1, verify=0)

# Estimates of two calls are compared to the last bit.
pytestmark = pytest.mark.usefixtures("pinned_threads")

SWEEPS = [("z", "layer_pos_head"), ("q", "layer_head"), ("k", "layer_pos_head"), ("v", "layer_head")]
SWEEPS += [("attn_out", "layer_pos"), ("mlp_out", "layer_pos"), ("resid_post", "layer_pos")]
SWEEPS += [("pattern", "layer_head")]


LENGTH = len(PAIR.clean)


def compare(verified, patched, estimated, rounding):
    """Measured cells are those of patching, the others those of the plain estimate, to the last bit."""
    measured = verified.measured
    fields = ["effects", "ci_low", "ci_high"] if verified.ci_low is not None else ["effects"]
    for name in fields:
        one, two, three = (getattr(result, name) for result in (verified, patched, estimated))
        # An interval's ends divide float32 noise by the gap of the luckiest draw.
        near = {"abs": rounding} if name == "effects" else {"abs": 1e-4, "rel": 1e-4}
        assert one[measured] == pytest.approx(two[measured], **near), name
        assert np.array_equal(one[~measured], three[~measured]), name
    if verified.per_example is not None:
        one, two, three = (result.per_example for result in (verified, patched, estimated))
        assert one[:, measured] == pytest.approx(two[:, measured], abs=1e-4)
        assert np.array_equal(one[:, ~measured], three[:, ~measured])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(("component", "by"), SWEEPS)
def test_measured_sites_are_those_of_patching_and_the_others_those_of_the_estimate(
    tiny_llama, component, by, direction
):
    options = {"component": component, "by": by, "direction": direction}
    estimated = attribution_patching(tiny_llama, PAIRS, **options)
    patched = activation_patching(tiny_llama, PAIRS, **options)

    verified = attribution_patching(tiny_llama, PAIRS, verify=2, **options)

    facts = verified.measured_on["verified"]
    changing = estimated.effects.size
    if "pos" in by:
        changing = changing // LENGTH * (LENGTH - FIRST_DIFFERENCE)
    assert (facts["strongest_patched"], facts["random_patched"]) == (2, 1)
    assert facts["left"] == (~verified.measured).sum() == changing - 3
    strongest = np.argsort(-np.abs(estimated.effects), axis=None)[:2]
    assert verified.measured.ravel()[strongest].all()
    apart = np.abs(patched.effects - estimated.effects).ravel()[strongest]
    rounding = backward_error(tiny_llama, lambda: activation_patching(tiny_llama, PAIRS, **options).effects)
    assert facts["largest_difference"] == pytest.approx(apart.max(), abs=rounding)
    assert facts["median_difference"] == pytest.approx(np.median(apart), abs=rounding)
    compare(verified, patched, estimated, rounding)


@pytest.mark.parametrize("options", [{"steps": 3}, {"grad_drop": True}, {"qk_fix": True}])
def test_every_way_to_estimate_can_be_verified(tiny_llama, options):
    where = {"component": "q", "layers": [0, 2], "positions": [-1, 5], "by": "layer_pos_head"}
    patched = activation_patching(tiny_llama, PAIRS, **where)
    estimated = attribution_patching(tiny_llama, PAIRS, **where, **options)

    verified = attribution_patching(tiny_llama, PAIRS, verify=4, **where, **options)

    assert verified.measured.sum() == 6
    assert verified.indices == patched.indices
    rounding = backward_error(tiny_llama, lambda: activation_patching(tiny_llama, PAIRS, **where).effects)
    compare(verified, patched, estimated, rounding)


def test_several_sweeps_are_verified_as_each_alone(tiny_llama):
    sweeps = [("z", "layer_head"), ("mlp_out", "layer_pos"), ("resid_mid", "layer_pos")]
    together = attribution_patchings(tiny_llama, PAIR, sweeps=sweeps, verify=3, seed=5)

    for (component, by), one in zip(sweeps, together, strict=True):
        alone = attribution_patching(tiny_llama, PAIR, component=component, by=by, verify=3, seed=5)
        assert np.array_equal(one.measured, alone.measured)
        assert one.effects == pytest.approx(alone.effects, abs=1e-5)


def test_prompts_of_different_lengths_are_verified_along_the_same_map(tiny_llama):
    pair = PromptPair("the cat sat", "the bird sat", answer="x", foil="y")
    options = {"component": "mlp_out", "by": "layer_pos", "align": "auto"}

    def patch():
        return activation_patching(tiny_llama, pair, **options)

    with pytest.warns(UserWarning, match="position"):
        patched = patch()
    with pytest.warns(UserWarning, match="position"):
        rounding = backward_error(tiny_llama, lambda: patch().effects)
    with pytest.warns(UserWarning, match="position"):
        estimated = attribution_patching(tiny_llama, pair, **options)

    with pytest.warns(UserWarning, match="position"):
        verified = attribution_patching(tiny_llama, pair, verify=4, **options)

    assert verified.measured_on["verified"]["strongest_patched"] == 4
    compare(verified, patched, estimated, rounding)


@pytest.mark.parametrize("verify", [12, 1000])
def test_verifying_as_many_as_there_are_is_patching(tiny_llama, verify):
    patched = activation_patching(tiny_llama, PAIRS, component="z")

    verified = attribution_patching(tiny_llama, PAIRS, component="z", verify=verify)

    assert verified.measured.all()
    for name in ("effects", "ci_low"):
        rounding = backward_error(
            tiny_llama,
            lambda name=name: getattr(activation_patching(tiny_llama, PAIRS, component="z"), name),
        )
        assert getattr(verified, name) == pytest.approx(getattr(patched, name), abs=rounding)
    assert not verified.estimated
    assert verified.cautions[0].startswith("Every site")
    assert not any("left" in text or "first order" in text for text in verified.cautions)
    assert "estimate of" not in verified.summary()


def test_positions_that_hold_the_same_are_known_and_not_drawn(tiny_llama):
    """Below the first difference an effect is 0 in truth, and would make the random ones look harmless."""
    options = {"component": "mlp_out", "by": "layer_pos"}

    verified = attribution_patching(tiny_llama, PAIR, verify=4, **options)
    unchanged = attribution_patching(tiny_llama, PAIR, positions=[0, 1], verify=4, **options)

    assert verified.measured[:, :FIRST_DIFFERENCE].all()
    assert verified.measured[:, FIRST_DIFFERENCE:].sum() == 6
    assert verified.measured_on["verified"]["left"] == 3 * (11 - FIRST_DIFFERENCE) - 6
    assert unchanged.measured.all()
    assert unchanged.measured_on["verified"]["strongest_patched"] == 0
    assert np.all(unchanged.effects == 0)


def test_an_estimate_of_the_wrong_sign_is_corrected(toy_model):
    """The toy's last heads move the logits linearly; the square's slope points away from where they end."""
    rng = np.random.default_rng(3)
    a, b, c, other = rng.choice(40, size=4, replace=False).tolist()
    pair = PromptPair((a, b, c, a), (a, other, c, a), answer=b, foil=other)
    metric = lambda logits: (logits[:, b] - logits[:, other] + 8) ** 2  # noqa: E731

    plain = attribution_patching(toy_model, pair, metric=metric)
    verified = attribution_patching(toy_model, pair, metric=metric, verify=1)

    assert plain.effects[1, 1] < -0.1
    assert verified.effects[1, 1] == pytest.approx(1, abs=0.05)
    assert verified.top_components(1)[0].label == "L1.H1"
    assert any("off by" in text and "at most (L1.H1: estimated -" in text for text in verified.cautions)


@pytest.fixture(scope="module")
def saturated():
    """The toy whose first planted head hands its word to sharp keys, where no gradient reaches it."""
    module, tokenizer = toy.load()
    sharp = module.model.layers[1].self_attn.k_proj
    sharp.weight = sharp.weight * 100
    return InterpretableModel(module, tokenizer), PromptPair(
        (1, 2, 3, 4, 5, 1), (9, 2, 1, 4, 5, 1), answer=2, foil=4
    )


def test_a_site_without_a_gradient_is_measured_or_drawn_and_told_or_left_and_counted(saturated):
    model, pair = saturated
    patched = activation_patching(model, pair, component="z")
    plain = attribution_patching(model, pair, component="z")
    assert abs(plain.effects[0, 2]) < 0.05
    assert patched.effects[0, 2] > 0.9
    outcomes = set()
    for seed in range(30):
        found = attribution_patching(model, pair, component="z", verify=2, seed=seed)
        told = any("the estimates miss sites" in text for text in found.cautions)
        drawn = bool(found.measured[0, 2])
        assert told == drawn
        assert found.effects[0, 2] == (pytest.approx(patched.effects[0, 2]) if drawn else plain.effects[0, 2])
        assert found.measured_on["verified"]["left_with_a_larger_effect_at_most"] >= (not drawn)
        outcomes.add(drawn)

    every = attribution_patching(model, pair, component="z", verify=8)

    assert outcomes == {True, False}
    assert every.effects[0, 2] == pytest.approx(patched.effects[0, 2])


def test_of_equally_strong_sites_the_first_are_patched(toy_model):
    """Heads that write nothing have the same estimate: 0. All but the two planted ones are made so."""
    module, tokenizer = toy.load()
    for layer, planted in zip(module.model.layers, (2, 1), strict=True):
        into = layer.self_attn.o_proj
        d_head = into.weight.shape[1] // toy_model.n_heads
        into.weight = into.weight * (mx.arange(into.weight.shape[1]) // d_head == planted)
    pair = PromptPair((1, 2, 3, 4, 1), (1, 2, 3, 4, 3), answer=2, foil=4)
    model = InterpretableModel(module, tokenizer)
    estimates = np.abs(attribution_patching(model, pair).effects.ravel())
    order = np.argsort(-estimates, kind="stable")

    found = [attribution_patching(model, pair, verify=3) for _ in range(2)]

    assert np.sum(estimates == 0) >= 4
    assert found[0].measured.ravel()[order[:3]].all()
    assert np.array_equal(found[0].measured, found[1].measured)


def test_steps_that_disagree_are_named_where_nothing_was_patched(tiny_llama):
    stepped = attribution_patching(tiny_llama, PAIR, steps=2)
    (said,) = [text for text in stepped.cautions if text.startswith("Single steps")]
    verified = attribution_patching(tiny_llama, PAIR, steps=2, verify=4)
    patched = {f"L{i}.H{j}" for i, j in np.argwhere(verified.measured)}

    (left,) = [text for text in verified.cautions if text.startswith("Single steps")]

    assert any(name in said for name in patched)
    assert not any(name + " (" in left for name in patched)


def test_what_was_measured_is_said_drawn_and_read_back(tiny_llama):
    result = attribution_patching(tiny_llama, PAIRS, by="layer_pos_head", verify=4)
    labels = [c.label for c, known in zip(result.components(), result.measured.ravel(), strict=True) if known]

    back = AnalysisResult.from_json(result.to_json())
    (table,) = [show for show in result.shows() if getattr(show, "columns", None)]

    assert back == result
    assert back.measured.dtype == np.bool_
    assert not back.measured.flags.writeable
    assert result.method == "attribution patching with 4 sites verified"
    assert result.estimated
    assert f"measured at {result.measured.sum()} of 132 sites" in result.summary()
    assert [row[-1] for row in table.rows] == [
        "patching" if row[0] in labels else "estimate" for row in table.rows
    ]
    assert "found by" in result.to_markdown()
    assert len(result.panels()) == 4
    result.plot()


def test_a_result_says_which_of_its_strongest_sites_is_an_estimate(tiny_llama):
    result = attribution_patching(tiny_llama, PAIR, verify=1)
    flags = np.zeros_like(result.measured)

    first = replace(result, measured=flags).summary()
    flags = ~flags
    flags[np.unravel_index(np.abs(result.effects).argsort(axis=None)[-2], flags.shape)] = False
    second = replace(result, measured=flags).summary()

    assert "of the gap by estimate, the most of 12" in first
    assert first.count("(estimated)") == 4
    assert "by estimate" not in second
    assert second.count("(estimated)") == 1


def test_flags_of_another_shape_or_type_are_refused(tiny_llama):
    result = attribution_patching(tiny_llama, PAIR, verify=1)

    with pytest.raises(ResultError, match=r"measured of shape \(3,\)"):
        replace(result, measured=np.array([True, False, True]))
    with pytest.raises(ResultError, match="True or False"):
        replace(result, measured=np.ones((3, 4)))


def test_the_schema_says_that_they_are_booleans(tiny_llama):
    schema = json_schema("patching")
    written = json.loads(attribution_patching(tiny_llama, PAIR, verify=1).to_json())

    jsonschema.validate(written, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written | {"measured": [[0.5]]}, schema)

    assert schema["$defs"]["patching"]["properties"]["measured"] == {
        "anyOf": [{"$ref": "#/$defs/flags"}, {"type": "null"}]
    }
    assert {"type": "boolean"} in schema["$defs"]["flags"]["anyOf"]


@pytest.mark.parametrize("verify", [-1, True, 2.0, "3"])
def test_what_is_no_number_of_sites_is_refused(tiny_llama, verify):
    with pytest.raises(SweepError, match="verify="):
        attribution_patching(tiny_llama, PAIR, verify=verify)


@pytest.mark.parametrize(("population", "sample"), [(6, 1), (6, 2), (8, 5), (9, 9), (40, 3)])
def test_the_bound_is_what_counting_all_draws_gives(population, sample):
    """The bound is the first k of which 5 % or fewer of all draws miss the k + 1 largest."""
    expected = population - sample
    for k in range(population - sample):
        draws = list(itertools.combinations(range(population), sample))
        if np.mean([min(draw) > k for draw in draws]) <= 0.05:
            expected = k
            break

    assert at_most_above(population, sample) == expected


@pytest.mark.parametrize(("verify", "drawn"), [(1, 1), (4, 2), (5, 3)])
def test_half_as_many_of_the_others_are_drawn_rounded_up(tiny_llama, verify, drawn):
    result = attribution_patching(tiny_llama, PAIR, component="z", verify=verify)

    facts = result.measured_on["verified"]
    assert (facts["strongest_patched"], facts["random_patched"]) == (verify, drawn)
    assert facts["left"] == result.effects.size - verify - drawn


@pytest.mark.parametrize("seed", range(4))
def test_where_as_many_are_drawn_as_are_left_every_site_is_patched(tiny_llama, seed):
    result = attribution_patching(tiny_llama, PAIR, component="z", verify=9, seed=seed)

    assert result.effects.size == 12
    assert result.measured.all()
