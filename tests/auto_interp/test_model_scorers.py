"""Labels tested by what the model under study does: planted truth on two tiny models, and slow oracles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxterp.auto_interp.evidence.evidence import FeatureEvidence, Window
from mlxterp.auto_interp.label import Proposal
from mlxterp.auto_interp.model_scorers import (
    BATCH_TOKENS,
    InterventionScorer,
    SurprisalScorer,
    best_threshold,
)
from mlxterp.core.interventions import add
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import LabelingError
from mlxterp.llm import run
from mlxterp.sae.sae import SAE, Relu


@pytest.fixture(scope="module")
def toy() -> InterpretableModel:
    return InterpretableModel("toy-induction")


def score(scorer: Any, feature: FeatureEvidence, proposal: Proposal) -> Any:
    return run(lambda: scorer.score(feature, proposal))


def window(words: Any, document: int) -> Window:
    return Window(document, 0, tuple(f" {word}" for word in words), (1.0,) + (0.0,) * (len(words) - 1), 0)


def halves(positives: list[Window], negatives: list[Window], **facts: Any) -> FeatureEvidence:
    n, m = len(positives) // 2, len(negatives) // 2
    return FeatureEvidence(
        7,
        "ok",
        train_positives=tuple(positives[:n]),
        test_positives=tuple(positives[n:]),
        train_negatives=tuple(negatives[:m]),
        test_negatives=tuple(negatives[m:]),
        **facts,
    )


@pytest.fixture(scope="module")
def said_again(toy):
    """Texts that say again what the label says, which an induction head expects; and texts that do not."""
    random = np.random.default_rng(0)
    words = toy.tokenizer.words

    def draw() -> list[str]:
        return [words[i] for i in random.permutation(len(words))[:8]]

    phrase, neutral = draw(), draw()
    feature = halves([window(phrase, i) for i in range(24)], [window(draw(), 100 + i) for i in range(24)])
    scorer = SurprisalScorer(toy, with_label="{label} {description}", without_label=" ".join(neutral))
    return scorer, feature, " ".join(phrase), " ".join(draw())


def test_a_label_that_makes_its_texts_likelier_is_told_from_one_that_does_not(said_again):
    scorer, feature, phrase, other = said_again

    right = score(scorer, feature, Proposal(phrase, phrase.split()[0], "topic"))["surprisal"]
    wrong = score(scorer, feature, Proposal(other, other.split()[0], "topic"))["surprisal"]

    assert right.balanced_accuracy == 1.0
    assert right.auroc == 1.0
    assert right.details["mean_positive"] > right.details["mean_negative"] + 1.0
    assert wrong.confidence < 0.2


def test_the_gain_is_the_difference_of_two_mean_losses_computed_one_text_at_a_time(said_again, toy):
    scorer, feature, phrase, _ = said_again
    windows = [*feature.test_positives[:2], *feature.test_negatives[:3]]
    windows[1] = window([*phrase.split(), "sun", "moon"], 9)

    def loss(prefix: str, text: str) -> float:
        before, ids = toy.tokenizer.encode(prefix), toy.tokenizer.encode(text)
        logits = np.array(toy.logits([*before, *ids])[0], dtype=np.float64)
        said = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return -float(np.mean([said[len(before) - 1 + i, token] for i, token in enumerate(ids)]))

    gains = scorer.gains(windows, Proposal(phrase, "sun", "topic"))

    slow = [loss(scorer.without_label, w.text) - loss(f"{phrase} sun", w.text) for w in windows]
    assert gains == pytest.approx(slow, abs=1e-4)


@pytest.mark.parametrize(("empty", "scored"), [(1, True), (8, False)])
def test_texts_that_say_nothing_are_neither_and_the_coverage_says_how_many(said_again, empty, scored):
    """Counted with a gain of 0 they would lower the score of a label that holds."""
    scorer, feature, phrase, _ = said_again
    proposal = Proposal(phrase, phrase.split()[0], "topic")
    nothing = tuple(Window(900 + i, 0, ("",), (1.0,), 0) for i in range(empty))

    found = score(scorer, replace(feature, test_positives=feature.test_positives + nothing), proposal)

    without = score(scorer, feature, proposal)["surprisal"]
    assert found["surprisal"].coverage == 24 / (24 + empty)
    if scored:
        assert replace(found["surprisal"], coverage=1.0) == without
    else:
        assert found["surprisal"].balanced_accuracy is None
        assert "24 of 32 texts were decided" in found["surprisal"].details["reason"]


def test_the_loss_is_behind_the_token_that_the_model_puts_in_front_of_every_text(said_again, toy):
    scorer, feature, phrase, _ = said_again
    word = toy.tokenizer.words[3]
    begins = InterpretableModel(toy.model, toy.tokenizer, prepend_bos=f" {word}")
    windows = feature.test_positives[:2]
    proposal = Proposal(phrase, "sun", "topic")

    by_option = SurprisalScorer(begins, scorer.with_label, scorer.without_label).gains(windows, proposal)
    by_hand = SurprisalScorer(
        toy, with_label=f"{word} {scorer.with_label}", without_label=f"{word} {scorer.without_label}"
    ).gains(windows, proposal)

    assert by_option == pytest.approx(by_hand, abs=1e-5)


def test_many_windows_are_spread_over_batches_without_changing_their_gain(said_again):
    scorer, feature, phrase, _ = said_again
    proposal = Proposal(phrase, "sun", "topic")
    few = list(feature.test_negatives[:4])
    many = few * (BATCH_TOKENS // 30)

    gains = scorer.gains(many, proposal)

    assert gains == pytest.approx(np.tile(scorer.gains(few, proposal), BATCH_TOKENS // 30), abs=1e-4)


def test_a_label_with_braces_is_taken_as_it_is(said_again):
    scorer, feature, phrase, _ = said_again
    plain = SurprisalScorer(scorer.model, "{label}", scorer.without_label)

    assert np.isfinite(
        plain.gains(feature.test_positives[:1], Proposal(phrase, "{label} {0} {", "topic"))
    ).all()


def test_nothing_before_a_text_is_refused(said_again):
    scorer, feature, phrase, _ = said_again

    with pytest.raises(LabelingError, match="has no tokens"):
        score(SurprisalScorer(scorer.model, "{label}", ""), feature, Proposal(phrase, "sun", "topic"))


def test_without_both_classes_in_both_halves_nothing_is_measured(said_again, toy):
    scorer, feature, phrase, _ = said_again

    assert score(scorer, halves([], list(feature.test_negatives)), Proposal(phrase, "sun", "topic")) == {}


# intervention

LAST = "L2.resid_post"


@pytest.fixture(scope="module")
def steered(tiny_llama):
    """An SAE at the end of a random model; feature 7 writes the unembedding of "x", the others anything."""
    random = np.random.default_rng(1)
    directions = random.normal(size=(12, tiny_llama.d_model)).astype(np.float32)
    towards = np.array(tiny_llama.unembedding(ord("x")))[0]
    directions[7] = 3 * towards / np.linalg.norm(towards) * np.linalg.norm(directions[0])
    sae = SAE(
        W_enc=mx.array(directions.T),
        b_enc=mx.zeros(12),
        W_dec=mx.array(directions),
        b_dec=mx.zeros(tiny_llama.d_model),
        activation=Relu(),
        hook_point=LAST,
        model=tiny_llama.name,
    )
    texts = ["".join(chr(c) for c in random.integers(97, 120, size=9)) for _ in range(40)]
    windows = [Window(i, 0, tuple(text), (1.0,) + (0.0,) * 8, 0) for i, text in enumerate(texts)]
    return sae, halves(windows[:20], windows[20:], max_activation=1.0)


def test_a_label_that_names_what_a_feature_promotes_is_told_from_one_that_names_something_else(
    steered, tiny_llama
):
    sae, feature = steered
    scorer = InterventionScorer(tiny_llama, sae)

    right = score(scorer, feature, Proposal('promotes "x"', "", "output"))["intervention"]
    wrong = score(scorer, feature, Proposal('promotes "q"', "", "output"))["intervention"]

    assert right.balanced_accuracy > 0.95
    assert right.details["named"] == ["x"]
    assert right.details["mean_positive"] > 0.5
    assert wrong.balanced_accuracy < 0.75
    assert wrong.confidence < 0.2


def test_only_a_label_about_what_comes_next_claims_anything(steered, tiny_llama):
    sae, feature = steered
    scorer = InterventionScorer(tiny_llama, sae)

    assert score(scorer, feature, Proposal('the letter "x"', "", "token")) == {}
    assert score(scorer, feature, Proposal("several letters", "", "output")) == {}
    assert score(scorer, FeatureEvidence(7, "ok"), Proposal('promotes "x"', "", "output")) == {}


def test_named_tokens_are_those_in_quotation_marks_or_else_the_words_of_the_label(steered, tiny_llama):
    sae, _ = steered
    scorer = InterventionScorer(tiny_llama, sae)

    def named(label: str, description: str = "") -> str:
        return tiny_llama.to_string(scorer.named(Proposal(label, description, "output")))

    assert named('before "a" or "b"', 'Cues: "c", "word".') == "abc"
    assert named("a b words") == "ab"
    assert named("nothing of one letter") == ""


def test_the_rise_is_that_of_one_text_after_the_other(steered, tiny_llama):
    sae, feature = steered
    windows = [*feature.test_positives[:2], Window(9, 0, tuple("abc"), (1.0, 0.0, 0.0), 0)]
    named = [ord("x"), ord("q")]

    own, _ = InterventionScorer(tiny_llama, sae, strength=0.5).rises(
        windows, feature, named, np.random.default_rng(0)
    )

    def level(text: str, **options: Any) -> float:
        logits = np.array(tiny_llama.logits(text, **options)[0], dtype=np.float64)
        chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        return float(np.log(chances[:, named].sum(axis=-1)).mean())

    push = [add(LAST, 0.5 * sae.W_dec[7])]
    slow = [level(w.text, interventions=push) - level(w.text) for w in windows]
    assert own == pytest.approx(slow, abs=1e-4)


def test_the_scores_are_the_same_every_time(steered, tiny_llama):
    sae, feature = steered
    proposal = Proposal('promotes "q"', "", "output")

    one, other = (score(InterventionScorer(tiny_llama, sae, seed=s), feature, proposal) for s in (3, 3))

    assert one == other


values = st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(values, values)
def test_no_threshold_tells_the_training_values_better(positive, negative):
    yes, no = np.array(positive), np.array(negative)

    def told(threshold: float) -> float:
        return float((yes > threshold).mean() + (no <= threshold).mean())

    found = told(best_threshold(yes, no))

    for each in [*positive, *negative, -9.0, 9.0]:
        assert found >= told(each) - 1e-12


@pytest.mark.slow
def test_a_small_real_model_is_less_surprised_by_french_when_it_is_told_of_french():
    """SmolLM2-135M on 24 sentences; a label of another subject gains nothing."""
    french = [
        "Il fait froid ce matin et la rivière est gelée.",
        "Elle a mangé une pomme avant de partir au travail.",
        "Nous avons parlé de la maison de mon oncle.",
        "Les enfants jouent dans le jardin depuis midi.",
        "Je ne sais pas où il habite maintenant.",
        "Le train pour Lyon part à huit heures du soir.",
        "Cette chanson me rappelle mon enfance au village.",
        "On ferme la porte quand le vent se lève.",
        "Il a perdu ses clés sous la neige hier.",
        "Mon frère travaille dans une petite usine.",
        "La reine regarde la mer par la fenêtre.",
        "Vous devez prendre la deuxième rue à gauche.",
    ]
    english = [
        "It is cold this morning and the river is frozen.",
        "She ate an apple before leaving for work.",
        "We talked about the house of my uncle.",
        "The children have been playing in the garden.",
        "I do not know where he lives now.",
        "The train for Leeds leaves at eight in the evening.",
        "This song reminds me of my childhood.",
        "We shut the door when the wind rises.",
        "He lost his keys under the snow yesterday.",
        "My brother works in a small factory.",
        "The queen looks at the sea from the window.",
        "You must take the second street on the left.",
    ]

    def windows(texts: list[str]) -> list[Window]:
        return [Window(i, 0, (text,), (1.0,), 0) for i, text in enumerate(texts)]

    feature = halves(windows(french), windows(english))
    scorer = SurprisalScorer(InterpretableModel("smollm2-135m"))

    right = score(scorer, feature, Proposal("French prose", "Text written in French.", "topic"))["surprisal"]
    wrong = score(scorer, feature, Proposal("Python code", "Functions written in Python.", "topic"))[
        "surprisal"
    ]

    assert right.auroc > 0.8
    assert right.auroc > wrong.auroc
