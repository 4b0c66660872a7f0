"""Mistakes that libraries like this one have made and shipped, each with the test that would catch it here.

1. a residual stream's name that no module answers to: nothing is patched, every effect is 0
    causal/patching/test_activation_patching.py::
        test_the_last_residual_recovers_everything_at_the_answer_position_and_nothing_before
    causal/patching/test_activation_patching.py::test_the_residual_after_a_block_is_the_residual_before_the_next
    core/test_model.py::test_an_intervention_whose_module_never_runs_raises
2. a "head" that is a slice of attention's output, behind W_O
    causal/patching/test_activation_patching.py::test_each_head_is_what_one_patched_forward_recovers
    causal/patching/test_activation_patching.py::test_all_heads_of_a_layer_together_are_its_attention
3. path patching that freezes everything, and never reads its receiver
    causal/patching/test_path_patching.py::test_a_sender_that_comes_after_the_receiver_does_exactly_nothing
    causal/patching/test_path_patching.py::test_the_receiver_matters
    causal/patching/test_path_patching.py::test_what_does_not_exist_is_refused
4. a module that one run calls twice (a rotary embedding): the last call is captured, and written
    over the first
    test_a_module_that_one_run_calls_twice_has_no_single_output
5. ACDC over nodes, in one shot, its edges made up afterwards
    causal/circuits/test_acdc.py::test_the_decisions_are_those_of_the_algorithm_as_it_is_written
    causal/circuits/test_acdc.py::test_it_finds_exactly_the_planted_edges_over_five_decades_of_the_threshold
6. under KL, the node that matters most is pruned first, because its distance is small
    test_under_kl_an_edge_is_kept_for_what_removing_it_costs
7. a slope measured along one random direction: a thousand times too small, one forward per layer
    causal/gradients/test_attribution_patching.py::test_an_estimate_is_the_slope_of_the_metric_along_the_patch
    test_an_estimate_costs_as_many_forwards_for_one_layer_as_for_all
8. direct attribution with the final norm applied to each component by itself
    causal/test_direct_logit_attribution.py::test_the_contributions_add_up_to_the_logit_the_model_computes
9. contributions "of heads" that are those of whole layers; no embedding, no foil
    causal/test_direct_logit_attribution.py::test_heads_and_the_output_bias_add_up_to_the_attention
    causal/test_direct_logit_attribution.py::test_with_a_foil_they_add_up_to_the_logit_difference
10. packed integers of a quantised unembedding taken for its rows
    causal/test_direct_logit_attribution.py::test_a_quantised_model_is_attributed_with_its_dequantised_rows
11. feature circuits whose effects are 0 whatever the features do
    sae/analysis/test_effects.py::test_a_planted_causal_feature_has_over_ten_times_the_effect_of_an_inert_one
    sae/analysis/test_circuits.py::test_the_true_edges_rank_above_all_others
    workflows/test_feature_investigation.py::test_the_feature_that_matters_is_named_and_those_that_do_not_are_not
12. the SAE's error charged to each feature: one that never fires has an effect
    sae/analysis/test_effects.py::test_a_feature_that_does_not_fire_is_edited_into_the_very_same_logits
    sae/analysis/test_effects.py::test_zeroing_takes_out_exactly_the_features_own_term
13. unequal prompts aligned at their ends, or at their beginnings, without a word
    causal/prompts/test_pair.py::test_unequal_lengths_are_refused_with_both_tokenisations_side_by_side
    core/test_interventions.py::test_a_value_that_fits_neither_the_activation_nor_the_selection_is_an_error
14. negative and out-of-range positions ignored
    core/test_interventions.py::test_a_negative_position_counts_from_the_end
    core/test_interventions.py::test_a_position_that_does_not_exist_is_an_error_with_the_range
15. `positions` ignored for heads
    test_positions_are_honoured_for_heads_too
16. unknown components and layers worth 0.0
    causal/patching/test_activation_patching.py::test_names_that_do_not_exist_are_refused_with_those_that_do
17. attribution patching of unequal prompts dies in a broadcast
    causal/gradients/test_attribution_patching.py::test_prompts_of_different_lengths_are_compared_along_a_stated_map
18. the clean run made again for every layer, every module wrapped anew by every trace
    test_a_sweep_runs_both_prompts_once
    test_tracing_again_makes_no_more_classes
19. logits differenced in 16 bits
    test_metrics.py::test_logits_of_low_precision_are_differenced_in_float32_or_better
20. no gap between the baselines, so every effect is 0.0
    causal/prompts/test_pair.py::test_a_pair_without_a_gap_is_refused_with_both_values
    test_metrics.py::test_recovered_without_a_gap_is_not_a_number
21. a KL that is negative, unnormalised, and among recoveries
    test_metrics.py::test_kl_has_the_clean_distribution_as_reference_and_is_summed_over_the_vocabulary
    causal/patching/test_activation_patching.py::
        test_distances_recover_one_where_the_run_is_the_clean_one_and_zero_where_it_is_the_corrupted
22. distances between raw logits, which are defined up to a constant
    test_metrics.py::test_no_metric_changes_when_a_constant_is_added_to_the_logits
23. of a batch, row 0 alone is read
    causal/patching/test_activation_patching.py::test_each_pair_of_a_dataset_is_what_it_is_alone
24. padding without a mask, and metrics read at the padding
    core/test_identities.py::test_a_batch_of_unequal_prompts_gives_what_each_gives_alone
25. an assignment into a trace that changes nothing
    core/test_model.py::test_assigning_into_a_trace_is_an_error_and_not_a_silent_nothing
26. attention weights computed beside the model: no query norm, no window, masks added
    core/test_identities.py::test_pattern_times_v_is_z_and_each_row_of_a_pattern_is_a_causal_distribution
    core/architecture/test_parts.py::test_a_sliding_window_is_seen_in_the_pattern
    core/architecture/test_parts.py::test_norms_before_attention_are_seen_in_the_queries
27. nothing, silently, for models that name their blocks otherwise (GPT-2)
    core/test_identities.py::test_only_what_a_family_really_lacks_is_missing
    core/test_identities.py::test_all_heads_of_a_layer_together_are_its_attention
28. generation without a cache, edits at positions that move
    core/test_identities.py::test_generation_with_a_cache_gives_what_whole_runs_give
    core/test_generate.py::test_an_edit_by_absolute_position_is_the_same_with_and_without_a_cache
29. a nucleus that is not the smallest set
    core/test_generate.py::test_a_nucleus_is_the_smallest_set_that_reaches_top_p
30. a workflow on a step that measures nothing, and reports its zeros as confirmed
    workflows/test_circuit_discovery.py::test_every_step_is_what_the_analysis_alone_returns
    workflows/test_circuit_discovery.py::test_a_circuit_of_nothing_is_said_to_be_nothing
31. names of nodes handed on that the next step does not know
    causal/patching/test_path_patching.py::test_what_does_not_exist_is_refused
    causal/circuits/test_graph.py::test_a_node_that_does_not_exist_says_how_nodes_are_written
32. heads ranked inside the three layers that look best, and by their largest positive effect
    test_heads_are_ranked_over_all_layers_by_the_size_of_their_effect
33. exceptions swallowed, and a model left wrapped
    core/test_taps.py::test_an_edit_that_raises_leaves_the_model_untouched
    core/test_model.py::test_a_captured_activation_is_not_changed_by_what_the_model_does_later
34. features of a token that depend on the tokens beside it, because a batch shares its k
    test_a_tokens_features_are_its_own_whatever_is_beside_it
35. running statistics of activations that are those of the last batch
    test_the_scaling_of_activations_is_that_of_all_of_them
36. a sensitivity test that any varying activation passes
    auto_interp/sensitivity/test_sensitivity.py::test_labels_of_other_features_do_not
    auto_interp/sensitivity/test_sensitivity.py::test_nonsense_never_passes
37. conclusions without support; tests that only look at types
    test_every_test_of_the_core_can_fail_for_a_value

A test without a file is in this one.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp.causal import PromptPair, acdc, activation_patching, attribution_patching
from mlxterp.causal.circuits.edge_patching import EdgeRun
from mlxterp.causal.prompts.pair import prepare
from mlxterp.core import forward as engine
from mlxterp.errors import HookError
from mlxterp.results import PatchingResult
from mlxterp.sae.sae import SAE, JumpRelu, Relu, TopK
from mlxterp.sae.training.scaling import measure
from tests.causal.conftest import CLEAN, PAIR

ROOT = Path(__file__).parents[1]


def table() -> dict[int, list[str]]:
    """Of the list above: number → tests, as `causal/circuits/test_acdc.py::test_…`."""
    found: dict[int, list[str]] = {}
    number = 0
    for line in (__doc__ or "").replace("::\n        ", "::").splitlines():
        if line[:1].isdigit():
            number = int(line.split(".")[0])
            found[number] = []
        elif line.strip().startswith("test_") or "::" in line:
            found[number].append(line.strip())
    return found


@cache
def functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def exists(test: str) -> bool:
    path, _, name = test.rpartition("::")
    return name in {function.name for function in functions(ROOT / path if path else Path(__file__))}


def test_every_mistake_has_a_test_that_exists():
    missing = [test for tests in table().values() for test in tests if not exists(test)]

    assert missing == []
    assert all(table().values())
    assert sorted(table()) == list(range(1, 38))


def looks_at_values(test: ast.FunctionDef) -> bool:
    """Whether a test compares something, or expects an error: not only the type of what came out."""
    for node in ast.walk(test):
        if isinstance(node, ast.Attribute) and node.attr in ("raises", "warns", "testing"):
            return True
        if isinstance(node, ast.Assert):
            called = node.test.func if isinstance(node.test, ast.Call) else None
            only_type = isinstance(called, ast.Name) and called.id in ("isinstance", "hasattr", "callable")
            only_there = isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], ast.IsNot)
            if not only_type and not only_there:
                return True
    return False


def test_every_test_of_the_core_can_fail_for_a_value():
    files = [*(ROOT / "core").rglob("test_*.py"), *(ROOT / "causal").rglob("test_*.py")]
    tests = [(f.name, t) for f in files for t in functions(f) if t.name.startswith("test_")]

    assert len(tests) > 300
    assert [f"{name}::{test.name}" for name, test in tests if not looks_at_values(test)] == []


def test_a_module_that_one_run_calls_twice_has_no_single_output(tiny_llama):
    rope = "model.layers.0.self_attn.rope"

    with pytest.raises(HookError, match=r"more than once, .*L0\.q"):
        tiny_llama.trace(CLEAN, capture=[rope])

    assert tiny_llama.trace(CLEAN, capture=["L0.q", "L0.k"])["L0.k"].shape[2] == tiny_llama.n_kv_heads


def test_under_kl_an_edge_is_kept_for_what_removing_it_costs(toy_model):
    pair = PromptPair((1, 2, 3, 4, 5, 1), (7, 8, 9, 10, 11, 12), answer=2, foil=3)
    prepared = prepare(toy_model, pair, "kl")
    run = EdgeRun(toy_model, prepared.clean, prepared.corrupted)
    alone = [prepared.metric(row, prepared.targets)[0] for row in run.logits(np.eye(run.n_edges, dtype=bool))]
    costliest = list(run.graph.edges())[int(np.argmax(alone))]

    found = acdc(toy_model, pair, threshold=0.1)

    assert max(alone) > 1
    assert str(costliest) in [str(edge) for edge in found.edges]
    assert min(edge.effect for edge in found.edges) >= 0.1


def test_an_estimate_costs_as_many_forwards_for_one_layer_as_for_all(tiny_llama, monkeypatch):
    counted, one = forwards(monkeypatch), {"steps": 1, "verify": 0}

    attribution_patching(tiny_llama, PAIR, component="z", by="layer_pos_head", layers=[0], **one)
    for_one = counted.pop("forwards")
    attribution_patching(tiny_llama, PAIR, component="z", by="layer_pos_head", **one)

    assert counted["forwards"] == for_one <= 4


def test_positions_are_honoured_for_heads_too(tiny_llama):
    by_position = activation_patching(tiny_llama, PAIR, component="head", by="layer_pos_head").effects

    at_the_end = activation_patching(tiny_llama, PAIR, component="head", by="layer_head", positions=[-1])

    assert at_the_end.effects == pytest.approx(by_position[:, -1], abs=1e-5)
    everywhere = activation_patching(tiny_llama, PAIR, component="head", by="layer_head").effects
    assert np.abs(everywhere - at_the_end.effects).max() > 0.01


def test_a_sweep_runs_both_prompts_once(tiny_llama, monkeypatch):
    counted = forwards(monkeypatch)

    activation_patching(tiny_llama, PAIR, component="mlp", by="layer_pos")

    assert counted == {"forwards": 1}


def test_tracing_again_makes_no_more_classes(tiny_llama):
    tiny_llama.trace(CLEAN, capture=["z", "attn_out", "resid_post"])
    before = len(every_subclass(nn.Module))

    for _ in range(3):
        tiny_llama.trace(CLEAN, capture=["z", "attn_out", "resid_post"])

    assert len(every_subclass(nn.Module)) == before


@pytest.mark.parametrize("activation", [Relu(), TopK(2), JumpRelu(mx.full((12,), 0.3))])
def test_a_tokens_features_are_its_own_whatever_is_beside_it(activation):
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(6, 12)).astype(np.float32), rng.normal(size=(9, 6)).astype(np.float32)
    weights = {"W_enc": mx.array(w), "b_enc": mx.zeros(12), "W_dec": mx.array(w.T), "b_dec": mx.zeros(6)}
    sae = SAE(**weights, activation=activation, hook_point="L0.resid_post", model="none")

    together = np.array(sae.encode(mx.array(x * np.arange(1, 10)[:, None])))

    alone = [np.array(sae.encode(mx.array(i * row)[None]))[0] for i, row in enumerate(x, start=1)]
    assert together == pytest.approx(np.stack(alone), abs=1e-4)
    assert (together > 0).any(axis=1).all()


def test_the_scaling_of_activations_is_that_of_all_of_them():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(400, 4)), 5 + 3 * rng.normal(size=(100, 4))]).astype(np.float32)

    scaling = measure(rows, "L0.resid_post", 2)

    assert np.array(scaling.mean) == pytest.approx(rows.mean(axis=0), abs=1e-4)
    length = (np.array(scaling(mx.array(rows))) ** 2).sum(axis=1).mean()
    assert length == pytest.approx(9 * 2, rel=1e-3)


def test_heads_are_ranked_over_all_layers_by_the_size_of_their_effect():
    effects = np.array(
        [[0.4, 0.4, 0.4], [0.0, 0.1, -0.9], [0.3, 0.3, 0.3], [0.2, 0.2, 0.2], [0.0, 0.5, -0.5]]
    )
    result = PatchingResult(
        effects=effects,
        axes=("layer", "head"),
        component="z",
        by="layer_head",
        direction="denoising",
        metric="logit_diff",
        clean_metric=1.0,
        corrupted_metric=0.0,
        measured_on={},
    )

    assert [(top.label, top.effect) for top in result.top_components(3)] == [
        ("L1.H2", -0.9),
        ("L4.H1", 0.5),
        ("L4.H2", -0.5),
    ]


def forwards(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    counted: dict[str, int] = {}
    own = engine.run

    def counting(*args, **kwargs):
        counted["forwards"] = counted.get("forwards", 0) + 1
        return own(*args, **kwargs)

    monkeypatch.setattr(engine, "run", counting)
    return counted


def every_subclass(cls: type) -> set[type]:
    found = set(cls.__subclasses__())
    return found.union(*(every_subclass(sub) for sub in found)) if found else found
