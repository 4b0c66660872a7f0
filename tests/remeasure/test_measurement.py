"""Measuring a claim equals running the edited prompts by hand, one at a time, for every operation; controls
and numbers are what they are named."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxterp import InterpretableModel, PromptPair
from mlxterp.core import interventions
from mlxterp.datasets import repeated_random_pairs
from mlxterp.errors import DeclarationError, LengthMismatch, SweepError, TokenError
from mlxterp.remeasure import Resources, drop_one, measure, measure_placebos, run_pairs
from mlxterp.remeasure.measurement import SiteSet
from mlxterp.sae.sae import SAE, Relu
from tests.tiny_models import tiny_module

EPS = float(np.finfo(np.float32).eps)
RNG = np.random.default_rng(0)
VECTOR = RNG.standard_normal(32).astype(np.float32)


@pytest.fixture(scope="module")
def llama():
    return InterpretableModel(tiny_module("llama"))


@pytest.fixture(scope="module")
def toy():
    return InterpretableModel("toy-induction")


@pytest.fixture(scope="module")
def toy_pairs(toy):
    return repeated_random_pairs(toy, 4, period=6)


def _pair(rng, length):
    clean = rng.integers(128, size=length)
    corrupted = clean.copy()
    corrupted[length // 2 :] = rng.integers(128, size=length - length // 2)
    answer, foil = rng.choice(128, size=2, replace=False)
    return PromptPair(tuple(clean.tolist()), tuple(corrupted.tolist()), answer=int(answer), foil=int(foil))


@pytest.fixture(scope="module")
def pairs():
    """Of two lengths, which take turns."""
    rng = np.random.default_rng(1)
    return [_pair(rng, length) for length in (6, 8, 6, 8, 6)]


def _claim(op, *sites, **more):
    return {"site": list(sites), "intervention": {"op": op, **more}}


def _metric(logits, pair):
    row = np.array(logits[0, -1].astype(mx.float32), dtype=np.float64)
    return row[pair.answer] - row[pair.foil]


def _by_hand(model, prompt, pair, edits=()):
    return _metric(model.logits(prompt, interventions=list(edits)), pair)


def _near(pairs_logits=10.0):
    """A few forwards of three layers in float32, of logits of this size."""
    return {"abs": 256 * EPS * pairs_logits, "rel": 0}


def _sae():
    rng = np.random.default_rng(2)
    matrices = [mx.array(rng.standard_normal(shape).astype(np.float32)) for shape in ((32, 8), (8, 32))]
    return SAE(
        W_enc=matrices[0],
        b_enc=mx.zeros(8),
        W_dec=matrices[1],
        b_dec=mx.zeros(32),
        activation=Relu(),
        hook_point="L1.resid_post",
        model="tiny",
    )


SAE_ = _sae()


def _knock_out(pattern):
    kept = np.array(pattern)
    kept[..., [0, 2]] = 0
    return mx.array(kept / kept.sum(axis=-1, keepdims=True))


def _feature_edit(x):
    acts = np.array(SAE_.encode(x))
    return x + mx.array((3.0 - acts[..., [4]]) * np.array(SAE_.W_dec)[[4]])


def _mean(model, pairs, point):
    """Per length, over all different prompts."""
    prompts = {prompt for pair in pairs for prompt in (pair.clean, pair.corrupted)}

    def of(pair):
        mine = [p for p in sorted(prompts) if len(p) == len(pair.clean)]
        return mx.mean(mx.concatenate([model.trace(p, capture=[point])[point] for p in mine]), axis=0)[None]

    return of


# name → (claim, edited run, edits of one pair by hand)
OPERATIONS = {
    "denoise a head at a position": (
        _claim("patch", "L1.H2@-1"),
        "corrupted",
        lambda m, p: [_from(m, p.clean, "L1.z", positions=-1, heads=2)],
    ),
    "noise a head": (
        _claim("patch", "L1.H2", source="corrupted"),
        "clean",
        lambda m, p: [_from(m, p.corrupted, "L1.z", heads=2)],
    ),
    "resample an MLP": (
        _claim("resample", "L2.mlp"),
        "clean",
        lambda m, p: [_from(m, p.corrupted, "L2.mlp_out")],
    ),
    "denoise the stream": (
        _claim("patch", "L1.resid_mid@4"),
        "corrupted",
        lambda m, p: [_from(m, p.clean, "L1.resid_mid", positions=4)],
    ),
    "denoise queries": (
        _claim("patch", "L1.q.h1@-1"),
        "corrupted",
        lambda m, p: [_from(m, p.clean, "L1.q", positions=-1, heads=1)],
    ),
    "denoise keys": (
        _claim("patch", "L1.k.h1"),
        "corrupted",
        lambda m, p: [_from(m, p.clean, "L1.k", heads=1)],
    ),
    "denoise a set": (
        _claim("patch", "L0.H1", "L0.H3", "L2.mlp@-1"),
        "corrupted",
        lambda m, p: [
            _from(m, p.clean, "L0.z", heads=[1, 3]),
            _from(m, p.clean, "L2.mlp_out", positions=-1),
        ],
    ),
    "zero": (
        _claim("zero", "L0.H1"),
        "clean",
        lambda m, p: [interventions.zero("L0.z", heads=1)],
    ),
    "mean": (_claim("mean", "L1.mlp"), "clean", "mean"),
    "scale": (
        _claim("scale", "L1.attn@-1", value=0.5),
        "clean",
        lambda m, p: [interventions.scale("L1.attn_out", 0.5, positions=-1)],
    ),
    "clamp": (
        _claim("clamp", "L1.resid_pre", value=0.3),
        "clean",
        lambda m, p: [interventions.clamp("L1.resid_pre", -0.3, 0.3)],
    ),
    "steer": (
        _claim("steer", "L1.resid_post@-1", value=2.0, vector="v"),
        "corrupted",
        lambda m, p: [interventions.add("L1.resid_post", 2.0 * VECTOR, positions=-1)],
    ),
    "project out": (
        _claim("project_out", "L1.resid_post", vector="v"),
        "clean",
        lambda m, p: [interventions.project_out("L1.resid_post", VECTOR)],
    ),
    "clamp a feature": (
        _claim("clamp_feature", "L1.resid_post", features=[4], value=3.0, source="corrupted"),
        "clean",
        lambda m, p: [interventions.edit("L1.resid_post", _feature_edit)],
    ),
    "knock attention out": (
        _claim("attention_knockout", "L1.pattern.h2@-1", from_positions=[0, 2]),
        "clean",
        lambda m, p: [interventions.edit("L1.pattern", _knock_out, positions=-1, heads=2)],
    ),
}


def _from(model, prompt, point, **where):
    return interventions.replace(point, model.trace(prompt, capture=[point])[point], **where)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_single_forwards_written_by_hand(llama, pairs, name):
    claim, edited, by_hand = OPERATIONS[name]
    resources = Resources(SAE_, {"v": VECTOR})

    found = measure(llama, claim, pairs, "logit_diff", resources=resources)

    if by_hand == "mean":
        stand_in = _mean(llama, pairs, "L1.mlp_out")
        by_hand = lambda m, p: [interventions.replace("L1.mlp_out", stand_in(p))]  # noqa: E731
    of_pair = [(pair, getattr(pair, edited), by_hand(llama, pair)) for pair in pairs]
    zero = [_by_hand(llama, prompt, pair) for pair, prompt, _ in of_pair]
    patched = [_by_hand(llama, prompt, pair, edits) for pair, prompt, edits in of_pair]
    assert found.edited == edited
    assert found.zero == pytest.approx(zero, **_near())
    assert found.patched == pytest.approx(patched, **_near())
    assert np.abs(found.change).max() > 1e-3
    assert found.changed.all()
    assert found.fired.all()


@pytest.mark.parametrize("name", OPERATIONS)
def test_replacing_a_site_with_what_is_there_changes_nothing_beyond_rounding(llama, pairs, name):
    found = measure(llama, OPERATIONS[name][0], pairs, "logit_diff", resources=Resources(SAE_, {"v": VECTOR}))

    assert found.identity == pytest.approx(np.zeros(len(pairs)), **_near())
    assert found.identity_holds.all()


@pytest.mark.parametrize("source", ["clean", "corrupted"])
def test_without_a_named_vector_steering_adds_the_mean_difference_of_clean_and_corrupted(
    llama, pairs, source
):
    claim = _claim("steer", "L1.resid_post@-1", value=0.5, source=source)

    found = measure(llama, claim, pairs, "logit_diff")

    def last(prompt):
        return llama.trace(prompt, capture=["L1.resid_post"])["L1.resid_post"][:, -1:]

    edited = "corrupted" if source == "clean" else "clean"
    assert found.edited == edited
    for i, pair in enumerate(pairs):
        same = [p for p in pairs if len(p.clean) == len(pair.clean)]
        difference = mx.mean(mx.concatenate([last(p.clean) - last(p.corrupted) for p in same]), axis=0)
        edit = interventions.add("L1.resid_post", 0.5 * difference[None], positions=-1)
        assert found.patched[i] == pytest.approx(
            _by_hand(llama, getattr(pair, edited), pair, [edit]), **_near()
        )


def test_noise_follows_its_seed(llama, pairs):
    claim = _claim("noise", "L1.mlp", value=0.5)

    once, again, other = (measure(llama, claim, pairs, "logit_diff", seed=s).patched for s in (1, 1, 2))

    assert np.array_equal(once, again)
    assert not np.allclose(once, other)


def test_a_destination_that_loses_all_its_sources_attends_to_nothing(llama, pairs):
    """Position 0 sees itself only; what its head hands on is then 0."""
    knocked = measure(
        llama, _claim("attention_knockout", "L1.pattern.h2@0", from_positions=[0]), pairs, "logit_diff"
    )

    zeroed = measure(llama, _claim("zero", "L1.z.h2@0"), pairs, "logit_diff")
    assert knocked.patched == pytest.approx(zeroed.patched, **_near())


def test_pairs_of_two_lengths_come_back_in_their_order(llama, pairs):
    claim = _claim("patch", "L1.H2@-1")

    together = measure(llama, claim, pairs, "logit_diff")

    alone = [measure(llama, claim, [pair], "logit_diff") for pair in pairs]
    assert together.n_tokens.tolist() == [[6, 6], [8, 8], [6, 6], [8, 8], [6, 6]]
    for name in ("zero", "one", "patched"):
        expected = [getattr(each, name)[0] for each in alone]
        assert getattr(together, name) == pytest.approx(expected, **_near())
    assert together.answer_rank.tolist() == [each.answer_rank[0] for each in alone]


def test_ranks_are_of_the_answer_in_the_clean_run_and_of_the_foil_in_the_corrupted_one(llama, pairs):
    found = measure(llama, _claim("zero", "L0.mlp"), pairs, "logit_diff")

    for i, pair in enumerate(pairs):
        clean, corrupted = (np.array(llama.logits(p)[0, -1]) for p in (pair.clean, pair.corrupted))
        assert found.answer_rank[i] == 1 + (clean > clean[pair.answer]).sum()
        assert found.foil_rank[i] == 1 + (corrupted > corrupted[pair.foil]).sum()


def test_zero_and_one_change_places_with_the_direction(llama, pairs):
    denoising = measure(llama, _claim("patch", "L1.H2"), pairs, "logit_diff")
    noising = measure(llama, _claim("patch", "L1.H2", source="corrupted"), pairs, "logit_diff")

    assert np.array_equal(denoising.zero, noising.one)
    assert np.array_equal(denoising.one, noising.zero)
    assert denoising.sign_of("increase") == -noising.sign_of("increase")
    assert denoising.sign_of("increase") == -denoising.sign_of("decrease")


def test_on_mirrored_pairs_noising_is_denoising(llama, pairs):
    mirrored = [PromptPair(p.corrupted, p.clean, answer=p.foil, foil=p.answer) for p in pairs]

    denoised = measure(llama, _claim("patch", "L1.H2@-1"), pairs, "logit_diff")
    noised = measure(llama, _claim("patch", "L1.H2@-1", source="corrupted"), mirrored, "logit_diff")

    # The mirrored pair's metric is the other's negative.
    assert noised.change == pytest.approx(-denoised.change, **_near())
    assert noised.gap == pytest.approx(-denoised.gap, **_near())
    assert noised.effect == pytest.approx(denoised.effect, abs=1e-5)


def test_a_site_that_both_runs_share_is_not_changed(llama, pairs):
    found = measure(llama, _claim("patch", "L1.H2@0"), pairs, "logit_diff")

    assert not found.changed.any()
    assert found.fired.all()
    assert found.change == pytest.approx(np.zeros(len(pairs)), **_near())


def test_a_path_patch_equals_the_direct_path_by_hand(toy, toy_pairs):
    """The toy has no norms and no MLPs: what a head of the last layer sends to the logits is its share of
    them."""
    claim = _claim("path_patch", "L1.H1", receivers=["logits"], source="corrupted")

    found = measure(toy, claim, toy_pairs, "logit_diff")
    through_all = measure(toy, _claim("patch", "L1.H1", source="corrupted"), toy_pairs, "logit_diff")

    assert found.edited == "clean"
    assert found.patched == pytest.approx(through_all.patched, abs=1e-3)
    assert found.identity == pytest.approx(np.zeros(4), **_near())
    assert found.changed.all()


def test_a_path_into_keys_carries_what_the_previous_token_head_does(toy, toy_pairs):
    for receiver, effect in (("L1.H1.k", 1.0), ("L1.H1.q", 0.0), ("logits", 0.0)):
        claim = _claim("path_patch", "L0.H2", receivers=[receiver])
        assert measure(toy, claim, toy_pairs, "logit_diff").effect == pytest.approx(effect, abs=1e-3)


def test_numbers_that_are_not_finite_are_reported_and_others_stay(toy, toy_pairs):
    pairs = list({pair.answer: pair for pair in toy_pairs}.values())
    poisoned = toy.to_single_token(pairs[1].answer)

    def poison(logits, targets):
        values = logits[np.arange(len(logits)), targets.answers].astype(np.float64)
        values[targets.answers == poisoned] = np.nan
        return values

    found = measure(toy, _claim("patch", "L1.H1"), pairs, poison)

    finite = [i != 1 for i in range(len(pairs))]
    assert found.finite.tolist() == finite
    assert np.isfinite(found.patched).tolist() == finite
    assert np.isnan(found.effect)
    assert not found.identity_holds[1]
    stored = found.to_dict()
    assert stored["patched"][1] == "NaN"
    assert stored["patched"][0] == found.patched[0]


def test_an_infinite_activation_reaches_the_numbers(llama, pairs):
    claim = _claim("steer", "L1.resid_post@-1", value=1.0, vector="v")
    vector = np.full(32, np.inf, dtype=np.float32)

    with np.errstate(invalid="ignore"):
        found = measure(llama, claim, pairs, "logit_diff", resources=Resources(vectors={"v": vector}))

    assert np.isfinite(found.zero).all()
    assert not np.isfinite(found.patched).any()
    assert not found.finite.any()


def test_the_same_measurement_twice_has_the_same_bits(llama, pairs):
    claim = _claim("patch", "L1.H2", "L2.mlp")

    once, again = (measure(llama, claim, pairs, "logit_diff").to_dict() for _ in range(2))

    assert once == again


def test_runs_that_are_too_large_to_keep_are_run_anew_with_the_same_numbers(llama, pairs, monkeypatch):
    claims = [_claim("patch", "L1.H2", source=source) for source in ("clean", "corrupted")]
    kept = [measure(llama, claim, pairs, "logit_diff") for claim in claims]
    monkeypatch.setattr("mlxterp.remeasure.pairs.KEPT_BYTES", 0)

    for claim, expected in zip(claims, kept, strict=True):
        found = measure(llama, claim, pairs, "logit_diff")
        assert found.patched == pytest.approx(expected.patched, **_near())
        assert found.identity_holds.all()


def test_a_gap_of_zero_gives_an_effect_no_sign(llama, pairs):
    same = [PromptPair(p.clean, p.clean, answer=p.answer, foil=p.foil) for p in pairs]

    found = measure(llama, _claim("zero", "L1.H2"), same, "logit_diff")

    assert np.isnan(found.effect)
    with pytest.raises(ValueError, match="an effect has no sign"):
        found.sign_of("increase")


def test_placebos_are_measured_as_claims_of_their_own(llama, pairs):
    claim = _claim("patch", "L1.H2@-1")
    sets = [SiteSet(("L0.z.h0@-1",)), SiteSet(("L2.z.h3@-1",))]

    cells = measure_placebos(llama, claim, sets, pairs, "logit_diff")

    assert cells.patched.shape == (2, len(pairs))
    for row, each in zip(cells.patched, sets, strict=True):
        own = measure(llama, {**claim, "site": list(each.sites)}, pairs, "logit_diff")
        assert row == pytest.approx(own.patched, **_near())


def test_a_random_direction_moves_a_site_as_far_as_the_operation(llama, pairs):
    claim = _claim("patch", "L2.resid_post@-1")

    one, again, other = (
        measure_placebos(llama, claim, [SiteSet(("L2.resid_post@-1",), seed)], pairs, "logit_diff").patched
        for seed in (1, 1, 2)
    )

    assert np.array_equal(one, again)
    assert not np.allclose(one, other)


def test_leaving_a_member_out_measures_the_rest_of_the_set(llama, pairs):
    claim = _claim("patch", "L0.H1", "L1.H2", "L2.mlp")

    cells = drop_one(llama, claim, pairs, "logit_diff")

    assert [each.sites for each in cells.sets] == [
        ("L1.H2", "L2.mlp"),
        ("L0.H1", "L2.mlp"),
        ("L0.H1", "L1.H2"),
    ]
    alone = measure(llama, _claim("patch", "L0.H1", "L1.H2"), pairs, "logit_diff")
    assert cells.patched[2] == pytest.approx(alone.patched, **_near())


def test_prompts_of_unequal_lengths_need_a_stated_map(llama):
    rng = np.random.default_rng(3)
    pair = _pair(rng, 6)
    longer = PromptPair((*pair.clean[:2], 5, *pair.clean[2:]), pair.corrupted, answer=1, foil=2)
    same_end = PromptPair(longer.clean, (*pair.corrupted[:-1], longer.clean[-1]), answer=1, foil=2)

    with pytest.raises(LengthMismatch):
        measure(llama, _claim("patch", "L1.H2@-1"), [same_end], "logit_diff")
    found = measure(llama, _claim("patch", "L1.H2@-1", align="auto"), [same_end, same_end], "logit_diff")

    assert found.n_tokens.tolist() == [[7, 6], [7, 6]]
    assert found.changed.all()


@pytest.mark.parametrize(
    ("claim", "error", "says"),
    [
        (_claim("zero", "L9.H1"), SweepError, "L9.H1: .* has layers 0 to 2"),
        (_claim("zero", "L1.H9"), SweepError, "heads 0 to 3"),
        (_claim("zero", "L1.v.h3"), SweepError, "heads 0 to 1"),
        (_claim("zero", "L1.H1@6"), TokenError, "no position 6 in a prompt of 6 tokens"),
        (_claim("steer", "L1.resid_post", value=1.0, vector="w"), SweepError, "no vector 'w'"),
        (_claim("clamp_feature", "L1.resid_post", features=[1], value=1.0), SweepError, "no `sae`"),
        (_claim("attention_knockout", "L1.pattern", from_positions=[9]), TokenError, "names 9"),
        ({"site": ["L1.H1"], "role": "name mover"}, SweepError, "measure_role"),
        (_claim("scale", "L1.mlp"), DeclarationError, "scale needs value"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_what_there_is(llama, pairs, claim, error, says):
    with pytest.raises(error, match=says):
        measure(llama, claim, pairs, "logit_diff")


def test_a_registered_function_of_the_library_is_the_metric_of_that_name(llama, pairs):
    from mlxterp.metrics import logit_diff

    assert run_pairs(llama, pairs, logit_diff).metric_of["clean"] == pytest.approx(
        run_pairs(llama, pairs, "logit_diff").metric_of["clean"], abs=0
    )
