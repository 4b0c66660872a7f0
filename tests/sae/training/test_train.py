"""Training: planted truth is found, the dead come back, an interrupted run ends with the same bits."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.errors import SAEError, TooLittleData, UnderTrained
from mlxterp.sae import (
    ArrayActivations,
    JumpRelu,
    Relu,
    SAEConfig,
    TopK,
    absorption,
    fvu,
    reconstruction_quality,
    recovery,
    train_sae,
    train_saes,
)
from mlxterp.sae.config import Plan, batch_for, plan
from mlxterp.sae.training import checkpoints, objective
from mlxterp.sae.training.objective import largest
from mlxterp.sae.training.step import Stepper
from tests.sae.planted_directions import POINT, Planted, easy, hard, hierarchy

SMALL = SAEConfig(d_sae=48, k=3, learning_rate=4e-3, batch_tokens=128)


def small(seed: int = 0, tokens: int = 12_800) -> Planted:
    return easy(seed, tokens=tokens, n=24, d=16, density=0.08)


def quietly(*arguments: Any, **options: Any):
    """Trains without the warning of an SAE that could have gone on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnderTrained)
        return train_sae(*arguments, **options)


def test_planted_features_are_found_by_a_short_run():
    planted = small(tokens=38_400)

    trained = quietly(planted.source(), replace(SMALL, variant="topk"))

    found = recovery(trained.sae, planted.directions)
    assert found.recovered.value >= 0.9
    assert reconstruction_quality(trained.sae, planted.x)["fvu"].value < 0.15


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "limit"), [("topk", 0.12), ("batchtopk", 0.085)])
@pytest.mark.parametrize("seed", range(5))
def test_the_planted_set_is_recovered_with_defaults(variant, limit, seed):
    planted = easy(seed)

    trained = train_sae(planted.source(), SAEConfig(d_sae=128, k=4, variant=variant, epochs=4, seed=seed))

    found = recovery(trained.sae, planted.directions)
    assert found.recovered.value == 1
    assert found.mcc.value >= 0.95
    assert reconstruction_quality(trained.sae, planted.x)["fvu"].value <= limit


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["topk", "batchtopk"])
@pytest.mark.parametrize("seed", range(3))
def test_the_harder_planted_set_is_recovered(variant, seed):
    planted = hard(seed)

    trained = quietly(planted.source(), SAEConfig(d_sae=512, k=10, variant=variant, epochs=4, seed=seed))

    assert recovery(trained.sae, planted.directions).mcc.value >= 0.85


@pytest.mark.slow
def test_nested_prefixes_keep_parents_from_being_absorbed():
    planted = hierarchy(0)
    found = {}

    for variant in ("batchtopk", "matryoshka"):
        sae = quietly(planted.source(), SAEConfig(d_sae=128, k=3, variant=variant, epochs=2)).sae
        n = 50_000
        found[variant] = absorption(
            sae, planted.x[:n], planted.directions, planted.fires[:n], planted.parents
        ).value

    assert found["batchtopk"] > 0.1  # otherwise there is nothing to keep from
    assert found["matryoshka"] < 0.5 * found["batchtopk"]


@pytest.mark.parametrize(
    ("variant", "kind"),
    [
        ("topk", TopK),
        ("batchtopk", JumpRelu),
        ("matryoshka", JumpRelu),
        ("jumprelu", JumpRelu),
        ("relu", Relu),
    ],
)
def test_every_variant_learns_and_is_about_as_sparse_as_asked(variant, kind):
    planted = small()

    trained = quietly(planted.source(), replace(SMALL, variant=variant, epochs=2, prefixes=(0.25, 0.5, 1.0)))

    quality = reconstruction_quality(trained.sae, planted.x)
    assert isinstance(trained.sae.activation, kind)
    assert quality["fvu"].value < 0.6
    # L1 reaches k late: it begins with half of the 48 features.
    assert 0.5 * SMALL.k < quality["l0"].value < (18 if variant == "relu" else 2 * SMALL.k)
    assert quality["fvu"].value == pytest.approx(trained.history[-1].fvu, abs=0.15)


def test_what_is_trained_on_scaled_data_is_for_raw_data():
    planted = small()
    raw = ArrayActivations({POINT: 50 * planted.x + 7})

    trained = quietly(raw, replace(SMALL, variant="topk"))
    plain = quietly(planted.source(), replace(SMALL, variant="topk"))

    assert fvu(
        50 * planted.x + 7, np.array(trained.sae.reconstruct(mx.array(50 * planted.x + 7)))
    ) == pytest.approx(fvu(planted.x, np.array(plain.sae.reconstruct(mx.array(planted.x)))), abs=0.02)
    norms = np.linalg.norm(np.array(trained.sae.W_dec), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_learns_a_map_and_its_skip_path_the_linear_part(skip):
    planted = small()
    random = np.random.default_rng(5)
    linear = random.normal(size=(16, 12)).astype(np.float32)
    y = planted.x @ linear + 3.0
    source = ArrayActivations({"L0.resid_mid": planted.x + 1, "L0.mlp_out": y})
    config = replace(
        SMALL, variant="topk", hook_point="L0.resid_mid", hook_point_out="L0.mlp_out", skip=skip, epochs=2
    )

    sae = quietly(source, config).sae

    error = fvu(y, np.array(sae.reconstruct(mx.array(planted.x + 1))))
    assert sae.is_transcoder
    assert error < (0.04 if skip else 0.5)


def test_several_saes_from_one_pass_are_what_each_is_alone():
    source = small().source()
    configs = [replace(SMALL, variant="topk"), replace(SMALL, variant="topk", k=5)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnderTrained)
        together = train_saes(source, configs)

    assert [each.sae.digest for each in together] == [
        quietly(source, config).sae.digest for config in configs
    ]


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "jumprelu", "relu"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(variant, tmp_path):
    source, config = small().source(), replace(SMALL, variant=variant, dead_after=512)
    whole = quietly(source, config)
    steps = []

    stopped = quietly(
        source,
        config,
        checkpoint=tmp_path,
        checkpoint_every=10,
        stop=lambda: steps.append(1) or len(steps) == 57,
    )
    resumed = quietly(source, config, checkpoint=tmp_path)

    assert stopped.sae.metadata["training"]["steps"] == 57
    assert stopped.sae.digest != whole.sae.digest
    assert resumed.sae.digest == whole.sae.digest
    assert resumed.history[5].fvu == whole.history[5].fvu
    assert resumed.history[-1].tokens == whole.history[-1].tokens == 12_800


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    source = small().source()
    quietly(source, SMALL, checkpoint=tmp_path, stop=lambda: True)

    with pytest.raises(SAEError, match=r"another training \(k: 3 then, 5 now\)"):
        quietly(source, replace(SMALL, k=5), checkpoint=tmp_path)
    with pytest.raises(SAEError, match="other activations"):
        quietly(small(1).source(), SMALL, checkpoint=tmp_path)


def with_forced_dead(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    start = objective.start

    def begin(config: SAEConfig, *arguments: Any, **options: Any):
        params = start(config, *arguments, **options)
        bias = np.zeros(config.d_sae, np.float32)
        bias[: int(share * config.d_sae)] = -100.0
        return params | {"b_enc": mx.array(bias)}

    monkeypatch.setattr(objective, "start", begin)


@pytest.mark.parametrize(("aux_weight", "low", "high"), [(1 / 32, 0.0, 0.05), (0.0, 0.25, 1.0)])
def test_dead_features_come_back_with_the_auxiliary_loss_and_only_with_it(monkeypatch, aux_weight, low, high):
    with_forced_dead(monkeypatch, 0.3)
    planted = small(tokens=25_600)

    trained = quietly(
        planted.source(), replace(SMALL, variant="topk", d_sae=24, aux_weight=aux_weight, dead_after=1024)
    )

    dead = reconstruction_quality(trained.sae, planted.x)["dead"].value
    assert low <= dead <= high


def test_dead_features_get_a_gradient_in_encoder_and_decoder(monkeypatch):
    with_forced_dead(monkeypatch, 0.3)
    config = replace(SMALL, variant="topk")
    stepper = Stepper(config, Plan(128, 100, 12_800, 512), 1e-3)
    x = mx.array(small().x[:128]) * 5
    state = stepper.begin(16, 16, x)
    state.dead = mx.arange(14)

    gradients, _, _ = stepper._gradients(state, x, x)

    for name, axis in (("W_enc", 0), ("W_dec", 1)):
        size = np.abs(np.array(gradients[name])).sum(axis=axis)
        assert (size[:14] > 0).all(), name


def test_decoder_rows_stay_of_norm_one_and_their_gradient_has_no_part_along_them():
    stepper = Stepper(SMALL, Plan(128, 100, 12_800, 1024), 1e-2)
    x = mx.array(small().x[:128]) * 5
    state = stepper.begin(16, 16, x)
    before = np.array(state.params["W_dec"])

    stepper.advance(state, x, x)

    after = np.array(state.params["W_dec"])
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, atol=1e-6)
    assert np.abs(after - before).max() > 1e-5


def test_pieces_of_a_batch_give_the_gradient_of_the_whole(monkeypatch):
    config = replace(SMALL, variant="topk")
    stepper = Stepper(config, Plan(128, 100, 12_800, 1024), 1e-2)
    x = mx.array(small().x[:128]) * 5
    state = stepper.begin(16, 16, x)

    whole, _, _ = stepper._gradients(state, x, x)
    monkeypatch.setattr("mlxterp.sae.training.step._PIECE_VALUES", 48 * 40)
    parts, seen, _ = stepper._gradients(state, x, x)

    for name, value in whole.items():
        np.testing.assert_allclose(np.array(parts[name]), np.array(value), atol=1e-5, err_msg=name)
    assert int(seen.active.sum()) <= 3 * 128


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step():
    """On a GPU steps are compiled; on this CPU MLX compiles them too, if a C++ compiler is there."""
    x = mx.array(small().x[:128]) * 5
    found = []
    for compiled in (False, True):
        stepper = Stepper(SMALL, Plan(128, 4, 512, 10**6), 1e-3)
        if compiled:
            stepper._gradient = {by: mx.compile(stepper._of_piece(by_batch=by)) for by in (False, True)}
        state = stepper.begin(16, 16, x)
        for _ in range(4):  # the last by batch
            stepper.advance(state, x, x)
        found.append(np.array(state.params["W_enc"]))

    np.testing.assert_allclose(found[1], found[0], atol=1e-6)


def test_the_rate_rises_stays_and_falls_to_nothing():
    stepper = Stepper(SMALL, Plan(128, 1000, 128_000, 1024), 1.0)

    rates = [stepper.rate(step) for step in range(1000)]

    assert rates[0] == pytest.approx(0.02)
    assert rates[49:800] == [1.0] * 751
    assert rates[900] == pytest.approx(0.5)
    assert rates[999] == pytest.approx(0.005)


def test_too_little_data_raises_instead_of_giving_a_random_sae():
    with pytest.raises(TooLittleData, match=r"8 steps.*Give at least 12,800 tokens"):
        train_sae(small(tokens=2_000).source(), replace(SMALL, batch_tokens=256))


def test_a_learning_rate_that_is_far_too_low_is_warned_of():
    with pytest.warns(UnderTrained, match="still falling by"):
        trained = train_sae(small().source(), replace(SMALL, variant="topk", learning_rate=1e-4))

    assert trained.under_trained


def test_a_learning_rate_is_found_where_none_is_given():
    planted = small(tokens=25_600)

    trained = quietly(planted.source(), replace(SMALL, variant="topk", learning_rate=None))

    assert 5e-4 < trained.sae.metadata["training"]["learning_rate"] < 3e-2
    assert reconstruction_quality(trained.sae, planted.x)["fvu"].value < 0.25


def test_progress_counts_tokens_exactly_and_says_how_long():
    ticks = iter(range(1000))
    said = []

    trained = quietly(small().source(), SMALL, progress=said.append, clock=lambda: float(next(ticks)))

    assert [line.step for line in said] == list(range(5, 101, 5))
    assert said[-1].tokens == 12_800
    assert said[0].tokens_per_second == 5 * 128
    assert said[0].eta_seconds == pytest.approx(19.0)
    assert list(trained.history) == said
    assert 0 < said[-1].fvu < said[0].fvu < 1.5


def test_not_a_number_among_the_activations_is_refused():
    x = small().x.copy()
    x[3, 2] = np.nan

    with pytest.raises(SAEError, match="1 have one"):
        train_sae(ArrayActivations({POINT: x}), SMALL)
    with pytest.raises(SAEError, match="nothing to learn"):
        train_sae(ArrayActivations({POINT: np.ones((12_800, 16), np.float32)}), SMALL)


@pytest.mark.parametrize(
    ("differs", "says"),
    [
        ({"k": 49}, "k is 1 to d_sae"),
        ({"variant": "gated"}, "choose one of topk, batchtopk"),
        ({"warmup": 0.9, "decay": 0.2}, "together at most 1"),
        ({"variant": "matryoshka", "prefixes": (0.5, 0.25, 1.0)}, "rising shares"),
        ({"skip": True}, "only a transcoder"),
        ({"learning_rate": -1.0}, "a positive number or None"),
    ],
)
def test_options_that_mean_nothing_are_refused(differs, says):
    with pytest.raises(SAEError, match=says):
        replace(SMALL, **differs)


@pytest.mark.parametrize(("n", "k"), [(4608, 32), (128, 4), (48, 3), (97, 5), (12, 12), (16, 1)])
def test_the_largest_of_a_row_are_found_in_two_stages(n, k):
    values = mx.random.normal((20, n), key=mx.random.key(n))

    found = np.sort(np.array(largest(values, k)), axis=1)

    assert np.array_equal(found, np.sort(np.argsort(np.array(values), axis=1)[:, n - k :], axis=1))


def test_batches_grow_with_the_run():
    assert [batch_for(n) for n in (1_000, 256_000, 1_600_000, 10**10)] == [256, 256, 512, 4096]
    assert plan(SAEConfig(d_sae=64, epochs=4), 64_000).steps == 1000


def test_a_batch_without_a_positive_activation_leaves_the_threshold_as_it_was():
    stepper = Stepper(SMALL, Plan(128, 10, 1280, 10**6), 1e-9)
    x = mx.array(small().x[:128]) * 5
    state = stepper.begin(16, 16, x)
    state.step = 9  # the last fifth of a run chooses by batch, and learns the threshold

    stepper.advance(state, x, x)
    learned = float(state.threshold) / state.threshold_weight
    state.params["b_enc"] = mx.full((48,), -1e6)
    state.step = 9
    stepper.advance(state, x, x)

    assert np.isfinite(learned)
    assert float(state.threshold) / state.threshold_weight == learned


def test_a_crash_between_the_renames_of_an_older_version_leaves_a_checkpoint_that_is_read(tmp_path):
    source = small().source()
    quietly(source, SMALL, checkpoint=tmp_path, stop=lambda: True)
    (tmp_path / "current").rename(tmp_path / "old")

    assert checkpoints.read(tmp_path, [replace(SMALL, hook_point=POINT)], source.digest).states[0].step == 1
