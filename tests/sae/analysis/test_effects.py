"""What features do: edits of one feature, exact ablations with their controls, estimates by gradients."""

from __future__ import annotations

from dataclasses import replace as changed

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp import metrics
from mlxterp.causal import PromptPair
from mlxterp.core import interventions
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MetricError, SAEError, TokenError
from mlxterp.results import AnalysisResult
from mlxterp.sae import (
    SAE,
    JumpRelu,
    Relu,
    active_features,
    feature_add,
    feature_attribution,
    feature_clamp,
    feature_effects,
    feature_scale,
    feature_zero,
)
from mlxterp.statistics.ratio import mean_of
from tests.rounding import backward_error
from tests.sae.planted import (
    ALL,
    DEAD,
    FIRST,
    NO,
    NOTHING,
    ONLY_A,
    ONLY_C,
    READ,
    SECOND,
    YES,
    A,
    B,
    C,
    logit_diff,
    planted_model,
    planted_sae,
    random_sae,
)
from tests.tiny_models import PARALLEL, ByteTokenizer, tiny_module

TEXT = "the cat sat"
PROMPT = (NOTHING, NOTHING, ALL)
PAIRS = [PromptPair(TEXT, "the dog sat", answer="x", foil="y"), PromptPair("a cow", "a pig", "a", "b")]
POINT = "L1.resid_post"


@pytest.fixture(scope="module")
def model():
    return planted_model()


@pytest.fixture(scope="module")
def sae():
    return random_sae(POINT)


def counted(**edit):
    """Edits at the positions that count: all but the first."""
    return {"positions": slice(1, None), **edit}


def kl_of(model, text, *edits) -> float:
    """One plain forward each, and the divergence at the last position."""
    with_edits, without = (
        np.array(model.logits(text, interventions=list(some)).astype(mx.float32))[:, -1]
        for some in (edits, ())
    )
    return float(metrics.kl(with_edits, without)[0])


def residual(model, text, point=POINT, *edits):
    return np.array(model.trace(text, capture=[point], interventions=list(edits))[point].astype(mx.float32))


# edits


@pytest.mark.usefixtures("pinned_threads")
def test_a_feature_that_does_not_fire_is_edited_into_the_very_same_logits(model):
    before = np.array(model.logits(PROMPT))

    after = np.array(model.logits(PROMPT, interventions=[feature_zero(planted_sae(0), DEAD)]))

    assert np.array_equal(before, after)


def test_zeroing_takes_out_exactly_the_features_own_term(tiny_llama, sae):
    x = residual(tiny_llama, TEXT)
    acts = np.array(sae.encode(mx.array(x)))

    after = residual(tiny_llama, TEXT, POINT, feature_zero(sae, 3))

    assert after == pytest.approx(x - acts[..., [3]] * np.array(sae.W_dec[3]), abs=1e-5)


def test_clamping_scaling_and_adding_change_the_term_by_what_they_say(tiny_llama, sae):
    x = residual(tiny_llama, TEXT)
    a, direction = np.array(sae.encode(mx.array(x)))[..., [5]], np.array(sae.W_dec[5])

    for edit, term in (
        (feature_clamp(sae, 5, 2.5), 2.5 - a),
        (feature_scale(sae, 5, 3.0), 2 * a),
        (feature_add(sae, 5, -1.5), np.full_like(a, -1.5)),
    ):
        assert residual(tiny_llama, TEXT, POINT, edit) == pytest.approx(x + term * direction, abs=1e-5)


def test_ablating_every_feature_leaves_the_error_and_the_decoder_bias(tiny_llama, sae):
    x = mx.array(residual(tiny_llama, TEXT))
    acts = sae.encode(x)
    left = (x - sae.decode(acts)) + sae.b_dec

    after = residual(tiny_llama, TEXT, POINT, feature_zero(sae, range(sae.d_sae)))

    assert after == pytest.approx(np.array(left), abs=1e-5)


def test_the_single_ablations_add_up_to_the_decoded_difference(tiny_llama, sae):
    x = residual(tiny_llama, TEXT)
    acts = sae.encode(mx.array(x))

    terms = sum(x - residual(tiny_llama, TEXT, POINT, feature_zero(sae, f)) for f in range(sae.d_sae))

    assert terms == pytest.approx(np.array(sae.decode(acts) - sae.b_dec), abs=1e-4)


def test_an_edit_composes_with_other_interventions_in_the_order_given(tiny_llama, sae):
    halved, zeroed = interventions.scale(POINT, 0.5), feature_zero(sae, 2)
    x = residual(tiny_llama, TEXT)

    after = residual(tiny_llama, TEXT, POINT, halved, zeroed)

    a = np.array(sae.encode(mx.array(0.5 * x)))[..., [2]]
    assert after == pytest.approx(0.5 * x - a * np.array(sae.W_dec[2]), abs=1e-5)


def test_an_edit_touches_only_its_positions(tiny_llama, sae):
    x = residual(tiny_llama, TEXT)

    after = residual(tiny_llama, TEXT, POINT, feature_add(sae, 0, 1.0, positions=[2, -1]))

    moved = np.abs(after - x).max(axis=-1)[0] > 0
    assert np.flatnonzero(moved).tolist() == [2, 10]


def test_a_padded_row_is_edited_as_it_is_alone(tiny_llama, sae):
    edits = [feature_scale(sae, range(12), 3.0), feature_zero(sae, 20, positions=-1)]

    together = tiny_llama.trace([TEXT, "a much longer text"], interventions=edits)

    alone = tiny_llama.trace(TEXT, interventions=edits)
    assert np.array(together.last_logits)[0] == pytest.approx(np.array(alone.last_logits)[0], abs=1e-4)
    assert np.abs(np.array(alone.last_logits - tiny_llama.trace(TEXT).last_logits)).max() > 0.1


def test_features_are_edited_where_heads_stand_side_by_side(tiny_llama):
    sae = random_sae("L1.z")
    z = residual(tiny_llama, TEXT, "L1.z")

    after = residual(tiny_llama, TEXT, "L1.z", feature_add(sae, 4, 2.0))

    assert z.shape[2:] == (4, 8)
    assert (after - z).reshape(*z.shape[:2], -1) == pytest.approx(
        np.broadcast_to(2 * np.array(sae.W_dec[4]), (1, 11, 32)), abs=1e-5
    )


def towards(model, token: int) -> SAE:
    """One feature whose decoder row is the token's unembedding."""
    row = model.unembedding(token)
    return SAE(
        W_enc=row.T,
        b_enc=mx.zeros(1),
        W_dec=row,
        b_dec=mx.zeros(row.shape[1]),
        activation=Relu(),
        hook_point=f"L{model.n_layers - 1}.resid_post",
        model="tiny",
    )


def test_steering_towards_a_tokens_unembedding_makes_it_likelier_the_more_the_further(tiny_llama):
    sae, token = towards(tiny_llama, 65), 65

    log_probs = [
        metrics.log_prob(
            np.array(tiny_llama.logits(TEXT, interventions=[feature_add(sae, 0, amount)]))[:, -1], [token]
        )[0]
        for amount in (-2.0, 0.0, 2.0, 8.0)
    ]

    assert log_probs == sorted(log_probs)
    assert log_probs[-1] > log_probs[1] + 1


def test_steering_holds_for_every_token_of_a_generation(tiny_llama):
    steered = tiny_llama.generate(
        TEXT, max_new_tokens=5, interventions=[feature_add(towards(tiny_llama, 65), 0, 50.0)]
    )

    assert steered.text == "AAAAA"
    assert tiny_llama.generate(TEXT, max_new_tokens=5).text != "AAAAA"


def test_a_clamped_feature_of_a_generation_is_what_a_whole_forward_gives(tiny_llama, sae):
    edit = feature_clamp(sae, 7, 6.0)

    generated = tiny_llama.generate(TEXT, max_new_tokens=3, interventions=[edit], stop_at_end=False)

    tokens = list(generated.prompt_tokens)
    for token in generated.tokens:
        assert int(np.array(tiny_llama.logits(tokens, interventions=[edit]))[0, -1].argmax()) == token
        tokens.append(token)


def test_features_that_do_not_exist_are_refused_with_those_that_do(sae):
    with pytest.raises(SAEError, match=r"no feature 48: .* 48 features, 0 to 47"):
        feature_zero(sae, 48)
    with pytest.raises(SAEError, match="each once"):
        feature_scale(sae, [1, 1], 0.0)
    with pytest.raises(SAEError, match="one finite number, or one per feature"):
        feature_clamp(sae, [1, 2], [1.0, 2.0, 3.0])
    with pytest.raises(SAEError, match=r"writes at L2.mlp_out"):
        feature_zero(changed(sae, hook_point_out="L2.mlp_out"), 0)


# which features fire


def test_active_features_are_those_that_fire_at_counted_positions_strongest_first(tiny_llama, sae):
    acts = np.array(sae.encode(mx.array(residual(tiny_llama, TEXT))))[0, 1:]

    result = active_features(tiny_llama, sae, TEXT, top_k=6)

    order = np.argsort(-acts.max(axis=0), kind="stable")[:6]
    assert result.features == tuple(order)
    rounding = backward_error(tiny_llama, lambda: active_features(tiny_llama, sae, TEXT, top_k=6).maxima)
    assert result.maxima == pytest.approx(acts.max(axis=0)[order], abs=rounding)
    assert result.means == pytest.approx(acts.mean(axis=0)[order], abs=rounding)
    assert result.n_active == int((acts > 0).any(axis=0).sum())
    assert result.l0 == pytest.approx((acts > 0).sum(axis=1).mean())
    assert result.at_position == tuple(1 + acts.argmax(axis=0)[order])
    assert "all but the first" in result.summary()


def test_of_several_texts_it_says_in_which_and_where_a_feature_is_strongest(tiny_llama, sae):
    texts = ["a dog", TEXT, "a cow", "ab"]

    result = active_features(tiny_llama, sae, texts, top_k=48)

    rounding = backward_error(tiny_llama, lambda: active_features(tiny_llama, sae, texts, top_k=48).maxima)
    assert set(result.at_text) > {0, 1, 2}
    for f, largest, text, at, token in zip(
        result.features, result.maxima, result.at_text, result.at_position, result.at_token, strict=True
    ):
        acts = np.array(sae.encode(mx.array(residual(tiny_llama, texts[text]))))[0]
        assert acts[at, f] == pytest.approx(largest, abs=rounding)
        assert texts[text][at] == token


def test_a_feature_that_fires_at_the_first_position_only_is_not_active(model):
    first_only = (ONLY_C, NOTHING, ONLY_A)

    assert active_features(model, planted_sae(0), first_only).features == (A,)
    assert set(active_features(model, planted_sae(0), first_only, positions=slice(None)).features) == {A, C}


def test_a_text_on_which_nothing_fires_has_no_active_features(model):
    result = active_features(model, planted_sae(0), (NOTHING, NOTHING))

    assert result.features == ()
    assert result.summary()
    assert "No feature fires" in result.shows()[0].text


def test_the_left_out_variance_is_error_over_variance_about_the_mean(tiny_llama, sae):
    x = residual(tiny_llama, TEXT)[0, 1:].astype(np.float64)
    error = x - np.array(sae.reconstruct(mx.array(x.astype(np.float32))))

    result = active_features(tiny_llama, sae, TEXT)

    assert result.fvu == pytest.approx((error**2).sum() / ((x - x.mean(axis=0)) ** 2).sum(), rel=1e-4)
    assert active_features(tiny_llama, sae, "ab").fvu is None


def test_a_text_of_one_token_has_no_position_that_counts(tiny_llama, sae):
    with pytest.raises(TokenError, match="positions=0"):
        active_features(tiny_llama, sae, "a")

    assert active_features(tiny_llama, sae, "a", positions=0).n_counted == 1


# exact effects


def test_a_planted_causal_feature_has_over_ten_times_the_effect_of_an_inert_one(model):
    result = feature_effects(model, planted_sae(0), PROMPT, features=[A, C, DEAD])

    assert result.metric == "kl"
    assert result.effect(A) > 0.1
    assert result.effect(A) > 10 * result.effect(C)
    assert result.effect(DEAD) == 0.0


def test_effects_are_those_computed_by_hand(model):
    result = feature_effects(model, planted_sae(0), PROMPT, features=range(5), answer=YES, foil=NO)

    without = [logit_diff(ALL, first=tuple(int(g != f) for g in range(4))) for f in range(4)]
    assert result.effects == pytest.approx([*(value - logit_diff(ALL) for value in without), 0.0], abs=1e-5)


def test_effects_agree_with_a_forward_per_feature(tiny_llama, sae):
    result = feature_effects(tiny_llama, sae, TEXT, controls=0)

    slow = [kl_of(tiny_llama, TEXT, feature_zero(sae, f, **counted())) for f in result.features]
    assert len(slow) == 20
    assert result.effects == pytest.approx(slow, rel=1e-3, abs=1e-8)
    assert np.ptp(slow) > 1e-3


@pytest.mark.parametrize("family", [*PARALLEL, "gemma2", "gpt2"])
def test_effects_agree_with_a_forward_per_feature_in_other_architectures(family):
    model = InterpretableModel(tiny_module(family), ByteTokenizer())
    sae = random_sae("L1.mlp_out")

    result = feature_effects(model, sae, TEXT, top_k=4, controls=2)

    slow = [kl_of(model, TEXT, feature_zero(sae, f, **counted())) for f in result.features]
    assert result.effects == pytest.approx(slow, rel=2e-3, abs=1e-8)
    assert max(slow) > 1e-4


@pytest.mark.parametrize(
    ("point", "width"),
    [("embed", 32), ("L1.z", 32), ("L2.v", 16), ("final_norm", 32), ("model.layers.1.mlp.up_proj", 48)],
)
def test_effects_agree_with_a_forward_per_feature_wherever_the_sae_is(tiny_llama, point, width):
    sae = random_sae(point, width=width)

    result = feature_effects(tiny_llama, sae, TEXT, top_k=12, controls=0)

    slow = [kl_of(tiny_llama, TEXT, feature_zero(sae, f, **counted())) for f in result.features]
    assert result.effects == pytest.approx(slow, rel=1e-3, abs=1e-8)
    assert max(slow) > 1e-4


def test_effects_are_measured_on_a_quantised_model():
    module = tiny_module("llama", hidden_size=64, intermediate_size=64, head_dim=16)
    nn.quantize(module, group_size=32, bits=4)
    model, sae = InterpretableModel(module, ByteTokenizer()), random_sae(POINT, width=64)

    result = feature_effects(model, sae, TEXT, top_k=4, controls=2)

    slow = [kl_of(model, TEXT, feature_zero(sae, f, **counted())) for f in result.features]
    assert result.effects == pytest.approx(slow, rel=5e-3, abs=1e-7)
    assert max(slow) > 1e-4


def test_kl_is_never_negative(tiny_llama):
    for seed in range(3):
        result = feature_effects(tiny_llama, random_sae(POINT, k=None, seed=seed), TEXT, top_k=48, controls=1)

        assert (result.effects >= 0).all()
        assert (result.controls >= 0).all()


def test_features_measured_together_have_the_effects_and_controls_that_each_has_alone(tiny_llama, sae):
    together = feature_effects(tiny_llama, sae, TEXT, top_k=5, controls=3, answer="x")

    for i, f in enumerate(together.features):
        alone = feature_effects(tiny_llama, sae, TEXT, features=[f], controls=3, answer="x")
        assert alone.effects[0] == pytest.approx(together.effects[i], abs=1e-5)
        assert alone.controls[0] == pytest.approx(together.controls[i], abs=1e-5)


def test_texts_of_other_lengths_in_the_batch_change_nothing(tiny_llama, sae):
    texts = [TEXT, "a much longer text than that", "ab"]
    features = active_features(tiny_llama, sae, TEXT, top_k=4).features

    together = feature_effects(tiny_llama, sae, texts, features=features, controls=0)

    for i, text in enumerate(texts):
        alone = feature_effects(tiny_llama, sae, text, features=features, controls=0)
        assert together.per_example[i] == pytest.approx(alone.effects, abs=1e-7)
    assert together.effects == pytest.approx(together.per_example.mean(axis=0))


def test_the_interval_is_students_over_texts_and_takes_four_of_them(tiny_llama, sae):
    texts = [TEXT, "the dog ran", "one red hat", "my old map"]

    four = feature_effects(tiny_llama, sae, texts, top_k=4, controls=0)

    three = feature_effects(tiny_llama, sae, texts[:3], top_k=4, controls=0)
    expected = mean_of(four.per_example)
    assert four.ci_low == pytest.approx(expected.low)
    assert four.ci_high == pytest.approx(expected.high)
    assert (three.ci_low, three.ci_high) == (None, None)


def test_rescaling_the_sae_changes_no_effect_and_no_percentile(tiny_llama, sae):
    factor = mx.array(np.random.default_rng(3).uniform(0.2, 5.0, size=sae.d_sae).astype(np.float32))
    relu = changed(sae, activation=Relu())
    rescaled = changed(
        relu, W_enc=relu.W_enc * factor, b_enc=relu.b_enc * factor, W_dec=relu.W_dec / factor[:, None]
    )

    before, after = (feature_effects(tiny_llama, each, TEXT, top_k=6) for each in (relu, rescaled))

    assert after.features == before.features
    assert after.effects == pytest.approx(before.effects, rel=1e-3, abs=1e-8)
    assert after.percentiles == pytest.approx(before.percentiles, abs=0.051)


def test_a_pair_sets_each_feature_to_its_activation_on_the_corrupted_prompt(model):
    pair = PromptPair((NOTHING, ALL), (NOTHING, ONLY_A), answer=YES, foil=NO)

    result = feature_effects(model, planted_sae(0), pair, controls=0)

    assert result.ablation == "corrupted"
    # a is the same in both; b, c and d are 0 in the corrupted prompt
    assert set(result.features) == {B, C, 3}
    assert result.effect(B) == pytest.approx(-FIRST[ALL][1] * 2.0 * 1.0, abs=1e-5)
    zeroed = feature_effects(model, planted_sae(0), pair, ablation="zero", features=[A], controls=0)
    assert zeroed.effect(A) == pytest.approx(-9.0, abs=1e-5)


def test_only_the_chosen_positions_are_ablated(model):
    everywhere = feature_effects(model, planted_sae(0), PROMPT, features=[A], positions=slice(None))
    before = feature_effects(model, planted_sae(0), PROMPT, features=[A], positions=[0, 1])

    assert everywhere.effect(A) > 0.1
    assert before.effect(A) == 0.0
    assert before.fired == (0,)


def with_inert_copies(n: int) -> SAE:
    """Features a' and c', and n that fire as c' does and write where the unembedding does not read."""
    sae = planted_sae(1)
    turned = np.linspace(0.0, 1.0, n)[:, None]
    c, d = np.array(sae.W_dec[C]), np.array(sae.W_dec[3])
    rows = np.concatenate([np.array(sae.W_dec[[A, C]]), np.cos(turned) * c + np.sin(turned) * d])
    encoder = np.concatenate([np.array(sae.W_enc[:, [A, C]]), np.tile(np.array(sae.W_enc[:, [C]]), n)], 1)
    return changed(
        sae,
        W_enc=mx.array(encoder),
        b_enc=mx.zeros(n + 2),
        W_dec=mx.array(rows),
        activation=JumpRelu(mx.full(n + 2, 1e-3)),
    )


def test_the_causal_feature_is_beyond_its_controls_and_the_inert_one_is_not(model):
    result = feature_effects(model, with_inert_copies(20), PROMPT, features=[0, 1], answer=YES)

    assert result.percentiles[0] == 1.0
    assert result.p_values[0] == pytest.approx(1 / 21)
    assert result.beyond_controls() == (0,)
    assert not result.inactive_controls
    assert "f0" in result.summary().splitlines()[2]


def test_features_of_no_meaning_pass_their_controls_as_often_as_chance_has_it(tiny_llama):
    """Random directions in a random model: exchangeable with their controls, so one in twenty passes."""
    p_values = np.concatenate(
        [
            feature_effects(
                tiny_llama, random_sae(POINT, k=None, d_sae=64, seed=seed), TEXT, top_k=64, seed=seed
            ).p_values
            for seed in range(3)
        ]
    )

    assert len(p_values) > 150
    assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=0.04)
    assert np.median(p_values) == pytest.approx(0.5, abs=0.1)


def test_controls_write_as_much_as_the_feature_they_stand_in_for(model):
    """With a' and c' only, c's one control is a': it takes out c's amount along a's direction."""
    sae = planted_sae(1)
    two = changed(
        sae,
        W_enc=sae.W_enc[:, [A, C]],
        b_enc=mx.zeros(2),
        W_dec=sae.W_dec[[A, C]] * mx.array([[1.0], [3.0]]),
        activation=JumpRelu(mx.full(2, 1e-3)),
    )

    result = feature_effects(model, two, PROMPT, features=[0, 1], answer=YES, foil=NO)

    c_fires, norm, read_of_a = FIRST[ALL][C] * SECOND[C], 3.0, READ[A]
    assert result.controls[1, 0] == pytest.approx(-c_fires * norm * read_of_a, rel=1e-4)
    assert np.isnan(result.controls[:, 1:]).all()
    assert "too few for p" in result.summary()


def test_a_metric_that_no_feature_changes_is_said_to_be_one(model):
    result = feature_effects(model, planted_sae(0), PROMPT, metric=lambda logits: logits[:, 0] * 0)

    assert result.all_zero
    assert result.percentiles == pytest.approx(0.5)  # as large as all of its controls
    assert result.beyond_controls() == ()
    assert "No feature has an effect" in result.summary()
    assert (
        "none of them is changed" in feature_effects(model, planted_sae(0), PROMPT, features=[DEAD]).summary()
    )


def test_what_goes_together_badly_is_refused(model, tiny_llama, sae):
    with pytest.raises(SAEError, match="texts without one"):
        feature_effects(tiny_llama, sae, TEXT, ablation="corrupted")
    with pytest.raises(SAEError, match="zero, corrupted"):
        feature_effects(tiny_llama, sae, TEXT, ablation="mean")
    with pytest.raises(SAEError, match=r"16 wide at L1.resid_post, this SAE has d_in = 32"):
        feature_effects(model, sae, PROMPT)
    with pytest.raises(SAEError, match="no feature 99"):
        feature_effects(tiny_llama, sae, TEXT, features=[99])


def test_a_transcoder_is_measured_where_it_writes(tiny_llama):
    sae = changed(random_sae("L1.resid_mid"), hook_point_out="L1.mlp_out")
    acts = sae.encode(mx.array(residual(tiny_llama, TEXT, "L1.resid_mid")))

    result = feature_effects(tiny_llama, sae, TEXT, top_k=3, controls=0)

    for f, effect in zip(result.features, result.effects, strict=True):
        term = acts[..., f, None] * sae.W_dec[f]
        edit = interventions.add("L1.mlp_out", -term, positions=slice(1, None))
        assert effect == pytest.approx(kl_of(tiny_llama, TEXT, edit), rel=1e-3)


# estimates by gradients


def test_gradients_are_exact_where_the_model_is_linear(model):
    result = feature_attribution(model, planted_sae(1), PROMPT, answer=YES, foil=NO)
    exact = feature_effects(
        model, planted_sae(1), PROMPT, features=result.features, answer=YES, foil=NO, controls=0
    )

    assert result.features == (A, B, C, 3)
    assert result.scores == pytest.approx(exact.effects, abs=1e-4)
    assert result.error_score == pytest.approx(-0.5, abs=1e-4)
    assert result.added_up == pytest.approx(result.ablated_metric - result.clean_metric, abs=1e-4)


def test_a_gradient_is_the_slope_of_the_exact_effect(tiny_llama, sae):
    result = feature_attribution(tiny_llama, sae, TEXT, answer="x", foil="y")
    h = 0.01

    for f in [int(c.label[1:]) for c in result.top_components(5)]:
        moved = [
            np.array(tiny_llama.logits(TEXT, interventions=[feature_scale(sae, f, 1 - d, **counted())]))[
                0, -1
            ]
            for d in (h, -h)
        ]
        difference = (float(moved[0][120] - moved[0][121]) - float(moved[1][120] - moved[1][121])) / (2 * h)
        assert result.scores[result.features.index(f)] == pytest.approx(difference, rel=0.02, abs=1e-3)


def test_estimates_rank_features_as_exact_ablations_do(tiny_llama, sae):
    result = feature_attribution(tiny_llama, sae, PAIRS[0])

    exact = feature_effects(tiny_llama, sae, PAIRS[0], features=result.features, controls=0)

    assert np.corrcoef(result.scores, exact.effects)[0, 1] > 0.9
    assert len(result.features) > 20


@pytest.mark.parametrize("metric", ["logit_diff", "kl"])
def test_integrated_gradients_add_up_to_what_ablating_everything_does(tiny_llama, sae, metric):
    result = feature_attribution(tiny_llama, sae, PAIRS, method="ig", steps=40, metric=metric)

    change = result.ablated_metric - result.clean_metric
    assert abs(change) > 1e-3
    assert result.added_up == pytest.approx(change, rel=0.02, abs=2e-3)
    assert result.per_example.shape == (2, len(result.features))


def test_what_has_no_gradient_is_refused(tiny_llama, sae):
    with pytest.raises(MetricError, match="its gradient there is 0"):
        feature_attribution(tiny_llama, sae, TEXT, metric="kl")
    with pytest.raises(SAEError, match="an SAE at final_norm"):
        feature_attribution(tiny_llama, random_sae("final_norm"), TEXT)
    with pytest.raises(SAEError, match="no vector per position"):
        feature_effects(tiny_llama, random_sae("logits", width=128), TEXT)
    with pytest.raises(SAEError, match="only with method='ig'"):
        feature_attribution(tiny_llama, sae, TEXT, steps=3)


def test_without_an_answer_the_models_own_next_token_is_attributed(tiny_llama, sae):
    own = int(np.array(tiny_llama.logits(TEXT))[0, -1].argmax())

    assert feature_attribution(tiny_llama, sae, TEXT).scores == pytest.approx(
        feature_attribution(tiny_llama, sae, TEXT, answer=own).scores
    )


def test_features_are_attributed_through_a_quantised_model():
    module = tiny_module("llama", hidden_size=64, intermediate_size=64, head_dim=16)
    nn.quantize(module, group_size=32, bits=4)
    model, sae = InterpretableModel(module, ByteTokenizer()), random_sae(POINT, width=64)

    result = feature_attribution(model, sae, PAIRS[0])

    exact = feature_effects(model, sae, PAIRS[0], features=result.features, controls=0)
    assert np.corrcoef(result.scores, exact.effects)[0, 1] > 0.8


# results


def test_results_come_back_from_json_and_show_themselves(tiny_llama, sae):
    for result in (
        active_features(tiny_llama, sae, [TEXT, "ab"]),
        feature_effects(tiny_llama, sae, TEXT, top_k=3, controls=2),
        feature_effects(tiny_llama, sae, PAIRS, top_k=3, controls=2),
        feature_attribution(tiny_llama, sae, PAIRS, method="ig", steps=2),
    ):
        assert AnalysisResult.from_json(result.to_json()) == result
        assert "NaN," not in result.to_json()
        assert result.title in result.to_markdown()
        assert result.plot().axes
        first = result.top_components(1)[0]
        assert result.find(first.label) == first
        assert (first.layer, first.name) == (1, "resid_post")
