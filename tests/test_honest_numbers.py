"""What a reader of the numbers relies on: intervals, winners, roles, conventions of files."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings

import mlx.core as mx
import numpy as np
import pytest

from mlxterp import InterpretableModel
from mlxterp.auto_interp import auto_label_feature
from mlxterp.causal import PromptPair, ablate, acdc, activation_patching, behaviour
from mlxterp.errors import MlxterpError, SweepError
from mlxterp.llm import ScriptedCompleter
from mlxterp.sae import SAE, Relu, active_features, build_store, load_sae, load_store
from mlxterp.workflows import behavior_localization, circuit_discovery
from tests.tiny_models import ByteTokenizer, tiny_module

CLEAN, CORRUPTED = "the cat sat", "the dog sat"
TARGETS = {"answer": "x", "foil": "y"}


def pairs_of(*letters: str) -> list[PromptPair]:
    return [PromptPair(f"{letter}x", f"{letter}y", answer="x", foil="y") for letter in letters]


@pytest.fixture(scope="module")
def toy_model() -> InterpretableModel:
    return InterpretableModel("toy-induction")


@pytest.fixture(scope="module")
def without_attention() -> InterpretableModel:
    """36 heads that write nothing."""
    module = tiny_module("llama", num_hidden_layers=9)
    for block in module.model.layers:
        block.self_attn.o_proj.weight = mx.zeros_like(block.self_attn.o_proj.weight)
    return InterpretableModel(module, ByteTokenizer())


def sweep_of_noise(model, letters: str, seed: int):
    """Every head patched, by a metric of 1 on clean, 0 on corrupted, and noise."""
    clean, corrupted = (np.array(model.logits(text))[0, -1].astype(np.float64) for text in ("ax", "ay"))
    direction = (clean - corrupted) / ((clean - corrupted) @ (clean - corrupted))
    rng = np.random.default_rng(seed)

    def noisy(logits):
        share = (np.asarray(logits, dtype=np.float64) - corrupted) @ direction
        return share + 0.3 * rng.normal(size=len(logits))

    return activation_patching(model, pairs_of(*letters), component="z", metric=noisy)


# Intervals


def test_two_or_three_pairs_have_no_interval(tiny_llama):
    for letters in ("ab", "abc"):
        found = activation_patching(tiny_llama, pairs_of(*letters), component="mlp_out")

        assert {component.ci for component in found.top_components(3)} == {None}


def test_a_couple_in_both_directions_is_one_observation(tiny_llama):
    pairs = pairs_of("a", "b", "c")
    turned = [PromptPair(p.corrupted, p.clean, answer="y", foil="x") for p in pairs]

    found = activation_patching(tiny_llama, pairs + turned, component="mlp_out")

    assert {component.ci for component in found.top_components(3)} == {None}


def test_of_heads_without_an_effect_hardly_any_sweep_has_one_beyond_its_interval(without_attention):
    def some_head_passes(found) -> bool:
        every = found.top_components(36)
        return any(abs(c.effect) >= 0.1 and (c.ci[0] > 0 or c.ci[1] < 0) for c in every)

    passed = [some_head_passes(sweep_of_noise(without_attention, "abcdef", seed)) for seed in range(8)]

    assert sum(passed) <= 2


def test_random_sets_have_heads_of_the_same_layers(tiny_llama):
    pairs = [PromptPair(p.clean, p.corrupted, answer="y", foil="x") for p in pairs_of(*"abcd")]
    found = ablate(tiny_llama, pairs, ["L0.H0", "L0.H1"], kind="zero", random_sets=1)

    (random,) = [row for row in found.rows if row.group == "random"]
    assert {label.partition(".")[0] for label in random.components} == {"L0"}


def test_the_best_beside_a_few_random_sets_is_not_called_needed(toy_model):
    from mlxterp.datasets import repeated_random_pairs

    pairs = repeated_random_pairs(toy_model, n=6, period=6, seed=1)
    found = ablate(toy_model, pairs, ["L0.H2", "L1.H1"], kind="mean", random_sets=5)

    assert "p = 0.17: that does not show that the set" in found.summary()


# Sentences


def test_a_component_that_writes_the_answer_in_both_runs_is_not_said_to_write_it(tiny_llama):
    """L0.mlp_out writes 1.04 logits on clean, near to the most; but as much on corrupted."""
    found = behavior_localization(tiny_llama, CLEAN, CORRUPTED, **TARGETS)

    assert "L0.mlp_out" in found.conclusion
    assert "itself" not in found.conclusion


def test_a_summary_has_the_caution_of_its_steps(tiny_llama):
    found = behavior_localization(tiny_llama, CLEAN, CORRUPTED, **TARGETS)

    assert "exchanging the prompts" in found.summary()


def test_what_the_strongest_are_on_other_pairs_is_said_where_they_are_named(toy_model):
    from mlxterp.datasets import repeated_random_pairs

    pairs = repeated_random_pairs(toy_model, n=8, period=6, seed=1)

    found = behavior_localization(toy_model, pairs, steps=["patch_heads"])

    assert "measured on 4 other pairs: L0.H2" in found.narrative
    assert "all 8 sites searched" in found.conclusion


def test_a_circuit_is_searched_by_the_answer_and_the_foil_that_are_given(tiny_llama):
    found = circuit_discovery(tiny_llama, CLEAN, CORRUPTED, steps=["activation"], **TARGETS)

    row = behaviour(tiny_llama, [PromptPair(CLEAN, CORRUPTED, **TARGETS)]).rows[0]
    assert found.get_step("activation").metric == "logit_diff"
    assert found.get_step("activation").clean_metric == pytest.approx(row.logit_diff, abs=1e-4)


def test_two_metrics_of_one_name_do_not_share_a_checkpoint(tiny_llama, tmp_path):
    def score_of(token: int):
        def score(logits):
            return np.asarray(logits)[:, token]

        return score

    def search(token: int, **checkpoint):
        options = {"threshold": 0.05, "metric": score_of(token)}
        return acdc(tiny_llama, PromptPair(CLEAN, CORRUPTED), **options, **checkpoint)

    search(120, checkpoint=tmp_path / "search.json")
    second = None
    with contextlib.suppress(SweepError):  # to refuse the file is as right as to search anew
        second = search(100, checkpoint=tmp_path / "search.json")

    assert second is None or second.edges == search(100).edges


# Files of dictionaries


def identity_sae(model: InterpretableModel, **config: object) -> SAE:
    d = model.d_model
    return SAE(
        W_enc=mx.eye(d),
        b_enc=mx.zeros(d),
        W_dec=mx.eye(d),
        b_dec=mx.zeros(d),
        activation=Relu(),
        hook_point="L0.resid_post",
        model="toy-induction",
        metadata={"format": "SAELens", "config": {"metadata": config}},
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("prepend_bos", True), ("model_from_pretrained_kwargs", {"center_writing_weights": True})],
)
def test_what_a_dictionary_was_trained_with_and_the_model_is_not_is_warned_of_by_its_field(
    toy_model, field, value
):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        active_features(toy_model, identity_sae(toy_model, **{field: value}), "cat dog fish moon")

    assert any(field in str(each.message) for each in warned)


def test_a_dictionary_with_nan_weights_is_refused(tmp_path):
    weights = {"W_enc": mx.ones((4, 6)), "b_enc": mx.zeros(6), "W_dec": mx.ones((6, 4)), "b_dec": mx.zeros(4)}
    weights["W_enc"][0, 0] = np.nan
    mx.save_safetensors(str(tmp_path / "sae_weights.safetensors"), weights)
    config = {
        "architecture": "standard",
        "d_in": 4,
        "d_sae": 6,
        "metadata": {"hook_name": "blocks.0.hook_resid_post"},
    }
    (tmp_path / "cfg.json").write_text(json.dumps(config))

    with pytest.raises(MlxterpError, match="W_enc"):
        load_sae(tmp_path)


def word_sae(model: InterpretableModel, word: str, other: str) -> SAE:
    """One feature, which fires on a word."""
    here, there = (np.array(model.trace(w, capture=["embed"])["embed"])[0, 0] for w in (word, other))
    row = here - there
    return SAE(
        W_enc=mx.array(row[:, None]),
        b_enc=mx.array([-float(row @ row) / 4]),
        W_dec=mx.array(row[None]),
        b_dec=mx.zeros(model.d_model),
        activation=Relu(),
        hook_point="L0.resid_pre",
        model="toy-induction",
    )


def toy_texts(model: InterpretableModel, n: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(list(model.tokenizer.words), size=12)) for _ in range(n)]


def test_texts_that_no_reader_decided_give_no_score_and_no_label(toy_model):
    word, other = list(toy_model.tokenizer.words)[7:9]
    proposed = {"reasoning": "r", "label": word, "description": f"Fires on {word}.", "kind": "token"}
    proposed |= {"positive_cues": [f" {word}"], "exclusions": [], "confidence": 80}

    def answer(request) -> str:
        return "nonsense" if '"texts"' in request.user else json.dumps({"candidates": [proposed]})

    label = auto_label_feature(
        toy_model,
        word_sae(toy_model, word, other),
        feature_id=0,
        texts=toy_texts(toy_model, 400),
        llm=ScriptedCompleter(answer),
    )

    assert label.status != "ok"
    assert {score.balanced_accuracy for score in label.scores.values()} == {None}


def test_a_crash_while_stored_activations_are_replaced_leaves_what_was_there_or_what_comes(
    toy_model, tmp_path, monkeypatch
):
    sae = word_sae(toy_model, *list(toy_model.tokenizer.words)[7:9])
    first, second = (build_store(toy_model, sae, toy_texts(toy_model, n)) for n in (20, 30))
    place = first.save(tmp_path / "store")
    removed = shutil.rmtree

    def remove_then_die(path, *arguments, **options):
        removed(path, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", remove_then_die)
    with contextlib.suppress(KeyboardInterrupt):
        second.save(place)

    assert load_store(place).n_documents in (20, 30)
