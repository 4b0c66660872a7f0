"""Attribution patching is a derivative: compared with differences, with patching where it is exact, and with
the softmax recomputed key by key."""

from __future__ import annotations

import sys
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from mlxterp import causal, metrics
from mlxterp.causal import PromptPair, activation_patching
from mlxterp.causal.gradients.backward import differentiable
from mlxterp.causal.gradients.qk_fix import Scores, one_key_each
from mlxterp.causal.prompts.pair import prepare
from mlxterp.core.interventions import add, edit, replace
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import CapabilityUnavailable, MetricError, PositionsAligned, SweepError
from mlxterp.models import toy
from mlxterp.results import AnalysisResult
from tests.causal.conftest import FIRST_DIFFERENCE, PAIR, PAIRS, logit_difference
from tests.rounding import backward_error
from tests.small_models import small_module
from tests.tiny_models import ByteTokenizer, tiny_module

# One step and nothing patched: what most of these tests are about. The defaults have their own.
attribution_patching = partial(causal.attribution_patching, steps=1, verify=0)
attribution_patchings = partial(causal.attribution_patchings, steps=1, verify=0)

EVERY = ("resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "mlp_out", "resid_post")


def gap(model):
    return logit_difference(model, PAIR.clean) - logit_difference(model, PAIR.corrupted)


@pytest.mark.parametrize("component", [*EVERY, "resid_mid"])
def test_an_estimate_is_the_slope_of_the_metric_along_the_patch(tiny_llama, component):
    """Central difference: a small step from the corrupted run's activation towards the clean run's."""
    by = "layer_head" if component in ("q", "k", "v", "pattern", "z") else "layer"
    result = attribution_patching(tiny_llama, PAIR, component=component, by=by)
    point, step = f"L1.{component}", 1e-2
    traces = [tiny_llama.trace(text, capture=[point]) for text in (PAIR.clean, PAIR.corrupted)]
    change = traces[0][point] - traces[1][point]
    heads = 1 if by == "layer_head" else None
    if component == "pattern":
        keep = mx.arange(4)[None, :, None, None] == 1
        moves = [edit(point, lambda x, s=s: x + s * change * keep) for s in (step, -step)]
    else:
        moves = [add(point, s * change, heads=heads) for s in (step, -step)]

    up, down = (logit_difference(tiny_llama, PAIR.corrupted, move) for move in moves)

    slope = (up - down) / (2 * step) / gap(tiny_llama)
    assert result.effects[1][1 if heads else ()] == pytest.approx(slope, abs=2e-3, rel=5e-3)


def test_positions_and_heads_add_up_to_the_layer(any_family):
    sweeps = [("z", "layer_pos_head"), ("attn_out", "layer")]
    fine, coarse = attribution_patchings(any_family, PAIR, sweeps=sweeps)
    alone = attribution_patching(any_family, PAIR, component="attn_out")

    assert fine.axes == ("layer", "pos", "head")
    assert np.all(fine.effects[:, :FIRST_DIFFERENCE] == 0)
    rounding = backward_error(
        any_family, lambda: attribution_patchings(any_family, PAIR, sweeps=sweeps)[0].effects.sum(axis=1)
    )
    assert alone.effects == pytest.approx(coarse.effects, abs=rounding)
    layer = any_family.architecture.layers[0]
    if layer.attn_adds is not layer.attn:
        return  # a norm stands between the heads and the stream
    by_head = attribution_patching(any_family, PAIR, component="z", by="layer_head")
    assert by_head.effects == pytest.approx(fine.effects.sum(axis=1), abs=rounding)
    assert by_head.effects.sum(axis=1) == pytest.approx(coarse.effects, abs=1e-4)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_where_the_rest_of_the_model_is_linear_the_estimate_is_the_effect(toy_model, direction):
    """The toy has no norms and no MLPs, so what its last layer's heads write reaches the logits linearly."""
    rng = np.random.default_rng(3)
    a, b, c, other = rng.choice(40, size=4, replace=False).tolist()
    pair = PromptPair((a, b, c, a), (a, other, c, a), answer=b, foil=other)
    options = {"component": "z", "by": "layer_pos_head", "direction": direction, "layers": [1]}

    estimated = attribution_patching(toy_model, pair, **options)
    patched = activation_patching(toy_model, pair, **options)

    assert estimated.effects == pytest.approx(patched.effects, abs=1e-5)
    assert np.abs(patched.effects).max() > 0.9


def test_over_a_dataset_the_effect_is_the_ratio_of_means_with_each_pair_beside_it(tiny_llama):
    together = attribution_patching(tiny_llama, PAIRS, component="z")
    alone = [attribution_patching(tiny_llama, pair, component="z") for pair in PAIRS]
    gaps = np.array([one.clean_metric - one.corrupted_metric for one in alone])
    each = np.array([one.effects for one in alone])

    assert together.per_example == pytest.approx(each, rel=1e-3, abs=1e-5)
    assert together.effects == pytest.approx(
        (each * gaps[:, None, None]).sum(axis=0) / gaps.sum(), rel=1e-3, abs=1e-5
    )
    assert together.ci_low is None
    assert any(each.startswith(f"No interval: {len(PAIRS)} independent") for each in together.cautions)


@pytest.mark.parametrize("metric", ["logit_diff", "log_prob", "prob", "logit", "kl", "l2", "cosine", None])
def test_every_metric_has_the_slope_of_its_own_numbers(tiny_llama, metric):
    pair = PromptPair(PAIR.clean, PAIR.corrupted, answer="x", foil="y")
    own = lambda logits: logits[:, 5] * 2 - logits[:, 7]  # noqa: E731
    chosen, step, point = metric or own, 2e-2, "L2.mlp_out"
    result = attribution_patching(tiny_llama, pair, component="mlp_out", metric=chosen)
    patched = activation_patching(tiny_llama, pair, component="mlp_out", metric=chosen)
    base, source = (tiny_llama.trace(t, capture=[point]) for t in (pair.corrupted, pair.clean))

    prepared = prepare(tiny_llama, pair, chosen)
    change = step * (source[point] - base[point])
    values = [
        prepared.metric(
            np.array(tiny_llama.logits(pair.corrupted, interventions=[add(point, s * change)]))[:, -1],
            prepared.targets,
        )[0]
        for s in (1, -1)
    ]
    assert isinstance(prepared.metric, metrics.Metric)
    slope = (values[0] - values[1]) / (2 * step) / prepared.gap
    assert result.effects[2] == pytest.approx(slope, abs=2e-3, rel=1e-2)
    assert result.metric == patched.metric


def test_a_metric_of_ones_own_sees_each_pairs_own_answer_and_foil(tiny_llama):
    """With operators that numpy and mlx share, it is patched and differentiated like the named one."""

    def margin(logits, targets):
        one_hot = np.eye(logits.shape[-1], dtype=np.float32)
        direction = one_hot[targets.answers] - one_hot[targets.foils]
        return (logits * (direction if isinstance(logits, np.ndarray) else mx.array(direction))).sum(axis=-1)

    for method in (activation_patching, attribution_patching):
        own = method(tiny_llama, PAIRS, component="z", metric=margin)
        named = method(tiny_llama, PAIRS, component="z", metric="logit_diff")

        assert own.metric == "margin"
        assert own.per_example == pytest.approx(named.per_example, abs=1e-3)


def test_with_the_qk_fix_a_query_or_key_is_as_exact_as_the_pattern_it_makes(tiny_llama):
    """Recomputed one by one: replace one query or key, let attention compute, multiply by the slope there."""
    sweeps = [("q", "layer_pos_head"), ("k", "layer_pos_head")]
    fixed = dict(zip("qk", attribution_patchings(tiny_llama, PAIR, sweeps=sweeps, qk_fix=True), strict=True))
    base, source = (
        tiny_llama.trace(t, capture=["L1.q", "L1.k", "L1.pattern"]) for t in (PAIR.corrupted, PAIR.clean)
    )
    every = slope_at_pattern(tiny_llama, 1)
    for name, head, heads in (("q", 3, slice(3, 4)), ("k", 1, slice(2, 4))):
        for pos in (FIRST_DIFFERENCE, 8):
            change = replace(f"L1.{name}", source[f"L1.{name}"], positions=pos, heads=head)
            moved = tiny_llama.trace(PAIR.corrupted, capture=["L1.pattern"], interventions=[change])
            difference = np.array(moved["L1.pattern"] - base["L1.pattern"])[0]
            expected = (difference * every)[heads].sum() / gap(tiny_llama)
            assert fixed[name].effects[1, pos, head] == pytest.approx(expected, abs=1e-5)


def slope_at_pattern(model, layer):
    def metric(zero):
        move = edit(f"L{layer}.pattern", lambda x: x + zero)
        logits, _ = model.run(model.to_tokens(PAIR.corrupted), interventions=[move])
        row = logits[0, -1]
        return row[model.to_single_token(PAIR.answer)] - row[model.to_single_token(PAIR.foil)]

    length = len(PAIR.corrupted)
    return np.array(mx.grad(metric)(mx.zeros((1, 4, length, length))))[0]


@pytest.mark.parametrize("name", ["q", "k"])
def test_with_the_qk_fix_all_positions_at_once_are_one_softmax(tiny_llama, name):
    fixed = attribution_patching(tiny_llama, PAIR, component=name, by="layer_head", qk_fix=True)
    base, source = (
        tiny_llama.trace(t, capture=[f"L1.{name}", "L1.pattern"]) for t in (PAIR.corrupted, PAIR.clean)
    )
    change = replace(f"L1.{name}", source[f"L1.{name}"], heads=1)
    moved = tiny_llama.trace(PAIR.corrupted, capture=["L1.pattern"], interventions=[change])
    difference = np.array(moved["L1.pattern"] - base["L1.pattern"])[0]

    expected = (difference * slope_at_pattern(tiny_llama, 1)).sum() / gap(tiny_llama)

    assert fixed.effects[1, 1] == pytest.approx(expected, abs=1e-5)


def test_a_saturated_softmax_hides_queries_from_the_gradient_but_not_from_the_fix(toy_model):
    """The toy with a hundred times sharper queries: which word it looks for still decides everything."""
    module, tokenizer = toy.load()
    sharp = module.model.layers[1].self_attn.q_proj
    sharp.weight = sharp.weight * 100
    model = InterpretableModel(module, tokenizer)
    pair = PromptPair((1, 2, 3, 4, 5, 1), (1, 2, 3, 4, 5, 3), answer=2, foil=4)

    plain = attribution_patching(model, pair, component="q")
    fixed = attribution_patching(model, pair, component="q", qk_fix=True)

    assert plain.effects[1, 1] == pytest.approx(0, abs=1e-3)
    assert fixed.effects[1, 1] == pytest.approx(1, abs=0.05)
    assert any("saturated" in text for text in plain.cautions)
    assert not any("saturated" in text for text in fixed.cautions)


def test_grad_drop_is_the_mean_size_of_the_estimates_with_one_layer_held(tiny_llama):
    """Held by hand: a run whose layer ℓ adds what it added in the base run, whatever comes before."""
    dropped = attribution_patching(tiny_llama, PAIR, component="z", grad_drop=True)
    names = [f"L{layer}.{part}" for layer in range(3) for part in ("attn_out", "mlp_out")]
    base = tiny_llama.trace(PAIR.corrupted, capture=[*names, "L0.z"])
    change = tiny_llama.trace(PAIR.clean, capture=["L0.z"])["L0.z"] - base["L0.z"]
    step, sizes = 1e-2, []
    for layer in (0, 1, 2):
        held = [replace(f"L{layer}.{part}", base[f"L{layer}.{part}"]) for part in ("attn_out", "mlp_out")]
        up, down = (
            logit_difference(tiny_llama, PAIR.corrupted, add("L0.z", s * change, heads=2), *held)
            for s in (step, -step)
        )
        sizes.append(abs(up - down) / (2 * step))

    expected = sum(sizes) / 2 / abs(gap(tiny_llama))

    plain = attribution_patching(tiny_llama, PAIR, component="z")
    assert sizes[0] == 0
    assert abs(dropped.effects[0, 2]) == pytest.approx(expected, abs=2e-3, rel=5e-3)
    assert np.all(np.sign(dropped.effects) == np.sign(plain.effects))


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_with_steps_the_gradient_is_the_mean_on_the_way_between_both_inputs(tiny_llama, direction):
    """Two steps: the base run, and the run halfway to the source run's embeddings."""
    base, source = (PAIR.corrupted, PAIR.clean) if direction == "denoising" else (PAIR.clean, PAIR.corrupted)
    embeds, zs = zip(
        *[
            (t["embed"], t["L1.z"])
            for t in (tiny_llama.trace(p, capture=["embed", "L1.z"]) for p in (base, source))
        ],
        strict=True,
    )
    halfway, change, step = add("embed", 0.5 * (embeds[1] - embeds[0])), zs[1] - zs[0], 1e-2
    slopes = []
    for moved in ([], [halfway]):
        up, down = (
            logit_difference(tiny_llama, base, *moved, add("L1.z", s * change, heads=1))
            for s in (step, -step)
        )
        slopes.append((up - down) / (2 * step) / gap(tiny_llama))
    sign = 1 if direction == "denoising" else -1

    result = attribution_patching(tiny_llama, PAIR, steps=2, direction=direction)

    assert result.effects[1, 1] == pytest.approx(sign * np.mean(slopes), abs=2e-3, rel=5e-3)
    assert result.method == "attribution patching with 2 steps"


@pytest.mark.usefixtures("pinned_threads")
def test_one_step_is_plain_attribution_patching_and_batches_change_nothing(tiny_llama, monkeypatch):
    plain = attribution_patching(tiny_llama, PAIRS, component="mlp_out", by="layer_pos")
    options = {"component": "mlp_out", "by": "layer_pos", "steps": 5}
    five = attribution_patching(tiny_llama, PAIRS, **options)
    for_all, for_each = (
        backward_error(
            tiny_llama, lambda name=name: getattr(attribution_patching(tiny_llama, PAIRS, **options), name)
        )
        for name in ("effects", "per_example")
    )

    one = attribution_patching(tiny_llama, PAIRS, component="mlp_out", by="layer_pos", steps=1)
    monkeypatch.setattr("mlxterp.causal.gradients.estimates.TOKEN_BUDGET", 23)
    slowly = attribution_patching(tiny_llama, PAIRS, **options)

    assert np.array_equal(one.effects, plain.effects)
    assert slowly.effects == pytest.approx(five.effects, abs=for_all)
    assert slowly.per_example == pytest.approx(five.per_example, abs=for_each)


@pytest.mark.parametrize("options", [{}, {"steps": 2}, {"grad_drop": True}], ids=["plain", "steps", "drop"])
def test_a_prompt_of_more_tokens_than_a_batch_holds_is_estimated_all_the_same(
    tiny_llama, monkeypatch, options
):
    def estimate():
        return attribution_patching(tiny_llama, PAIR, component="z", **options).effects

    whole, rounding = estimate(), backward_error(tiny_llama, estimate)

    monkeypatch.setattr("mlxterp.causal.gradients.estimates.TOKEN_BUDGET", 1)

    assert estimate() == pytest.approx(whole, abs=rounding)


@pytest.mark.parametrize("component", ["k", "q", "z"])
def test_some_positions_are_estimated_as_they_are_among_all(tiny_llama, component):
    options = {"component": component, "by": "layer_pos_head", "qk_fix": component != "z"}
    every = attribution_patching(tiny_llama, PAIR, **options)
    rounding = backward_error(tiny_llama, lambda: attribution_patching(tiny_llama, PAIR, **options).effects)

    some = attribution_patching(tiny_llama, PAIR, positions=[5, 8], **options)

    at = [every.indices_of("pos").index(pos) for pos in (5, 8)]
    assert some.effects == pytest.approx(
        np.take(every.effects, at, axis=every.axes.index("pos")), abs=rounding
    )
    assert np.abs(some.effects).max() > 100 * rounding


def test_with_many_steps_patching_the_whole_input_is_estimated_as_everything(tiny_llama):
    shares = [
        attribution_patching(tiny_llama, PAIR, steps=n).measured_on["estimate_of_patching_the_whole_input"]
        for n in (1, 64)
    ]

    assert shares[1] == pytest.approx(1, abs=0.05)
    assert abs(shares[0] - 1) > 2 * abs(shares[1] - 1)


def test_steps_see_a_head_that_acts_through_a_saturated_softmax_and_say_where_they_disagree():
    """The toy's first planted head hands its word to sharp keys: in both runs no gradient reaches it."""
    module, tokenizer = toy.load()
    sharp = module.model.layers[1].self_attn.k_proj
    sharp.weight = sharp.weight * 100
    model = InterpretableModel(module, tokenizer)
    pair = PromptPair((1, 2, 3, 4, 5, 1), (9, 2, 1, 4, 5, 1), answer=2, foil=4)
    patched = activation_patching(model, pair, component="z")

    plain = attribution_patching(model, pair, component="z")
    stepped = attribution_patching(model, pair, component="z", steps=32)

    assert patched.effects[0, 2] > 0.9
    assert abs(plain.effects[0, 2]) < 0.05
    assert stepped.effects[0, 2] > 0.3
    assert any("Single steps disagree at L0.H2" in text for text in stepped.cautions)
    assert not any("Single steps" in text for text in plain.cautions)


def test_sites_are_named_where_the_steps_lie_further_apart_than_their_mean(tiny_llama):
    """Of two steps one is plain attribution patching, so the other follows from it and the mean."""
    plain = attribution_patching(tiny_llama, PAIR, component="z").effects
    stepped = attribution_patching(tiny_llama, PAIR, component="z", steps=2)
    other = 2 * stepped.effects - plain
    apart = np.abs(other - plain)
    order = [f"L{i // 4}.H{i % 4}" for i in np.argsort(-apart, axis=None)]
    unsteady = int(((apart > 0.1) & (apart > np.abs(stepped.effects))).sum())

    (said,) = [text for text in stepped.cautions if text.startswith("Single steps disagree")]

    assert 0 < unsteady < apart.size
    assert [part.split(" (")[0] for part in said[25:].split(", ")][:3] == order[:3]
    assert said.count(" to ") == min(6, unsteady)
    low, high = sorted((plain.ravel()[apart.argmax()], other.ravel()[apart.argmax()]))
    assert f"{order[0]} ({low:.2f} to {high:.2f})" in said


def test_the_result_says_what_it_is_and_how_far_to_trust_it(tiny_llama):
    result = attribution_patching(tiny_llama, PAIR, component="resid_pre", by="layer_pos")

    share = result.measured_on["estimate_of_patching_the_whole_input"]
    assert share == pytest.approx(result.effects[0].sum(), abs=1e-5)
    assert result.estimated
    assert result.title.startswith("Attribution patching of resid_pre")
    assert "poor by nature" in result.summary()
    assert f"{share:.2f}" in result.summary()
    assert AnalysisResult.from_json(result.to_json()) == result


def test_prompts_of_different_lengths_are_compared_along_a_stated_map(tiny_llama):
    pair = PromptPair("the cat sat", "the bird sat", answer="x", foil="y")
    with pytest.warns(UserWarning, match="position"):
        result = attribution_patching(tiny_llama, pair, component="z", by="layer_pos", align="auto")

    assert result.axes == ("layer", "pos")
    assert "estimate_of_patching_the_whole_input" not in result.measured_on
    with pytest.warns(UserWarning, match="position"), pytest.raises(SweepError, match="steps=3"):
        attribution_patching(tiny_llama, pair, component="z", align="auto", steps=3)


def test_a_softmax_computed_in_place_has_slopes_but_cannot_be_recomputed():
    model = InterpretableModel(tiny_module("gemma2"), ByteTokenizer())

    assert np.abs(attribution_patching(model, PAIR, component="q").effects).max() > 0
    with pytest.raises(CapabilityUnavailable, match="Leave qk_fix out"):
        attribution_patching(model, PAIR, component="q", qk_fix=True)


def test_what_has_no_slope_is_refused(tiny_llama):
    with pytest.raises(MetricError, match="its gradient there is 0"):
        attribution_patching(tiny_llama, PAIR, metric="kl", direction="noising")
    with pytest.raises(MetricError, match="mlx array"):
        attribution_patching(tiny_llama, PAIR, metric=lambda logits: np.tanh(np.array(logits)[:, 3]))
    with pytest.raises(SweepError, match="the stream itself"):
        attribution_patching(tiny_llama, PAIR, component="resid_pre", grad_drop=True)
    with pytest.raises(SweepError, match="sweeps is empty"):
        attribution_patchings(tiny_llama, PAIR, sweeps=())
    with pytest.raises(SweepError, match="steps=0"):
        attribution_patching(tiny_llama, PAIR, steps=0)
    with pytest.raises(SweepError, match="Choose one of the two"):
        attribution_patching(tiny_llama, PAIR, steps=2, grad_drop=True)


IOI = [
    ("When{a} and{b} went to the store,{c} gave a drink to", (" John", " Mary")),
    ("When{a} and{b} went to the shops,{c} handed the bag to", (" Tom", " Anna")),
    ("Then,{a} and{b} had a long argument, and after that{c} said to", (" Paul", " Lisa")),
]


def ioi_pair(template, names):
    subject, other = names
    return PromptPair(
        template.format(a=subject, b=other, c=subject),
        template.format(a=subject, b=other, c=other),
        answer=other,
        foil=subject,
    )


def agreement(patched, estimated):
    """Correlation, and how many of the ten strongest sites both name."""
    top = [set(np.argsort(-np.abs(result.effects.ravel()))[:10]) for result in (patched, estimated)]
    correlation = np.corrcoef(patched.effects.ravel(), estimated.effects.ravel())[0, 1]
    sizes = np.corrcoef(np.abs(patched.effects.ravel()), np.abs(estimated.effects.ravel()))[0, 1]
    return correlation, sizes, len(top[0] & top[1]) / 10


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_on_heads_of_a_real_model_verified_estimates_agree_with_patching(which, direction):
    """Unverified, denoising the third pair, the correlation is 0.71; the result tells how far off it was."""
    model = InterpretableModel("smollm2-135m")
    options = {"component": "z", "direction": direction}
    pair = ioi_pair(*IOI[which])
    patched = activation_patching(model, pair, **options)

    plain = attribution_patching(model, pair, **options)
    verified = attribution_patching(model, pair, verify=30, **options)
    fixed = attribution_patching(model, pair, verify=30, qk_fix=True, grad_drop=True, **options)

    correlation, sizes, recall = agreement(patched, verified)
    _, sizes_with_fixes, recall_with_fixes = agreement(patched, fixed)
    assert correlation >= 0.99
    assert recall == 1
    assert sizes_with_fixes >= sizes - 0.01
    assert recall_with_fixes >= recall
    off = np.abs(patched.effects - plain.effects)
    assert verified.measured_on["verified"]["largest_difference"] == pytest.approx(off.max(), abs=1e-4)
    above = np.abs(patched.effects) > verified.measured_on["verified"]["random_largest_effect"] + 1e-6
    most = verified.measured_on["verified"]["left_with_a_larger_effect_at_most"]
    assert (above & ~verified.measured).sum() <= most


@pytest.mark.slow
def test_with_five_steps_heads_behind_saturated_softmaxes_are_estimated_nearer_and_named():
    """Denoising the third pair, where one step correlates by 0.71."""
    model = InterpretableModel("smollm2-135m")
    pair = ioi_pair(*IOI[2])
    patched = activation_patching(model, pair, component="z")

    estimated = attribution_patching(model, pair, component="z", steps=5)

    correlation, _, _ = agreement(patched, estimated)
    assert correlation >= 0.9
    assert any("Single steps disagree" in text for text in estimated.cautions)


@pytest.mark.slow
def test_on_queries_and_keys_of_a_real_model_the_qk_fix_is_nearer_to_patching():
    model = InterpretableModel("smollm2-135m")
    pair = ioi_pair(*IOI[0])
    for component in ("q", "k"):
        patched = activation_patching(model, pair, component=component)
        plain, fixed = (
            attribution_patching(model, pair, component=component, qk_fix=fix) for fix in (False, True)
        )

        assert agreement(patched, fixed)[0] > agreement(patched, plain)[0]
        assert agreement(patched, fixed)[2] >= agreement(patched, plain)[2]


def test_a_key_whose_score_grows_from_nothing_takes_all_the_attention():
    """p is below float32's smallest number and e^δ above its largest: the new probability is 1."""
    scores = Scores(scale=1.0, mask=None, sinks=None)
    q = mx.array([[[[1.0, 0.0]]]])  # [batch, pos, head, d_head]
    k = mx.array([[[[-120.0, 0.0]], [[0.0, 0.0]]]])
    other = mx.array([[[[120.0, 0.0]]]])

    p, w = one_key_each(scores, q, k, other, [0])

    # Σ_j (p'_j − p_j) G_j = w (G_s − Σ_j p_j G_j): with p' = (1, 0) and p = (0, 1), w is 1
    assert np.array(p).ravel() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert np.array(w).ravel() == pytest.approx([1.0], abs=1e-6)


def test_the_qk_fix_needs_attention_in_every_layer():
    model = InterpretableModel(small_module("lfm2"))
    clean, corrupted = [3, 50, 7, 90, 21, 64, 8, 33], [3, 50, 7, 91, 21, 64, 8, 33]

    with pytest.raises(CapabilityUnavailable, match="does not have 'q' in every layer"):
        attribution_patching(model, clean, corrupted, component="q", qk_fix=True, answer=5, foil=9)


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_what_is_differentiated_is_the_metric_of_each_row(name):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 11)).astype(np.float32)
    clean = rng.normal(size=(3, 11)).astype(np.float32)
    clean[2] = logits[2]  # where every distance is 0
    targets = metrics.Targets(np.array([1, 4, 7]), np.array([0, 2, 10]), clean)
    metric = metrics.METRICS[name]

    found = differentiable(metric, metric, targets)(mx.array(logits))

    assert np.allclose(np.array(found), metric(logits, targets), atol=1e-5)


def test_by_default_there_are_five_steps_and_where_their_check_holds_nothing_is_patched(toy_model):
    rng = np.random.default_rng(3)
    a, b, c, other = rng.choice(40, size=4, replace=False).tolist()
    pair = PromptPair((a, b, c, a), (a, other, c, a), answer=b, foil=other)

    found = causal.attribution_patching(toy_model, pair, component="z")

    assert found.measured_on["estimate_of_patching_the_whole_input"] == pytest.approx(1, abs=1e-4)
    assert found.measured is None
    assert found == causal.attribution_patching(toy_model, pair, component="z", steps=5, verify=0)


@pytest.mark.parametrize(("share", "patched"), [(0.89, True), (0.91, False), (1.09, False), (1.11, True)])
def test_where_the_check_fails_the_strongest_sites_are_patched_and_the_result_says_why(
    tiny_llama, monkeypatch, share, patched
):
    module = sys.modules[causal.attribution_patching.__module__]
    real = module.estimates
    of_gap = gap(tiny_llama)

    def checked(*args, **options):
        return real(*args, **options)._replace(of_input=np.array([share * of_gap]))

    monkeypatch.setattr(module, "estimates", checked)
    monkeypatch.setattr(module, "VERIFIED", 2)

    found = causal.attribution_patching(tiny_llama, PAIR, component="z", by="layer_pos_head")

    exact = activation_patching(tiny_llama, PAIR, component="z", by="layer_pos_head")
    if patched:
        strongest = found.measured & (np.abs(exact.effects) > 0)
        assert found.effects[strongest] == pytest.approx(exact.effects[strongest], abs=1e-4)
        assert found.measured.sum() >= 3
        assert (
            f"1 in truth, is {share:.2f}, outside 0.9 to 1.1: so the strongest sites were"
            in found.cautions[0]
        )
    else:
        assert found.measured is None
    chosen = causal.attribution_patching(tiny_llama, PAIR, component="z", by="layer_pos_head", verify=0)
    assert chosen.measured is None


def test_prompts_along_a_map_have_one_step_and_their_strongest_sites_are_patched(tiny_llama):
    pair = PromptPair("Where did Mary go", "Where did Bo go", answer="x", foil="y")

    with pytest.warns(PositionsAligned):
        found = causal.attribution_patching(tiny_llama, pair, component="z", align="auto")

    assert found.measured_on["steps"] == 1
    assert found.measured is not None
    assert "is not known here" in found.cautions[0]


def test_grad_drop_has_one_step_by_default(tiny_llama):
    found = causal.attribution_patching(tiny_llama, PAIR, component="z", grad_drop=True, verify=0)

    assert found == attribution_patching(tiny_llama, PAIR, component="z", grad_drop=True)
