"""Causal tracing: the same numbers as one forward per state, identities, roles, refusals."""

from __future__ import annotations

import itertools

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.causal import TracedPrompt, causal_tracing
from mlxterp.causal.batching import sweep
from mlxterp.core import interventions
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import CapabilityUnavailable, NoGap, PromptPairError, SweepError
from mlxterp.results import AnalysisResult, CausalTracingResult
from tests.rounding import backward_error
from tests.tiny_models import ByteTokenizer, tiny_module

TEXT, SUBJECT = "the cat sat", "cat"
WHERE = [4, 5, 6]
LOGIT = {"metric": "logit", "answer": "x"}


def traced(model, **options) -> CausalTracingResult:
    return causal_tracing(model, TEXT, SUBJECT, **{**LOGIT, "samples": 2, "seed": 3, **options})


def naive(model, component, window, *, std, samples=2, seed=3):
    """One plain forward per draw, layer and position, with nothing of the sweep engine."""
    tokens = mx.array(model.to_tokens(TEXT))
    points = [f"L{layer}.{component}" for layer in range(model.n_layers)]
    _, clean = model.run(tokens, capture=["embed", *points])
    clean = {str(point): x for point, x in clean.items()}
    embed = clean["embed"].astype(mx.float32)[:, mx.array(WHERE)]
    noisy = embed + std * mx.random.normal((samples, *embed.shape[1:]), key=mx.random.key(seed))
    answer = model.to_single_token("x")

    def logit(*edits):
        logits, _ = model.run(tokens, interventions=edits)
        return float(np.array(logits.astype(mx.float32))[0, -1, answer])

    effects = np.zeros((samples, model.n_layers, tokens.shape[1]))
    for s, layer, p in itertools.product(range(samples), range(model.n_layers), range(tokens.shape[1])):
        noise = interventions.replace("embed", noisy[s : s + 1], positions=WHERE)
        around = range(max(0, layer - window // 2), min(model.n_layers, layer - (-window // 2)))
        back = [
            interventions.replace(points[i], clean[points[i]][:, p : p + 1], positions=[p]) for i in around
        ]
        effects[s, layer, p] = logit(noise, *back) - logit(noise)
    return effects.mean(axis=0)


@pytest.mark.parametrize(
    ("component", "window"), [("resid_post", 1), ("resid_pre", 1), ("mlp_out", 2), ("attn_out", 3), ("z", 1)]
)
def test_the_engine_gives_what_one_forward_per_state_gives(tiny_llama, component, window):
    result = traced(tiny_llama, component=component, window=window)

    expected = naive(tiny_llama, component, window, std=result.noise_std)

    rounding = backward_error(
        tiny_llama, lambda: traced(tiny_llama, component=component, window=window).effects
    )
    assert np.abs(expected).max() > max(1e-3, 10 * rounding)
    assert result.effects == pytest.approx(expected, abs=rounding)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_families_whose_rows_join_otherwise_give_the_same(family):
    model = InterpretableModel(tiny_module(family), ByteTokenizer())

    result = traced(model, component="mlp_out", window=1)

    rounding = backward_error(model, lambda: traced(model, component="mlp_out", window=1).effects)
    assert result.effects == pytest.approx(naive(model, "mlp_out", 1, std=result.noise_std), abs=rounding)


@pytest.mark.parametrize("kept_tokens", [5, 11, 1000])
def test_draws_that_do_not_fit_in_memory_together_give_the_same(tiny_llama, monkeypatch, kept_tokens):
    """No noisy run is kept, one draw's at a time, or all of them."""

    def effects():
        return traced(tiny_llama, component="mlp_out", window=1, samples=3).effects

    together, rounding = effects(), backward_error(tiny_llama, effects)

    monkeypatch.setattr(sweep, "KEPT_TOKENS", kept_tokens)

    assert effects() == pytest.approx(together, abs=rounding)


def test_positions_before_the_subject_have_no_effect_and_the_last_state_restores_everything(tiny_llama):
    result = traced(tiny_llama)

    assert (result.effects[:, : WHERE[0]] == 0).all()
    assert result.effects[-1, -1] == pytest.approx(result.total_effect, abs=1e-5)
    assert result.effects[-1, :-1] == pytest.approx(0, abs=1e-5)


def test_restoring_all_that_the_noise_changed_gives_the_clean_run(tiny_llama):
    last = len(tiny_llama.to_tokens(TEXT)[0]) - 1

    result = causal_tracing(tiny_llama, TEXT, [last], samples=2, **LOGIT)

    # Only the last position is noisy, so its residual stream after any layer is all there is to restore.
    assert result.effects[:, last] == pytest.approx(result.total_effect, abs=1e-5)


def test_the_same_seed_gives_the_same_noise_and_another_seed_another(tiny_llama):
    assert traced(tiny_llama) == traced(tiny_llama)
    assert traced(tiny_llama, seed=4).corrupted_metric != traced(tiny_llama).corrupted_metric


def test_draws_are_averaged(tiny_llama):
    four = traced(tiny_llama, samples=4)

    three = traced(tiny_llama, samples=3)

    assert four.ci_low == pytest.approx(2 * four.effects - four.ci_high)
    assert (four.ci_low <= four.effects).all()
    assert three.ci_low is None


def test_twice_the_noise_is_twice_the_standard_deviation_of_the_subjects_embeddings(tiny_llama):
    _, seen = tiny_llama.run(mx.array(tiny_llama.to_tokens(TEXT)), capture=["embed"])
    (embed,) = seen.values()
    spread = float(np.std(np.array(embed)[0, WHERE]))

    assert traced(tiny_llama, noise=2.0).noise_std == pytest.approx(2 * spread, rel=1e-5)


def test_without_an_answer_the_models_own_first_choice_is_traced(tiny_llama):
    result = causal_tracing(tiny_llama, TEXT, SUBJECT, samples=1, noise=20.0)
    first = int(np.array(tiny_llama.logits(TEXT))[0, -1].argmax())

    (prompt,) = result.measured_on["prompts"]
    assert prompt["answer"] == tiny_llama.to_str_tokens([first])[0]
    assert prompt["subject"] == "cat"
    assert result.metric == "prob"


def test_several_prompts_are_averaged_by_role_with_equal_weight(tiny_llama):
    prompts = [TracedPrompt("the cat sat", "cat", "x"), TracedPrompt("a big ox ran", "ox", "y")]

    both = causal_tracing(tiny_llama, prompts, samples=1, metric="logit", noise=5.0, seed=7)

    cat, ox = (
        causal_tracing(
            tiny_llama,
            prompt,
            samples=1,
            metric="logit",
            noise=both.noise_std / _spread(tiny_llama, prompt),
            seed=7 + i,
        )
        for i, prompt in enumerate(prompts)
    )
    expected = {
        "first subject token": (cat.effects[:, 4] + ox.effects[:, 6]) / 2,
        "middle subject tokens": cat.effects[:, 5],
        "last subject token": (cat.effects[:, 6] + ox.effects[:, 7]) / 2,
        "first token after": (cat.effects[:, 7] + ox.effects[:, 8]) / 2,
        "further tokens": (cat.effects[:, 8:10].mean(axis=1) + ox.effects[:, 9:11].mean(axis=1)) / 2,
        "last token": (cat.effects[:, 10] + ox.effects[:, 11]) / 2,
    }
    assert both.columns == tuple(expected)
    assert [both.columns[i] for i in both.subject] == list(expected)[:3]
    assert both.effects == pytest.approx(np.stack(list(expected.values()), axis=1), abs=1e-5)
    assert both.clean_metric == pytest.approx((cat.clean_metric + ox.clean_metric) / 2)


def _spread(model, prompt):
    _, seen = model.run(mx.array(model.to_tokens(prompt.text)), capture=["embed"])
    (embed,) = seen.values()
    at = prompt.text.index(prompt.subject)
    return float(np.std(np.array(embed)[0, at : at + len(prompt.subject)]))


def test_noise_that_changes_nothing_is_refused(tiny_llama):
    with pytest.raises(NoGap, match="nothing to restore"):
        traced(tiny_llama, noise=1e-9)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"component": "pattern"}, "resid_pre, z, attn_out"),
        ({"window": 9}, "3 layers"),
        ({"samples": 0}, "at least one draw"),
        ({"metric": "kl"}, "distance from the clean run"),
        ({"layers": [7]}, "layers 0 to 2"),
    ],
)
def test_what_means_nothing_is_refused(tiny_llama, options, says):
    with pytest.raises(SweepError, match=says):
        traced(tiny_llama, **options)


@pytest.mark.parametrize("subject", ["dog", "t", ""])
def test_a_subject_that_is_not_in_the_text_once_is_refused(tiny_llama, subject):
    with pytest.raises(PromptPairError, match=r"stands [0-9] times"):
        causal_tracing(tiny_llama, TEXT, subject, **LOGIT)


def test_a_text_without_a_subject_and_a_traced_prompt_with_a_second_one_are_refused(tiny_llama):
    with pytest.raises(PromptPairError, match="without a subject"):
        causal_tracing(tiny_llama, TEXT)
    with pytest.raises(PromptPairError, match="holds its own"):
        causal_tracing(tiny_llama, TracedPrompt(TEXT, "cat"), "cat")


def test_a_model_without_a_state_says_so():
    model = InterpretableModel(tiny_module("gpt_neox"), ByteTokenizer())

    with pytest.raises(CapabilityUnavailable, match="resid_mid"):
        traced(model, component="resid_mid")


def test_progress_ends_where_all_rows_are_done(tiny_llama):
    told: list[tuple[int, int]] = []

    traced(tiny_llama, progress=lambda done, rows: told.append((done, rows)))

    assert told[-1][0] == told[-1][1] > 0


def test_a_result_is_read_back_equal_and_says_its_strongest_state(tiny_llama):
    result = traced(tiny_llama)

    back = AnalysisResult.from_json(result.to_json())

    assert back == result
    assert result.top_components(1)[0].label in result.summary()
    heatmap = result.shows()[0]
    assert heatmap.row_labels[4:7] == ("4 'c'*", "5 'a'*", "6 't'*")
    assert np.array(heatmap.values) == pytest.approx(result.effects.T)


def test_no_prompt_is_refused_for_having_no_subject(tiny_llama):
    with pytest.raises(PromptPairError, match="comes without a subject"):
        causal_tracing(tiny_llama, [])
