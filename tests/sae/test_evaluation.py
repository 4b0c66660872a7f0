"""Numbers of quality: their identities, and that padding and intervals do what they say."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from scipy.special import logsumexp

from mlxterp.core.interventions import replace
from mlxterp.errors import SAEError
from mlxterp.results import AnalysisResult
from mlxterp.sae import (
    SAE,
    JumpRelu,
    Relu,
    TopK,
    absorption,
    fvu,
    reconstruction_quality,
    recovery,
    sae_quality,
)
from mlxterp.sae.evaluation import model_losses
from mlxterp.sae.training.activations import StreamedActivations
from tests.sae.planted_directions import easy

TEXTS = ["abcdefgh" * 3, "the quick brown fox", "zyx", "ab" * 20]


def identity(d: int, *, point: str = "L1.resid_post", scale: float = 1.0) -> SAE:
    """Two features a dimension, one for each sign: gives back what it reads."""
    both = mx.concatenate([mx.eye(d), -mx.eye(d)], axis=1)
    return SAE(
        W_enc=both,
        b_enc=mx.zeros(2 * d),
        W_dec=scale * both.T,
        b_dec=mx.zeros(d),
        activation=Relu(),
        hook_point=point,
        model="tiny",
    )


def constant(value: mx.array) -> SAE:
    """Gives the same vector for every token."""
    d = value.shape[0]
    return SAE(
        W_enc=mx.zeros((d, 4)),
        b_enc=mx.zeros(4),
        W_dec=mx.zeros((4, d)),
        b_dec=value,
        activation=Relu(),
        hook_point="L1.resid_post",
        model="tiny",
    )


def test_the_mean_explains_nothing_and_the_identity_everything():
    x = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32) + 100.0
    x = x.astype(np.float32)

    assert fvu(x, np.broadcast_to(x.astype(np.float64).mean(axis=0), x.shape)) == pytest.approx(1, abs=1e-6)
    assert fvu(x, x) == 0
    assert reconstruction_quality(identity(8), x)["fvu"].value == 0
    assert reconstruction_quality(constant(mx.array(x.mean(axis=0))), x)["fvu"].value == pytest.approx(
        1, abs=1e-6
    )


def test_fvu_is_a_ratio_of_sums_and_not_a_mean_of_ratios():
    x = np.array([[0.0], [2.0], [10.0]])
    rec = np.array([[0.0], [2.0], [7.0]])

    assert fvu(x, rec) == pytest.approx(9 / (16 + 4 + 36))


def test_shapes_that_differ_and_data_without_variance_are_refused():
    with pytest.raises(SAEError, match="same tokens"):
        fvu(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(SAEError, match="without any variance"):
        fvu(np.ones((3, 2)), np.ones((3, 2)))


def test_shrinkage_and_l0_are_what_they_are_by_construction():
    x = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
    x -= x.mean(axis=0)

    quality = reconstruction_quality(identity(8, scale=0.5), x)

    assert quality["shrinkage"].value == pytest.approx(0.5, abs=1e-5)
    assert quality["cosine"].value == pytest.approx(1, abs=1e-5)
    assert quality["l0"].value == 8  # one feature of each pair
    assert quality["fvu"].value == pytest.approx(0.25, abs=1e-5)
    assert quality["dead"].value == 0
    assert quality["dense"].value == 1


def test_the_identity_loses_nothing_and_the_mean_is_its_own_ablation(tiny_llama):
    whole = sae_quality(tiny_llama, identity(tiny_llama.d_model), TEXTS)

    assert whole["ce_recovered_zero"].value == pytest.approx(1, abs=1e-4)
    assert whole["kl_recovered_mean"].value == pytest.approx(1, abs=1e-4)
    assert whole["ce_reconstructed"].value == pytest.approx(whole["ce_clean"].value, abs=1e-5)

    nothing = sae_quality(tiny_llama, constant(mx.zeros(tiny_llama.d_model)), TEXTS)
    assert nothing["ce_recovered_zero"].value == pytest.approx(0, abs=1e-6)
    assert nothing["kl_reconstructed"].value > 0


def test_padding_and_company_change_no_number(tiny_llama):
    sae = constant(mx.zeros(tiny_llama.d_model))
    together = sae_quality(tiny_llama, sae, ["abcdefghij", "xyz"], losses=True)
    first = sae_quality(tiny_llama, sae, ["abcdefghij"], losses=True)
    second = sae_quality(tiny_llama, sae, ["xyz"], losses=True)

    assert (first.tokens, second.tokens, together.tokens) == (9, 2, 11)
    weights = np.array([8, 1])  # predicted tokens: the last one of a text predicts nothing
    for name in ("ce_clean", "ce_zero", "kl_reconstructed"):
        parts = np.array([first[name].value, second[name].value])
        assert together[name].value == pytest.approx(float(parts @ weights / weights.sum()), rel=1e-5)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    sae = identity(4, scale=0.5)
    covered = 0
    for seed in range(60):
        x = random.normal(size=(40 * 10, 4)).astype(np.float32) * random.uniform(0.5, 2, (40, 1)).repeat(
            10, axis=0
        )
        row = reconstruction_quality(
            sae, x.astype(np.float32) + 1.0, documents=np.arange(400) // 10, seed=seed
        )["l0"]
        assert row.low <= row.value <= row.high
        truth = 4.0
        covered += row.low <= truth <= row.high
    assert covered == 60  # exactly four fire on every token, so even a degenerate interval holds it


def test_one_document_has_numbers_and_no_interval():
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)

    row = reconstruction_quality(identity(4), x, documents=np.zeros(30))["l0"]

    assert row.value == 4
    assert np.isnan(row.low)


def test_a_result_survives_json_and_says_its_main_numbers(tiny_llama):
    quality = sae_quality(tiny_llama, identity(tiny_llama.d_model), TEXTS)

    assert AnalysisResult.from_json(quality.to_json()) == quality
    assert "FVU 0" in quality.summary()
    assert "Loss recovered" in quality.summary()
    assert "ce_recovered_zero" in quality.to_markdown()


def test_the_truth_is_recovered_by_itself_and_not_by_half_of_it():
    planted = easy(0, tokens=10)
    shuffled = np.random.default_rng(1).permutation(64)
    W = mx.array(planted.directions[shuffled].astype(np.float32))
    sae = SAE(
        W_enc=W.T,
        b_enc=mx.zeros(64),
        W_dec=3.0 * W,
        b_dec=mx.zeros(32),
        activation=TopK(4),
        hook_point="embed",
        model="",
    )

    found = recovery(sae, planted.directions)

    assert found.mcc.value == pytest.approx(1)
    assert found.recovered.value == 1
    assert np.array_equal(shuffled[found.features], np.arange(64))
    # A feature stands for one direction only: 32 features recover at most half.
    half = SAE(
        W_enc=W.T[:, :32],
        b_enc=mx.zeros(32),
        W_dec=W[:32],
        b_dec=mx.zeros(32),
        activation=TopK(4),
        hook_point="embed",
        model="",
    )
    assert recovery(half, planted.directions).recovered.value == 0.5
    with pytest.raises(SAEError, match="writes 32"):
        recovery(sae, np.ones((3, 7)))


def family(rows: np.ndarray, reads: np.ndarray) -> SAE:
    """Features that write `rows` and fire where their product with `reads` is above a half."""
    return SAE(
        W_enc=mx.array(reads.T.astype(np.float32)),
        b_enc=mx.zeros(len(rows)),
        W_dec=mx.array(rows.astype(np.float32)),
        b_dec=mx.zeros(rows.shape[1]),
        activation=JumpRelu(mx.array(0.5)),
        hook_point="embed",
        model="",
    )


ONE, TWO, SUM = np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([1.0, 1, 0]) / np.sqrt(2)
FIRES = np.array([[1, 0]] * 6 + [[1, 1]] * 4 + [[0, 0]] * 10)  # the parent ten times, the child four of these


@pytest.mark.parametrize(
    ("rows", "reads", "absorbed"),
    [
        ([ONE, TWO], [ONE, TWO], 0.0),  # each has its own
        ([ONE, SUM], [ONE - TWO, TWO], 0.4),  # silent where the child fires, which writes both
        ([ONE, TWO], [ONE - TWO, TWO], 0.0),  # silent there, but nothing covers it
        ([ONE, SUM], [ONE, TWO], 0.0),  # the child writes both, but the parent fires as well
        ([ONE, SUM], [0 * ONE, 0 * TWO], 0.0),  # dead features cover nothing
    ],
)
def test_absorption_is_the_share_of_a_parents_tokens_that_a_child_has_taken_over(rows, reads, absorbed):
    directions = np.array([ONE, TWO])

    found = absorption(
        family(np.array(rows), np.array(reads)), FIRES @ directions, directions, FIRES, [-1, 0]
    )

    assert found.value == pytest.approx(absorbed)
    assert found.name == "absorption"


def test_a_child_that_lies_near_its_parent_does_not_absorb_it_by_that_alone():
    near = 0.6 * ONE + 0.8 * TWO
    directions = np.array([ONE, near])

    clean = family(np.array([ONE, near]), np.array([ONE - 2 * TWO, TWO]))
    merged = family(
        np.array([ONE, (ONE + near) / np.linalg.norm(ONE + near)]), np.array([ONE - 2 * TWO, TWO])
    )

    values = [
        absorption(sae, FIRES @ directions, directions, FIRES, [-1, 0]).value for sae in (clean, merged)
    ]
    assert values == pytest.approx([0.0, 0.4])


def test_absorption_asks_for_a_parent_that_fires_and_for_shapes_that_go_together():
    directions = np.array([ONE, TWO])
    sae = family(directions, directions)

    with pytest.raises(SAEError, match=r"parents \[\], of which"):
        absorption(sae, FIRES @ directions, directions, FIRES, [-1, -1])
    with pytest.raises(SAEError, match=r"of which \[1\] never fire"):
        absorption(sae, FIRES[:3] @ directions, directions, FIRES[:3], [1, -1])
    with pytest.raises(SAEError, match=r"give \[tokens, true\]"):
        absorption(sae, FIRES[:3] @ directions, directions, FIRES, [-1, 0])


def test_an_attention_sink_keeps_its_activation_when_losses_are_measured(tiny_llama):
    """With outlier=1 the longer half of the tokens are sinks: only the others are set to zero."""
    source = StreamedActivations(tiny_llama, TEXTS, "L1.resid_post", outlier=1.0)
    zero = constant(mx.zeros(tiny_llama.d_model))

    sums = model_losses(tiny_llama, zero, source, len(TEXTS), mx.zeros(tiny_llama.d_model))

    of = [np.array(tiny_llama.trace(text, capture="L1.resid_post")["L1.resid_post"][0]) for text in TEXTS]
    limit = np.median(np.concatenate([np.linalg.norm(x[1:], axis=1) for x in of]))
    for i, (text, x) in enumerate(zip(TEXTS, of, strict=True)):
        usual = np.linalg.norm(x, axis=1) <= limit
        usual[0] = False
        edit = replace("L1.resid_post", mx.array(np.where(usual[:, None], 0.0, x))[None])
        logits = np.array(tiny_llama.logits(text, interventions=[edit])[0], dtype=np.float64)
        ids = np.array(tiny_llama.to_tokens(text)).reshape(-1)
        log_probs = logits - logsumexp(logits, axis=1, keepdims=True)
        assert sums["ce_zero"][i] == pytest.approx(
            -sum(log_probs[pos, ids[pos + 1]] for pos in range(1, len(ids) - 1)), rel=1e-4
        )
        assert sums["ce_reconstructed"][i] == pytest.approx(sums["ce_zero"][i], rel=1e-6)
        assert 0 < usual[1:].sum() < len(ids) - 1 or len(ids) < 5
