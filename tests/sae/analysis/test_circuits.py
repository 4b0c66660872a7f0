"""Feature circuits: the planted one is found, through an MLP and through attention, and is as faithful as a
forward by hand says."""

from __future__ import annotations

from dataclasses import replace as changed

import mlx.core as mx
import numpy as np
import pytest

from mlxterp import metrics
from mlxterp.causal import PromptPair, roc_auc
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MetricError, ResultError, SAEError
from mlxterp.models import toy
from mlxterp.models.toy_circuit import (
    D_MODEL,
    OUT,
    PREV,
    TOK,
)
from mlxterp.results import AnalysisResult
from mlxterp.results.views import Network
from mlxterp.sae import SAE, JumpRelu, feature_attribution, feature_circuit, feature_zero
from tests.sae.planted import (
    ALL,
    FIRST,
    NO,
    NOTHING,
    READ,
    SECOND,
    YES,
    A,
    B,
    logit_diff,
    planted_model,
    planted_sae,
    random_sae,
)
from tests.tiny_models import ByteTokenizer, tiny_module

PROMPT = (NOTHING, NOTHING, ALL)
LOW, HIGH = "L0.resid_post", "L1.resid_post"
EVERYTHING = {"node_threshold": 0.0, "edge_threshold": 0.0, "max_nodes": 1000}


@pytest.fixture(scope="module")
def model():
    return planted_model()


@pytest.fixture(scope="module")
def saes():
    return [planted_sae(0), planted_sae(1)]


@pytest.fixture(scope="module")
def whole(model, saes):
    return feature_circuit(model, saes, PROMPT, answer=YES, foil=NO, **EVERYTHING)


def node(layer: int, feature: int | None) -> str:
    return f"L{layer}.resid_post/{'error' if feature is None else f'f{feature}'}"


def test_the_true_edges_rank_above_all_others(whole):
    candidates = [(f, g) for f in range(5) for g in range(5)]
    true = {(A, A), (B, B)}
    there = {n.label for n in whole.nodes}

    scores = [
        abs(whole.weight(node(0, f), node(1, g))) if {node(0, f), node(1, g)} <= there else 0.0
        for f, g in candidates
    ]

    assert roc_auc(np.array(scores), np.array([pair in true for pair in candidates])) == 1.0
    assert max(s for s, pair in zip(scores, candidates, strict=True) if pair not in true) < 1e-5


def test_an_edge_weighs_what_its_path_carries_by_hand(whole):
    for f in (A, B):
        carried = -FIRST[ALL][f] * SECOND[f] * READ[f]
        assert whole.weight(node(0, f), node(1, f)) == pytest.approx(carried, abs=1e-4)
        assert whole.weight(node(1, f), "metric") == pytest.approx(carried, abs=1e-4)


def test_what_no_feature_explains_goes_from_error_to_error(whole):
    assert whole.weight(node(0, None), node(1, None)) == pytest.approx(-0.5, abs=1e-4)
    assert whole.weight(node(1, None), "metric") == pytest.approx(-0.5, abs=1e-4)


def test_the_first_layer_reaches_the_metric_through_the_second_only(whole):
    assert not [e for e in whole.edges if e.sender.startswith(LOW) and e.receiver == "metric"]


@pytest.mark.parametrize(
    ("threshold", "kept", "errors"), [(5.0, (1, 0, 0, 0), 0), (1.0, (1, 1, 0, 0), 0), (0.1, (1, 1, 0, 0), 1)]
)
def test_faithfulness_is_what_the_forward_by_hand_says(model, saes, threshold, kept, errors):
    result = feature_circuit(model, saes, PROMPT, answer=YES, foil=NO, node_threshold=threshold)

    circuit = logit_diff(ALL, first=kept, second=kept, errors=(errors, errors))
    left = tuple(1 - k for k in kept)
    rest = logit_diff(ALL, first=left, second=left, errors=(1 - errors, 1 - errors))
    assert result.circuit_metric == pytest.approx(circuit, abs=1e-4)
    assert result.rest_metric == pytest.approx(rest, abs=1e-4)
    assert result.empty_metric == pytest.approx(0, abs=1e-5)
    assert result.faithfulness == pytest.approx(circuit / logit_diff(ALL), abs=1e-5)
    assert {n.label for n in result.nodes if n.feature is None} == (
        {node(0, None), node(1, None)} if errors else set()
    )


def test_keeping_every_node_is_the_model_itself(tiny_llama):
    saes = [random_sae(f"L{layer}.resid_post", seed=layer) for layer in (0, 1)]

    result = feature_circuit(tiny_llama, saes, "the cat sat", answer="x", foil="y", **EVERYTHING)

    assert result.faithfulness == pytest.approx(1.0, abs=1e-3)
    assert abs(result.clean_metric - result.empty_metric) > 0.1


def test_ablating_every_node_of_a_pair_is_the_corrupted_run(tiny_llama):
    """Features and errors of the residual stream as on the corrupted prompt, position 0 being the same."""
    saes = [random_sae(f"L{layer}.resid_post", seed=layer) for layer in (0, 1)]
    pair = PromptPair("the cat sat", "the dog sat", answer="x", foil="y")

    result = feature_circuit(tiny_llama, saes, pair)

    logits = np.array(tiny_llama.logits(pair.corrupted))[:, -1]
    corrupted = metrics.logit_diff(logits, [ord("x")], [ord("y")])[0]
    assert result.empty_metric == pytest.approx(corrupted, abs=1e-3)
    assert abs(result.clean_metric - corrupted) > 0.1


def test_nodes_have_the_scores_of_feature_attribution(tiny_llama):
    saes = [random_sae(f"L{layer}.resid_post", seed=layer) for layer in (0, 1)]

    result = feature_circuit(tiny_llama, saes, "the cat sat", answer="x", foil="y", **EVERYTHING)

    for sae in saes:
        alone = feature_attribution(tiny_llama, sae, "the cat sat", answer="x", foil="y")
        own = {n.feature: n.effect for n in result.nodes if n.hook_point == sae.hook_point}
        assert own.pop(None) == pytest.approx(alone.error_score, abs=1e-5)
        assert own == pytest.approx(dict(zip(alone.features, alone.scores, strict=True)), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_the_edges_that_leave_a_node_add_up_to_its_effect(family):
    """Through the residual stream and through an MLP's own SAE, which is held for the direct edge."""
    model = InterpretableModel(tiny_module(family), ByteTokenizer())
    points = ("L0.resid_post", "L1.mlp_out", "L2.resid_post")
    saes = [random_sae(point, seed=i) for i, point in enumerate(points)]

    result = feature_circuit(model, saes, "the cat sat", answer="x", foil="y", **EVERYTHING)

    strong = sorted(result.nodes, key=lambda n: -abs(n.effect))[:30]
    assert {n.hook_point for n in strong} == set(points)
    for each in strong:
        leaving = [e.weight for e in result.edges if e.sender == each.label]
        assert sum(leaving) == pytest.approx(each.effect, rel=1e-3, abs=1e-4)


def test_the_edges_of_quantised_weights_add_up_too():
    import mlx.nn as nn

    module = tiny_module("llama", hidden_size=64, intermediate_size=64, head_dim=16)
    nn.quantize(module, group_size=32, bits=4)
    model = InterpretableModel(module, ByteTokenizer())
    saes = [random_sae(f"L{layer}.resid_post", width=64, seed=layer) for layer in (0, 2)]

    result = feature_circuit(model, saes, "the cat", answer="x", foil="y", **EVERYTHING)

    top = max(result.nodes, key=lambda n: abs(n.effect) if n.hook_point == "L0.resid_post" else -1.0)
    leaving = [e.weight for e in result.edges if e.sender == top.label]
    assert sum(leaving) == pytest.approx(top.effect, rel=1e-2)


def test_saes_are_put_in_forward_order_and_scaling_them_changes_nothing(model, saes, whole):
    scaled = [planted_sae(1, scale=4.0), planted_sae(0, scale=0.25)]

    result = feature_circuit(model, scaled, PROMPT, answer=YES, foil=NO, **EVERYTHING)

    assert result.hook_points == whole.hook_points == (LOW, HIGH)
    for f in (A, B):
        assert result.weight(node(0, f), node(1, f)) == pytest.approx(
            whole.weight(node(0, f), node(1, f)), abs=1e-4
        )


def basis_sae(layer: int, *parts: slice) -> SAE:
    """The toy's own directions: one feature per word and subspace."""
    rows = np.concatenate([np.eye(D_MODEL)[part] for part in parts]).astype(np.float32)
    return SAE(
        W_enc=mx.array(rows.T),
        b_enc=mx.zeros(len(rows)),
        W_dec=mx.array(rows),
        b_dec=mx.zeros(D_MODEL),
        activation=JumpRelu(mx.full(len(rows), 1e-6)),
        hook_point=f"L{layer}.resid_post",
        model="toy-induction",
    )


@pytest.fixture(scope="module")
def induction():
    """`w A B C D A` → B; what changes is the word before B, so only A's previous-word feature matters."""
    pairs = []
    for seed in range(3):
        w, a, b, c, d, other = np.random.default_rng(seed).choice(30, 6, replace=False).tolist()
        pairs.append(PromptPair((w, a, b, c, d, a), (w, other, b, c, d, a), answer=b, foil=w))
    return InterpretableModel(*toy.load()), pairs


def test_integrated_gradients_find_the_induction_circuit_through_attention(induction):
    model, pairs = induction
    saes = [basis_sae(0, PREV, TOK), basis_sae(1, OUT)]

    for pair in pairs:
        result = feature_circuit(model, saes, pair, method="ig", node_threshold=1.0, edge_threshold=1.0)

        before, after = f"{LOW}/f{pair.clean[1]}", f"{HIGH}/f{pair.answer}"
        assert {n.label for n in result.nodes if n.hook_point == LOW} == {before}
        strongest = max(result.edges, key=lambda e: abs(e.weight))
        assert {before, after} >= {strongest.sender}
        assert result.weight(before, after) == pytest.approx(result.weight(after, "metric"), rel=0.05)
        assert result.faithfulness == pytest.approx(1.0, abs=0.05)


def test_the_slope_of_saturated_attention_misses_it(induction):
    model, pairs = induction

    result = feature_circuit(model, [basis_sae(0, PREV, TOK), basis_sae(1, OUT)], pairs[0])

    assert not [n for n in result.nodes if n.hook_point == LOW]
    assert result.faithfulness < 0.1


def test_pairs_of_other_lengths_do_not_change_a_pairs_circuit(tiny_llama):
    saes = [random_sae(f"L{layer}.resid_post", seed=layer) for layer in (0, 1)]
    pairs = [PromptPair("the cat sat", "the dog sat", "x", "y"), PromptPair("a cow", "a pig", "x", "y")]

    both, *alone = (
        feature_circuit(tiny_llama, saes, some, **EVERYTHING) for some in (pairs, pairs[0], pairs[1])
    )

    for label in [c.label for c in both.top_components(10)]:
        each = [next((n.effect for n in r.nodes if n.label == label), 0.0) for r in alone]
        assert both.find(label).effect == pytest.approx(np.mean(each), abs=1e-5)
        assert both.find(label).ci is None  # two pairs


def test_nodes_beyond_the_most_are_counted(model, saes):
    result = feature_circuit(model, saes, PROMPT, answer=YES, foil=NO, node_threshold=0.1, max_nodes=1)

    assert [n.feature for n in result.nodes] == [A, None, A, None]
    assert result.n_left_out == 2
    assert "left out" in result.summary()


def test_a_circuit_that_ablates_nothing_says_that_faithfulness_is_undefined(model, saes):
    result = feature_circuit(model, saes, PROMPT, metric=lambda logits: logits[:, 0] * 0)

    assert result.nodes == ()
    assert np.isnan(result.faithfulness)
    assert "faithfulness is undefined here" in result.summary()


def test_what_goes_together_badly_is_refused(model, saes, whole):
    with pytest.raises(SAEError, match="two at one hook point"):
        feature_circuit(model, [saes[0], saes[0]], PROMPT, answer=YES)
    with pytest.raises(SAEError, match="at least one"):
        feature_circuit(model, [], PROMPT, answer=YES)
    with pytest.raises(SAEError, match=r"writes at L1.mlp_out"):
        feature_circuit(model, [changed(saes[0], hook_point_out="L1.mlp_out")], PROMPT, answer=YES)
    with pytest.raises(MetricError, match="its gradient there is 0"):
        feature_circuit(model, saes, PROMPT, metric="kl")
    with pytest.raises(ResultError, match=r"no node 'L9.resid_post/f0'"):
        whole.weight("L9.resid_post/f0", "metric")


def test_a_circuit_is_a_graph_and_comes_back_from_json(whole):
    network = next(show for show in whole.shows() if isinstance(show, Network))

    assert network.rows[-1] == "metric"
    assert set(network.rows) == {"L0", "L1", "metric"}
    assert len(network.links) == len(whole.edges)
    assert AnalysisResult.from_json(whole.to_json()) == whole
    assert whole.plot().axes
    assert node(0, A) in whole.to_markdown()


def test_ablating_a_circuits_strongest_node_does_what_its_exact_effect_says(model, saes, whole):
    before, after = (
        metrics.logit_diff(np.array(model.logits(PROMPT, interventions=edits))[:, -1], [YES], [NO])[0]
        for edits in ((), (feature_zero(saes[0], A, positions=slice(1, None)),))
    )

    assert whole.top_components(1)[0].effect == pytest.approx(after - before, abs=1e-4)
