"""Edges between prompts of different lengths, and searches among chosen edges: the stated map is what is
patched, everything else stays."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from mlxterp.causal import (
    PromptPair,
    acdc,
    activation_patching,
    all_edges,
    attribution_patching,
    edge_attribution,
    faithfulness,
    faithfulnesses,
)
from mlxterp.causal.circuits.edge_patching import EdgeRun
from mlxterp.causal.circuits.graph import parse_edge
from mlxterp.causal.prompts.pair import prepare
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import LengthMismatch, PositionsAligned, SweepError
from tests.causal.circuits.test_acdc import edges_of
from tests.causal.conftest import planted_edges, random_token_pairs
from tests.tiny_models import ByteTokenizer, tiny_module

LONG, SHORT = "the elephant sat", "the dog sat"
PAIR = PromptPair(LONG, SHORT, answer="x", foil="y")
pytestmark = pytest.mark.filterwarnings("ignore::mlxterp.errors.PositionsAligned")


@pytest.fixture(scope="module")
def model():
    return InterpretableModel(tiny_module("llama", num_hidden_layers=2), ByteTokenizer())


@pytest.fixture(scope="module")
def run(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PositionsAligned)
        prepared = prepare(model, PAIR, align="auto")
    return EdgeRun(model, prepared.clean, prepared.corrupted, positions=prepared.alignment.stated)


def leaving(model, node: str) -> list[str]:
    return [str(edge) for edge in all_edges(model) if str(edge.sender) == node]


def test_without_patches_it_is_the_clean_run_and_with_all_the_corrupted_one(model, run):
    none, every = run.logits(np.array([[False] * run.n_edges, [True] * run.n_edges]))

    np.testing.assert_allclose(none[0], np.array(model.logits(LONG))[0, -1], atol=1e-4)
    np.testing.assert_allclose(every[0], np.array(model.logits(SHORT))[0, -1], atol=1e-4)


@pytest.mark.parametrize("head", [(0, 1), (1, 2)])
def test_all_edges_out_of_a_head_are_that_head_patched_by_the_same_map(model, head):
    layer, index = head
    patched = activation_patching(model, PAIR, component="z", direction="noising", align="auto")
    gone = set(leaving(model, f"L{layer}.H{index}"))
    rest = [str(edge) for edge in all_edges(model) if str(edge) not in gone]

    f = faithfulness(model, PAIR, rest, align="auto").effects[0]

    assert 1 - f == pytest.approx(patched.effects[layer, index], abs=1e-4)
    assert abs(1 - f) > 1e-3


def test_estimates_of_the_edges_out_of_a_head_add_up_to_that_heads_estimate(model):
    scores = edge_attribution(model, PAIR, align="auto")
    nodes = attribution_patching(
        model, PAIR, component="z", by="layer_head", direction="noising", align="auto", verify=0
    )

    for layer, index in ((0, 0), (0, 3), (1, 2)):
        total = sum(scores.score(edge) for edge in leaving(model, f"L{layer}.H{index}"))
        assert total == pytest.approx(nodes.effects[layer, index], abs=1e-4)


def test_a_path_between_embeddings_needs_prompts_of_one_length(model):
    with pytest.raises(SweepError, match="Use method='eap'"):
        edge_attribution(model, PAIR, method="eap-ig", align="auto")


def test_without_a_map_different_lengths_are_refused(model):
    for analysis in (
        edge_attribution,
        lambda *a: acdc(*a, threshold=0.1),
        lambda m, p: faithfulness(m, p, []),
    ):
        with pytest.raises(LengthMismatch):
            analysis(model, PAIR)


def test_a_map_without_the_answer_position_is_refused(model):
    with pytest.raises(SweepError, match="leaves out the last position"):
        acdc(model, PAIR, threshold=0.1, align=[(0, 0), (1, 1)])


def test_a_search_among_all_edges_is_the_search(toy_model):
    pairs = random_token_pairs(4)
    every = [str(edge) for edge in all_edges(toy_model)]

    among = acdc(toy_model, pairs, threshold=0.01, candidates=every)

    assert among == acdc(toy_model, pairs, threshold=0.01)


def test_a_search_among_the_planted_edges_keeps_them_and_tests_no_others(toy_model):
    among = acdc(toy_model, random_token_pairs(4), threshold=0.01, candidates=sorted(planted_edges()))

    assert set(edges_of(among)) == planted_edges()
    assert among.n_tested == len(planted_edges())
    assert among.n_edges == len(all_edges(toy_model))
    assert among.measured_on["loss_of_all_searched_edges"] == pytest.approx(0, abs=1e-3)


def test_a_search_that_lacks_a_needed_edge_says_what_that_costs(toy_model):
    lacking = planted_edges() - {"L0.H2→L1.H1.k"}
    pairs = random_token_pairs(4)

    among = acdc(toy_model, pairs, threshold=0.01, candidates=lacking)

    left = faithfulness(toy_model, pairs, lacking, metric="kl").effects[0]
    loss = among.measured_on["loss_of_all_searched_edges"]
    assert set(edges_of(among)) < planted_edges()
    assert loss == pytest.approx((1 - left) * among.corrupted_metric, abs=1e-4)
    assert loss > 0.1


def test_candidates_that_nothing_reads_are_removed_without_a_test(toy_model):
    unread = planted_edges() - {"L1.H1→logits"}

    among = acdc(toy_model, random_token_pairs(4), threshold=0.01, candidates=unread)

    assert (among.edges, among.n_tested) == ((), 0)


def test_a_candidate_that_is_no_edge_of_the_model_is_refused(toy_model):
    with pytest.raises(SweepError, match=r"has no edge L7\.H0→logits"):
        acdc(toy_model, random_token_pairs(2), threshold=0.01, candidates=[parse_edge("L7.H0→logits")])


def test_the_faithfulness_of_several_circuits_is_each_ones_own(toy_model):
    pairs = random_token_pairs(4)
    circuits = [planted_edges(), set(), planted_edges() - {"L0.H2→L1.H1.k"}]

    together = faithfulnesses(toy_model, pairs, circuits)

    alone = [faithfulness(toy_model, pairs, circuit).effects[0] for circuit in circuits]
    np.testing.assert_allclose(together.effects, alone, atol=1e-6)
    assert together.low.shape == (3,)
    with pytest.raises(SweepError, match="at least one"):
        faithfulnesses(toy_model, pairs, [])
