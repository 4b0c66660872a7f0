"""`feature_investigation`: its steps, and that its sentences name only what passed its controls."""

from __future__ import annotations

from dataclasses import replace as changed

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.causal import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MetricError, ResultError, SAEError, StoreError, SweepError
from mlxterp.results import AnalysisResult
from mlxterp.sae import JumpRelu, feature_effects
from mlxterp.sae.analysis.examples import feature_examples
from mlxterp.sae.feature_store.build import build_store, store_from_arrays
from mlxterp.workflows.features import feature_investigation
from mlxterp.workflows.progress import StepProgress
from tests.sae.planted import ALL, NO, NOTHING, ONLY_C, YES, A, C, planted_model, planted_sae, random_sae
from tests.tiny_models import ByteTokenizer, tiny_module

TEXT = "the cat sat"
DATASET = ["the dog sat on the mat", "a cat is a cat", "hello world"]
PROMPT = (NOTHING, NOTHING, ALL)


@pytest.fixture(scope="module")
def model():
    return planted_model()


@pytest.fixture(scope="module")
def sae():
    return random_sae("L1.resid_post")


@pytest.fixture(scope="module")
def result(tiny_llama, sae):
    return investigated(tiny_llama, sae)


def investigated(model, sae):
    return feature_investigation(model, sae, TEXT, layer=1, dataset=DATASET, top_k=6)


def among_inert(n: int):
    """a', which the unembedding reads, among c' and n features like it that it does not read."""
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


def test_the_three_steps_look_at_the_same_features(result):
    active, ablation, examples = (
        result.get_step(name) for name in ("active_features", "ablation", "max_examples")
    )

    assert active.features == ablation.features == examples.features
    assert len(active.features) == 6
    assert result.components_from == ("ablation",)


@pytest.mark.usefixtures("pinned_threads")
def test_each_step_is_what_the_analysis_alone_gives(tiny_llama, sae):
    alone = feature_effects(tiny_llama, sae, TEXT, top_k=6)

    assert investigated(tiny_llama, sae).get_step("ablation") == alone


def test_the_feature_that_matters_is_named_and_those_that_do_not_are_not(model):
    result = feature_investigation(model, among_inert(24), PROMPT, answer=YES, top_k=26)

    assert "f0 (" in result.conclusion
    told = result.step("ablation").narrative
    assert "1 of 26 features" in told
    assert [f"f{f} (" in told for f in range(1, 26)] == [False] * 25
    assert "would pass by chance" in " ".join(result.step("ablation").cautions)


def test_where_nothing_passes_its_controls_nothing_is_called_important(tiny_llama, sae):
    result = feature_investigation(tiny_llama, sae, TEXT, top_k=6, controls=0)

    assert "none is called important" in result.step("ablation").narrative
    assert result.conclusion == "No feature is shown to matter to kl here."


def test_a_metric_that_no_feature_changes_is_said_to_be_one(model):
    result = feature_investigation(model, planted_sae(0), PROMPT, metric=lambda logits: logits[:, 0] * 0)

    assert "No feature has an effect" in result.step("ablation").narrative


def test_a_text_on_which_nothing_fires_is_said_to_be_one(model):
    result = feature_investigation(model, planted_sae(0), (NOTHING, NOTHING))

    assert "No feature fires" in result.narrative
    assert "nothing to ablate" in result.narrative


def test_without_a_dataset_the_examples_are_left_out_and_it_says_so(tiny_llama, sae):
    result = feature_investigation(tiny_llama, sae, TEXT, top_k=2)

    assert result.step_names == ("active_features", "ablation")
    assert "max_examples was left out: no dataset" in result.narrative
    with pytest.raises(ResultError, match="has no step 'max_examples'"):
        result.get_step("max_examples")


def test_only_the_named_steps_run(tiny_llama, sae):
    for steps in (["active_features"], ["ablation"], "ablation"):
        result = feature_investigation(tiny_llama, sae, TEXT, steps=steps, top_k=2, dataset=DATASET)

        assert result.step_names == ((steps,) if isinstance(steps, str) else tuple(steps))


def test_a_store_that_is_there_already_is_read_and_not_built_again(tiny_llama, sae, result):
    store = build_store(tiny_llama, sae, DATASET)
    told: list[str] = []

    again = feature_investigation(
        tiny_llama, sae, TEXT, dataset=store, top_k=6, progress=lambda each: told.append(each.step)
    )

    assert again.get_step("max_examples").examples == result.get_step("max_examples").examples
    assert "dataset" not in told
    with pytest.raises(StoreError, match="Build a store of it"):
        feature_investigation(tiny_llama, random_sae("L1.resid_post", seed=9), TEXT, dataset=store)


def test_the_examples_are_the_strongest_places_of_the_corpus(tiny_llama, sae, result):
    store, examples = build_store(tiny_llama, sae, DATASET), result.get_step("max_examples")

    for f in examples.features:
        own = examples.of(f)
        where, activation = store.feature(f)
        if not len(where):
            assert own == ()
            continue
        assert own[0].activation == pytest.approx(float(activation.max()))
        assert [e.activation for e in own] == sorted((e.activation for e in own), reverse=True)
        for e in own:
            assert DATASET[e.document][e.position] == e.tokens[e.peak]
            assert "".join(e.tokens) in DATASET[e.document]


def test_examples_neither_overlap_nor_repeat_a_text():
    tokens = [1, 2, 3, 4] * 3
    activations = np.zeros((12, 1))
    activations[[2, 3, 6, 10], 0] = [3.0, 2.9, 2.0, 5.0]
    store = store_from_arrays(
        tokens, [0] * 4 + [1] * 4 + [2] * 4, activations, {1: "a", 2: "b", 3: "c", 4: "d"}
    )

    result = feature_examples(store, [0], per_feature=5)

    assert [(e.document, e.activation) for e in result.examples] == [(2, 5.0)]
    shorter = feature_examples(store, [0], per_feature=5, before=0, after=0)
    assert [e.tokens for e in shorter.examples] == [("c",), ("d",)]


def fires_on(model, letter: str):
    """One feature that fires where this letter stands, at the embedding, and one that never does."""
    row = np.array(model.model.model.embed_tokens.weight[ord(letter)], dtype=np.float32)
    unit = row / np.linalg.norm(row) ** 2
    return changed(
        random_sae("L0.resid_pre", d_sae=2, k=None),
        W_enc=mx.array(np.stack([unit, 0 * unit], axis=1)),
        b_enc=mx.array([-0.8, -1.0]),
    )


def test_labels_are_written_on_the_dataset_if_asked_for(tiny_llama):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcd efg"), size=24)) for _ in range(60)]

    result = feature_investigation(
        tiny_llama,
        fires_on(tiny_llama, "a"),
        TEXT,
        features=[0, 1],
        dataset=texts,
        steps=["ablation", "labels"],
        controls=1,
    )

    labels = result.get_step("labels")
    assert result.step_names == ("ablation", "labels")
    assert [(each["feature_id"], each["status"]) for each in labels.labels] == [(0, "ok"), (1, "dead")]
    assert "'a'" in result.step("labels").narrative or '"a"' in result.step("labels").narrative
    assert "1 of 2 features have a label" in result.narrative
    assert AnalysisResult.from_json(result.to_json()) == result


def test_a_text_on_which_nothing_fires_is_looked_for_nowhere(model):
    result = feature_investigation(model, planted_sae(0), (NOTHING, NOTHING), dataset=[(0, 1, 2)])

    assert result.get_step("max_examples").examples == ()


def test_pairs_and_their_answers_are_investigated_too(tiny_llama, sae):
    pairs = [
        PromptPair(TEXT, "the dog sat", answer="x", foil="y"),
        PromptPair("a cow", "a pig", answer="a", foil="b"),
    ]

    result = feature_investigation(tiny_llama, sae, pairs, top_k=3)

    effects = result.get_step("ablation")
    assert (effects.metric, effects.ablation) == ("logit_diff", "corrupted")
    assert effects.per_example.shape == (2, 3)


def test_the_metric_takes_its_arguments_from_metric_kwargs(tiny_llama, sae):
    named = feature_investigation(
        tiny_llama, sae, TEXT, top_k=3, metric="log_prob", metric_kwargs={"answer": "x"}
    )
    own = feature_investigation(
        tiny_llama,
        sae,
        TEXT,
        top_k=3,
        metric=lambda logits, *, token: logits[:, token],
        metric_kwargs={"token": 5},
    )

    assert named.get_step("ablation").metric == "log_prob"
    assert own.get_step("ablation").effects == pytest.approx(
        feature_effects(tiny_llama, sae, TEXT, top_k=3, metric="logit", answer=5).effects, abs=1e-5
    )
    with pytest.raises(MetricError, match="'token' is no argument"):
        feature_investigation(tiny_llama, sae, TEXT, metric="log_prob", metric_kwargs={"token": 5})


def test_what_does_not_exist_is_refused_with_what_does(tiny_llama, sae):
    with pytest.raises(SweepError, match=r"no step 'dance'.*active_features, ablation, max_examples"):
        feature_investigation(tiny_llama, sae, TEXT, steps=["dance"])
    with pytest.raises(SweepError, match="given no texts to look in"):
        feature_investigation(tiny_llama, sae, TEXT, steps=["max_examples"])
    with pytest.raises(SAEError, match=r"no feature 480: .* 48 features, 0 to 47"):
        feature_investigation(tiny_llama, sae, TEXT, features=[3, 480])
    with pytest.raises(SAEError, match=r"trained on L1\.resid_post, layer 1"):
        feature_investigation(tiny_llama, sae, TEXT, layer=2)


def test_chosen_features_are_looked_at_in_every_step(model):
    result = feature_investigation(model, planted_sae(0), PROMPT, features=[A, 4], dataset=[(0, ONLY_C, 1)])

    assert result.get_step("ablation").features == (A, 4)
    assert result.get_step("ablation").effect(4) == 0.0
    assert result.get_step("max_examples").features == (A, 4)
    assert "f4 does not fire" in result.step("max_examples").narrative


def test_it_says_how_far_it_is(tiny_llama, sae):
    told: list[StepProgress] = []

    feature_investigation(tiny_llama, sae, TEXT, dataset=DATASET, top_k=2, controls=3, progress=told.append)

    assert list(dict.fromkeys(each.step for each in told)) == [
        "active_features",
        "ablation",
        "dataset",
        "max_examples",
    ]
    assert [(e.done, e.total) for e in told if e.step == "ablation"][-1] == (8, 8)


def test_the_whole_comes_back_from_json_and_shows_itself(result):
    assert AnalysisResult.from_json(result.to_json()) == result
    assert result.plot().axes
    page = result.to_markdown()
    for step in result.step_names:
        assert step in page
    assert "all but the first" in result.narrative


def test_answers_are_asked_for_by_text_or_id(model):
    result = feature_investigation(model, planted_sae(0), PROMPT, answer=YES, foil=NO, top_k=4)

    assert result.get_step("ablation").metric == "logit_diff"
    assert result.get_step("ablation").effect(A) == pytest.approx(-9.0, abs=1e-4)


def test_a_position_that_is_an_attention_sink_is_cautioned_of():
    module = tiny_module("llama")
    embed = module.model.embed_tokens
    embed.weight = embed.weight * mx.where(mx.arange(embed.weight.shape[0]) == ord("z"), 100.0, 1.0)[:, None]
    model, sae = InterpretableModel(module, ByteTokenizer(), verify=False), random_sae("embed")

    with_sink, without = (
        feature_investigation(model, sae, text, steps=["active_features"])
        for text in ("a cat z sat", "a cat sat")
    )

    assert "At 1 of the counted positions the activation is more than ten times" in with_sink.narrative
    assert "attention sinks" not in without.narrative
