"""The tuned lens: the identity is the logit lens, training brings it nearer to the model, files keep it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.causal import (
    TunedLens,
    identity_lens,
    load_tuned_lens,
    logit_lens,
    train_tuned_lens,
    tuned_lens,
)
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import LensError
from mlxterp.results import AnalysisResult
from tests.causal.conftest import CLEAN
from tests.tiny_models import ByteTokenizer, tiny_module

TEXTS = [f"the {animal} {did}" for animal in ("cat", "dog", "cow", "ant", "bee") for did in ("sat", "ran")]


@pytest.fixture(scope="module")
def trained(tiny_llama) -> TunedLens:
    return train_tuned_lens(tiny_llama, TEXTS, steps=40, batch_tokens=24, learning_rate=0.02)


@pytest.mark.usefixtures("pinned_threads")
def test_translators_that_change_nothing_read_as_the_logit_lens_bit_for_bit(any_family):
    plain = logit_lens(any_family, CLEAN, answer="x")

    read = tuned_lens(any_family, CLEAN, identity_lens(any_family), answer="x")

    for name in ("answer_logits", "answer_probs", "answer_ranks", "top_probs"):
        assert np.array_equal(getattr(read, name), getattr(plain, name))
    assert (read.title, plain.title) == ("Tuned lens: 'x'", "Logit lens: 'x'")


def test_a_translator_is_an_affine_map_before_the_final_norm(tiny_llama):
    rng = np.random.default_rng(0)
    a, b = (mx.array(rng.normal(size=s).astype(np.float32)) for s in ((2, 32, 32), (2, 32)))
    lens = TunedLens(a, b, tiny_llama.name, tiny_llama.digest)
    h = np.array(tiny_llama.trace(CLEAN, capture=["L1.resid_post"])["L1.resid_post"][0])
    moved = h + h @ np.array(a[1]) + np.array(b[1])
    expected = np.array(tiny_llama.architecture.final(mx.array(moved[None])))[0]

    read = tuned_lens(tiny_llama, CLEAN, lens, answer="x")

    assert read.answer_logits[1] == pytest.approx(expected[:, ord("x")], abs=1e-3)
    own = np.array(tiny_llama.logits(CLEAN))[0, :, ord("x")]
    assert read.answer_logits[2] == pytest.approx(own, abs=1e-4)


def test_training_brings_texts_that_were_not_trained_on_nearer_to_the_model(trained):
    assert trained.training["held_out_texts"] == 2
    assert len(trained.held_out_kl) == len(trained.logit_lens_kl) == 3
    for tuned, plain in zip(trained.held_out_kl[:-1], trained.logit_lens_kl[:-1], strict=True):
        assert 0 < tuned < 0.8 * plain
    assert trained.held_out_kl[-1] == pytest.approx(0, abs=1e-5)
    assert trained.logit_lens_kl[-1] == pytest.approx(0, abs=1e-5)


def test_the_divergence_reported_is_that_of_the_readings(tiny_llama):
    """With one token followed at a time: Σ p (log p − log q) over the vocabulary, at the held-out text."""
    texts = [TEXTS[0], TEXTS[0]]
    lens = train_tuned_lens(tiny_llama, texts, steps=2, held_out=0.5)
    h = tiny_llama.trace(TEXTS[0], capture=["resid_post"])

    def log_softmax(x):
        x = np.array(x[0], dtype=np.float64)
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    p = log_softmax(h.logits)
    for layer in range(2):
        stream = h[f"L{layer}.resid_post"]
        for read, said in ((stream, lens.logit_lens_kl), (lens.translated(layer, stream), lens.held_out_kl)):
            q = log_softmax(tiny_llama.architecture.final(read))
            assert said[layer] == pytest.approx((np.exp(p) * (p - q)).sum(axis=-1).mean(), rel=1e-3)


def test_the_divergence_reported_is_of_the_text_that_was_not_trained_on(tiny_llama):
    """Of two texts one is learnt by heart; what is reported is the divergence on the other."""
    texts = ["the cat sat on a mat", "QX 90 %% ;; ZZ 417 ++"]
    lens = train_tuned_lens(tiny_llama, texts, steps=60, batch_tokens=64, learning_rate=0.02, held_out=0.5)

    def divergence(text):
        h = tiny_llama.trace(text, capture=["resid_post"])

        def log_softmax(x):
            x = np.array(x[0], dtype=np.float64)
            return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

        p = log_softmax(h.logits)
        q = log_softmax(tiny_llama.architecture.final(lens.translated(0, h["L0.resid_post"])))
        return float((np.exp(p) * (p - q)).sum(axis=-1).mean())

    learnt, other = sorted(map(divergence, texts))

    assert other > 2 * learnt
    assert lens.held_out_kl[0] == pytest.approx(other, rel=1e-3)


def test_the_same_seed_trains_the_same_lens_and_progress_is_told(tiny_llama):
    said = []
    options = {"steps": 3, "batch_tokens": 8, "context": 6}

    one, again, other = (
        train_tuned_lens(tiny_llama, TEXTS, seed=seed, progress=lambda *p: said.append(p), **options)
        for seed in (1, 1, 2)
    )

    assert mx.array_equal(one.a, again.a)
    assert not mx.array_equal(one.a, other.a)
    assert said[:3] == [(1, 3), (2, 3), (3, 3)]


def test_a_lens_is_read_back_from_its_file(trained, tiny_llama, tmp_path):
    trained.save(tmp_path / "lens.safetensors")

    back = load_tuned_lens(tmp_path / "lens.safetensors")

    assert mx.array_equal(back.a, trained.a)
    assert (back.held_out_kl, back.training) == (trained.held_out_kl, dict(trained.training))
    read = tuned_lens(tiny_llama, CLEAN, back)
    assert AnalysisResult.from_json(read.to_json()).lens == "tuned lens"
    assert read.measured_on["training"]["steps"] == 40


def test_what_is_no_lens_of_this_model_is_refused(trained, tmp_path):
    other = InterpretableModel(tiny_module("llama", seed=5), ByteTokenizer())
    with pytest.raises(LensError, match="train_tuned_lens"):
        tuned_lens(other, CLEAN, trained)
    mx.save_safetensors(str(tmp_path / "other.safetensors"), {"a": mx.zeros(3)})
    with pytest.raises(LensError, match="no tuned lens"):
        load_tuned_lens(tmp_path / "other.safetensors")
    with pytest.raises(LensError, match=r"\(2, 3, 4\)"):
        TunedLens(mx.zeros((2, 3, 4)), mx.zeros((2, 3)), "m", "d")


def test_what_cannot_be_trained_is_refused(tiny_llama):
    with pytest.raises(LensError, match=r"1 texts .* at least two"):
        train_tuned_lens(tiny_llama, "one text")
    with pytest.raises(LensError, match="held_out=1"):
        train_tuned_lens(tiny_llama, TEXTS, held_out=1.0)
    one = InterpretableModel(tiny_module("llama", num_hidden_layers=1), ByteTokenizer())
    with pytest.raises(LensError, match="one layer"):
        train_tuned_lens(one, TEXTS)


@pytest.mark.slow
def test_a_few_steps_bring_smollm2_nearer_to_its_own_predictions():
    model = InterpretableModel("smollm2-135m")
    texts = [
        "The Eiffel Tower is located in the city of Paris, the capital of France.",
        "When Mary and John went to the store, John gave a drink to Mary.",
        "The recipe calls for two cups of flour, a pinch of salt, and three eggs.",
        "Water boils at one hundred degrees at sea level, and at less in the mountains.",
        "Once upon a time there was a king who had three daughters and one son.",
    ]

    lens = train_tuned_lens(model, texts, steps=4, batch_tokens=24)

    plain, tuned = np.array(lens.logit_lens_kl), np.array(lens.held_out_kl)
    assert (tuned[:-1] < plain[:-1]).all()
    assert tuned[:-1].mean() < 0.8 * plain[:-1].mean()
