"""Activation patching against one hand-made forward per number, and the identities it must satisfy."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.causal import PromptPair, activation_patching
from mlxterp.causal.batching.sweep import Row, run_rows
from mlxterp.causal.prompts.pair import prepare
from mlxterp.core.interventions import replace
from mlxterp.errors import (
    CapabilityUnavailable,
    PositionsAligned,
    PromptPairError,
    SweepError,
    TokenError,
    UnknownHookPoint,
)
from mlxterp.results import AnalysisResult
from tests.causal.conftest import (
    CLEAN,
    CORRUPTED,
    FIRST_DIFFERENCE,
    PAIR,
    PAIRS,
    logit_difference,
    naive_recovery,
)
from tests.rounding import backward_error

LENGTH = len(CLEAN)
LAYERS = 3


def sweep(model, component, by, **options):
    return activation_patching(model, PAIR, component=component, by=by, **options).effects


@pytest.mark.parametrize("component", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z"])
def test_each_site_is_what_one_patched_forward_recovers(tiny_llama, component):
    clean = tiny_llama.trace(CLEAN, capture=[component])

    effects = sweep(tiny_llama, component, "layer_pos")

    for layer, pos in [(0, 4), (0, 10), (1, 5), (1, 10), (2, 6), (2, 10)]:
        name = f"L{layer}.{component}"
        naive = naive_recovery(tiny_llama, replace(name, clean[name], positions=pos))
        assert effects[layer, pos] == pytest.approx(naive, abs=1e-4)


@pytest.mark.parametrize("component", ["z", "q", "k", "v", "pattern"])
def test_each_head_is_what_one_patched_forward_recovers(tiny_llama, component):
    clean = tiny_llama.trace(CLEAN, capture=[component])
    n_heads = 2 if component in ("k", "v") else 4

    effects = sweep(tiny_llama, component, "layer_pos_head")

    assert effects.shape == (LAYERS, LENGTH, n_heads)
    for layer, pos, head in [(0, 10, 0), (1, 5, n_heads - 1), (2, 10, 1)]:
        name = f"L{layer}.{component}"
        naive = naive_recovery(tiny_llama, replace(name, clean[name], positions=pos, heads=head))
        assert effects[layer, pos, head] == pytest.approx(naive, abs=1e-4)


def test_noising_is_the_loss_of_the_clean_run_with_a_corrupted_activation(tiny_llama):
    corrupted = tiny_llama.trace(CORRUPTED, capture=["mlp_out"])
    clean_value, corrupted_value = (logit_difference(tiny_llama, p) for p in (CLEAN, CORRUPTED))

    effects = sweep(tiny_llama, "mlp_out", "layer", direction="noising")

    for layer in range(LAYERS):
        patched = logit_difference(
            tiny_llama, CLEAN, replace(f"L{layer}.mlp_out", corrupted[f"L{layer}.mlp_out"])
        )
        assert effects[layer] == pytest.approx(
            (clean_value - patched) / (clean_value - corrupted_value), abs=1e-4
        )


def test_the_whole_first_residual_recovers_everything(any_family):
    assert sweep(any_family, "resid_pre", "layer")[0] == pytest.approx(1.0, abs=1e-4)


def test_the_last_residual_recovers_everything_at_the_answer_position_and_nothing_before(any_family):
    last = sweep(any_family, "resid_post", "layer_pos")[-1]

    assert last[-1] == pytest.approx(1.0, abs=1e-4)
    assert last[:-1] == pytest.approx(np.zeros(LENGTH - 1), abs=1e-4)


def test_the_residual_after_a_block_is_the_residual_before_the_next(any_family):
    post, pre = sweep(any_family, "resid_post", "layer_pos"), sweep(any_family, "resid_pre", "layer_pos")

    assert post[:-1] == pytest.approx(pre[1:], abs=1e-4)


def test_all_heads_of_a_layer_together_are_its_attention(any_family):
    assert sweep(any_family, "z", "layer_pos") == pytest.approx(
        sweep(any_family, "attn_out", "layer_pos"), abs=1e-4
    )


def test_embedding_and_all_outputs_together_recover_everything(any_family):
    prepared = prepare(any_family, PAIR)
    clean = any_family.trace(CLEAN, capture=["resid_pre", "attn_out", "mlp_out"])
    names = ["L0.resid_pre", *(f"L{la}.{name}" for la in range(LAYERS) for name in ("attn_out", "mlp_out"))]
    everything = Row(0, tuple(replace(name, clean[name]) for name in names))

    patched = run_rows(
        any_family,
        prepared.corrupted,
        [everything],
        lambda x, e: prepared.metric(x, prepared.targets.take(e)),
    )

    assert patched == pytest.approx(prepared.clean_metric, abs=1e-4)


@pytest.mark.parametrize("component", ["resid_pre", "resid_post", "attn_out", "z"])
def test_positions_before_the_first_difference_have_an_effect_of_exactly_zero(tiny_llama, component):
    effects = sweep(tiny_llama, component, "layer_pos")

    assert np.array_equal(effects[:, :FIRST_DIFFERENCE], np.zeros((LAYERS, FIRST_DIFFERENCE)))
    assert np.all(effects[0, FIRST_DIFFERENCE:7] != 0)


def test_noising_a_pair_is_denoising_the_pair_turned_around(any_family):
    turned = PromptPair(CORRUPTED, CLEAN, answer="x", foil="y")

    def noising():
        return activation_patching(any_family, PAIR, component="attn_out", direction="noising").effects

    expected = activation_patching(any_family, turned, component="attn_out").effects
    assert noising() == pytest.approx(expected, abs=backward_error(any_family, noising))


def test_each_pair_of_a_dataset_is_what_it_is_alone(tiny_llama):
    together = activation_patching(tiny_llama, PAIRS, component="z")

    alone = [activation_patching(tiny_llama, pair, component="z").effects for pair in PAIRS]
    assert together.per_example == pytest.approx(np.stack(alone), abs=1e-4)


def test_a_dataset_is_summed_up_as_the_ratio_of_means_and_not_the_mean_of_ratios(tiny_llama):
    result = activation_patching(tiny_llama, PAIRS, component="mlp_out")

    prepared = prepare(tiny_llama, PAIRS)
    gaps = (prepared.clean_metric - prepared.corrupted_metric)[:, None]
    ratio = (result.per_example * gaps).sum(axis=0) / gaps.sum()
    assert result.effects == pytest.approx(ratio, abs=1e-6)
    assert np.abs(result.effects - result.per_example.mean(axis=0)).max() > 1e-3
    assert result.ci_low is None
    assert result.cautions[0].startswith(f"No interval: {len(PAIRS)} independent clusters")


@pytest.mark.parametrize("metric", ["l2", "kl", "cosine"])
def test_distances_recover_one_where_the_run_is_the_clean_one_and_zero_where_it_is_the_corrupted(
    tiny_llama, metric
):
    effects = sweep(tiny_llama, "resid_post", "layer_pos", metric=metric)

    assert effects[-1, -1] == pytest.approx(1.0, abs=1e-3)
    assert effects[-1, -2] == pytest.approx(0.0, abs=1e-3)


def test_a_callable_metric_sees_logits_and_gives_the_same_as_the_named_one(tiny_llama):
    answer, foil = ord("x"), ord("y")

    own = activation_patching(
        tiny_llama, CLEAN, CORRUPTED, component="z", metric=lambda x: x[:, answer] - x[:, foil]
    )

    assert own.effects == pytest.approx(sweep(tiny_llama, "z", "layer_head"), abs=1e-4)


@pytest.mark.usefixtures("pinned_threads")
def test_token_ids_do_as_well_as_text(tiny_llama):
    ids = [list(text.encode()) for text in (CLEAN, CORRUPTED)]

    by_ids = activation_patching(tiny_llama, *ids, answer=ord("x"), foil=ord("y"))

    assert np.array_equal(by_ids.effects, sweep(tiny_llama, "resid_pre", "layer"))


@pytest.mark.usefixtures("pinned_threads")
def test_the_short_names_of_components_mean_the_fields_names(tiny_llama):
    for short, name in [("mlp", "mlp_out"), ("attn", "attn_out"), ("attn_head", "z")]:
        result = activation_patching(tiny_llama, PAIR, component=short)
        assert result.component == name
        assert np.array_equal(result.effects, activation_patching(tiny_llama, PAIR, component=name).effects)


def test_chosen_layers_and_positions_are_those_of_the_whole_sweep_and_keep_their_numbers(tiny_llama):
    whole = sweep(tiny_llama, "mlp_out", "layer_pos")

    part = activation_patching(
        tiny_llama, PAIR, component="mlp", by="layer_pos", layers=[2, 0], positions=[-1, 5]
    )

    assert part.effects == pytest.approx(whole[np.ix_([0, 2], [5, 10])], abs=1e-5)
    assert part.indices == {"layer": (0, 2), "pos": (5, 10)}


def test_unequal_lengths_are_patched_along_the_stated_map(tiny_llama):
    longer = "the wolf sat"
    clean = tiny_llama.trace(longer, capture=["resid_post"])
    pair = PromptPair(longer, CORRUPTED, "x", "y")

    with pytest.warns(PositionsAligned):
        result = activation_patching(tiny_llama, pair, component="resid_post", by="layer_pos", align="auto")

    assert result.indices["pos"] == (0, 1, 2, 3, 7, 8, 9, 10)
    assert result.effects[-1, -1] == pytest.approx(1.0, abs=1e-4)
    source = np.array(clean["L1.resid_post"])[:, 9:10]
    naive = naive_recovery(tiny_llama, replace("L1.resid_post", source, positions=8), pair=pair)
    assert result.effects[1, 5] == pytest.approx(naive, abs=1e-4)
    assert result.measured_on["alignment"]["kind"] == "auto"


def test_a_result_says_what_it_was_measured_on_and_survives_json(tiny_llama):
    result = activation_patching(tiny_llama, PAIRS, component="z", by="layer_pos_head")

    facts = result.measured_on
    assert facts["model"] == "llama"
    assert facts["digest"] == tiny_llama.digest
    assert facts["direction"] == "denoising"
    assert len(facts["prompts"]) == 3
    assert facts["blas"]
    assert result.axes == ("layer", "pos", "head")
    assert result.labels["pos"][FIRST_DIFFERENCE] == "c…/d…"
    assert AnalysisResult.from_json(result.to_json()) == result


def test_progress_counts_up_to_all_rows_that_are_run(tiny_llama):
    seen = []

    activation_patching(
        tiny_llama, PAIR, by="layer_pos", progress=lambda done, total: seen.append((done, total))
    )

    rows = LAYERS * (LENGTH - FIRST_DIFFERENCE)
    assert seen[-1] == (rows, rows)


def test_names_that_do_not_exist_are_refused_with_those_that_do(tiny_llama):
    with pytest.raises(UnknownHookPoint, match=r"residual.*resid_pre"):
        activation_patching(tiny_llama, PAIR, component="residual")
    with pytest.raises(SweepError, match=r"'head' is not known.*layer_pos_head"):
        activation_patching(tiny_llama, PAIR, component="z", by="head")
    with pytest.raises(SweepError, match=r"'backwards' is not known.*noising"):
        activation_patching(tiny_llama, PAIR, direction="backwards")
    with pytest.raises(SweepError, match=r"\[3\] do not exist.*layers 0 to 2"):
        activation_patching(tiny_llama, PAIR, layers=[0, 3])
    with pytest.raises(SweepError, match=r"\[-12\] do not exist.*positions 0 to 10"):
        activation_patching(tiny_llama, PAIR, positions=[-12])


def test_heads_of_a_component_without_heads_are_refused(tiny_llama):
    with pytest.raises(SweepError, match=r"mlp_out has none.*z \(what each head passes"):
        activation_patching(tiny_llama, PAIR, component="mlp", by="layer_head")


def test_a_component_that_the_model_lacks_is_refused(toy_model):
    with pytest.raises(CapabilityUnavailable, match="mlp_out"):
        activation_patching(toy_model, [1, 2], [1, 3], component="mlp", answer=1, foil=2)


def test_positions_without_a_counterpart_are_refused(tiny_llama):
    pair = PromptPair("the wolf sat", CORRUPTED, "x", "y")

    with pytest.warns(PositionsAligned), pytest.raises(TokenError, match=r"\[5\] have no counterpart"):
        activation_patching(tiny_llama, pair, align="auto", positions=[5])


def test_patterns_of_unequal_lengths_are_refused(tiny_llama):
    pair = PromptPair("the wolf sat", CORRUPTED, "x", "y")

    with pytest.warns(PositionsAligned), pytest.raises(SweepError, match="source axis"):
        activation_patching(tiny_llama, pair, component="pattern", align="auto")


def test_a_prompt_patched_into_itself_is_refused(tiny_llama):
    with pytest.raises(PromptPairError, match="changes nothing"):
        activation_patching(tiny_llama, CLEAN, CLEAN, metric="l2")
