"""What circuits are worth: on the toy, whose circuit is known, and on numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlxterp.causal.circuits.acdc import acdc
from mlxterp.causal.circuits.circuit import Circuit, roc_auc, scores_in_order
from mlxterp.causal.circuits.edge_patching import EdgeRun
from mlxterp.causal.circuits.faithfulness import (
    FaithfulnessCurve,
    completeness,
    faithfulness,
    faithfulness_curve,
    minimality,
)
from mlxterp.causal.circuits.graph import (
    Graph,
    graph_of,
    head,
    mlp,
    parse_edge,
)
from mlxterp.errors import ResultError, SweepError
from mlxterp.results import CircuitEdge, CircuitResult
from tests.causal.conftest import PAIR, PAIRS, logit_difference, planted_edges, random_token_pairs

SMALL = Graph(n_layers=2, n_heads=2, n_kv_heads=2)
SHARED = Graph(n_layers=2, n_heads=2, n_kv_heads=1)


def names(circuit) -> set[str]:
    return {str(edge) for edge in circuit.edges}


@pytest.fixture(scope="module")
def exact_scores(toy_model) -> np.ndarray:
    """What each edge alone takes away from the logit difference, by its exact run."""
    pairs = random_token_pairs()
    run = EdgeRun(
        toy_model, *(np.array([getattr(p, side) for p in pairs]) for side in ("clean", "corrupted"))
    )
    rows = run.logits([{edge} for edge in run.graph.edges()]).astype(np.float64)
    x, y = (np.array([getattr(p, side) for p in pairs]) for side in ("answer", "foil"))
    clean = run.logits([()])[0].astype(np.float64)
    each = np.arange(len(pairs))
    return ((clean[each, x] - clean[each, y]) - (rows[:, each, x] - rows[:, each, y])).mean(axis=1)


# the value


def test_a_circuit_is_made_of_names_of_edges_or_of_what_acdc_found(toy_model):
    result = acdc(toy_model, random_token_pairs(), threshold=0.1)

    circuit = Circuit.of(result)

    assert circuit == Circuit.of(planted_edges()) == Circuit.of(circuit.edges)
    assert [str(node) for node in circuit.nodes] == list(result.nodes)
    assert [str(node) for node in circuit.components] == ["L0.H2", "L1.H1"]
    assert "L0.H2→L1.H1.k" in circuit
    assert "L0.H2→L1.H1.q" not in circuit
    assert len(circuit) == 5


def test_without_a_node_every_edge_at_it_is_gone():
    circuit = Circuit.of(["input→L0.H0.q", "L0.H0→L0.mlp", "L0.H0→logits", "L0.mlp→logits"])

    assert names(circuit.without([head(0, 0)])) == names(circuit.without(["L0.H0"])) == {"L0.mlp→logits"}


def test_the_connected_part_leads_from_the_input_to_the_logits():
    circuit = Circuit.of(
        [
            "input→L0.H0.v",
            "L0.H0→L1.H1.k",
            "L1.H1→logits",
            "input→L0.H1.q",  # nothing reads L0.H1
            "L0.mlp→L1.mlp",  # nothing reaches L0.mlp
            "L1.mlp→logits",
        ]
    )

    assert names(circuit.connected(SMALL)) == {"input→L0.H0.v", "L0.H0→L1.H1.k", "L1.H1→logits"}


def test_shared_keys_and_values_lead_to_each_head_that_reads_them():
    circuit = Circuit.of(["input→L0.KV0.v", "L0.H1→logits"])

    assert circuit.connected(SHARED) == circuit
    assert len(Circuit.of(["input→L0.KV0.v"]).connected(SHARED)) == 0


def test_the_connected_part_of_a_circuit_does_what_the_circuit_does(tiny_llama):
    graph, rng = graph_of(tiny_llama), np.random.default_rng(3)
    some = Circuit(frozenset(e for e in graph.edges() if rng.random() < 0.3))

    connected = some.connected(graph)

    assert 0 < len(connected) < len(some)
    assert faithfulness(tiny_llama, PAIR, connected).effects == pytest.approx(
        faithfulness(tiny_llama, PAIR, some).effects, abs=1e-4
    )


# ranks


def test_the_area_under_the_roc_curve_is_the_share_of_pairs_in_the_right_order():
    assert roc_auc([3, 2, 1], [True, False, False]) == 1
    assert roc_auc([1, 2, 3], [True, False, False]) == 0
    assert roc_auc([1, 1, 1, 1], [True, False, True, False]) == 0.5
    assert roc_auc([4, 3, 2, 1], [True, False, True, False]) == 0.75
    assert roc_auc([2, 2, 1], [True, False, False]) == 0.75


def test_exact_edge_effects_rank_every_planted_edge_above_every_other(toy_model, exact_scores):
    known = [str(edge) in planted_edges() for edge in graph_of(toy_model).edges()]

    assert sum(known) == 5
    assert roc_auc(exact_scores, known) == 1.0


@pytest.mark.parametrize(
    ("scores", "known"), [([1, 2], [True, True]), ([1, 2], [False, False]), ([1, 2], [True])]
)
def test_an_area_without_known_edges_or_without_others_is_refused(scores, known):
    with pytest.raises(SweepError):
        roc_auc(scores, known)


@pytest.mark.parametrize("change", ["missing", "unknown", "short", "nan"])
def test_scores_that_do_not_fit_the_model_are_refused(change):
    scores = {str(edge): 0.0 for edge in SMALL.edges()}
    if change == "missing":
        scores.pop("input→L0.mlp")
    if change == "unknown":
        scores["L0.H7→logits"] = 1.0
    given = {"short": [0.0, 1.0], "nan": [math.nan] * SMALL.n_edges}.get(change, scores)

    with pytest.raises(SweepError, match="score"):
        scores_in_order(SMALL, given)


# how well it does the model's work


def test_the_planted_circuit_is_faithful_and_each_part_of_it_needed(toy_model):
    pairs = random_token_pairs()

    whole = faithfulness(toy_model, pairs, planted_edges())

    assert whole.effects == pytest.approx([1.0], abs=0.01)
    assert whole.per_example == pytest.approx(np.ones((8, 1)), abs=0.01)
    for edge in planted_edges():
        assert faithfulness(toy_model, pairs, planted_edges() - {edge}).effects[0] < 0.5


def test_no_edge_is_worth_nothing_and_every_edge_everything(tiny_llama):
    every = list(graph_of(tiny_llama).edges())

    assert faithfulness(tiny_llama, PAIRS, []).effects == pytest.approx([0], abs=1e-5)
    assert faithfulness(tiny_llama, PAIRS, every).effects == pytest.approx([1], abs=1e-5)


def test_a_planted_circuit_reacts_to_lost_nodes_as_the_model_does(toy_model):
    rows = completeness(toy_model, random_token_pairs(), planted_edges(), samples=4, greedy=2)

    assert [row.nodes for row in rows[:1]] == [()]
    assert len(rows) == 7
    assert {node for row in rows for node in row.nodes} == {head(0, 2), head(1, 1)}
    assert max(row.gap for row in rows) < 0.01
    assert min(row.model for row in rows) < 0.1


def test_a_circuit_that_misses_a_part_of_the_model_is_not_complete(tiny_llama):
    graph = graph_of(tiny_llama)
    part = Circuit(frozenset(e for e in graph.edges() if mlp(1) not in (e.sender, e.receiver)))

    rows = completeness(tiny_llama, PAIR, part, samples=3, greedy=2)

    assert max(row.gap for row in rows) > 0.1
    assert rows[-1].gap >= rows[-2].gap - 1e-6 or len(rows[-1].nodes) == 2
    assert len(rows[-2].nodes) == 1


def test_removing_nodes_of_the_model_is_noising_them(tiny_llama):
    """f(M∖K) by plain edits: K = one MLP, noised everywhere."""
    from mlxterp.core.interventions import replace

    trace = tiny_llama.trace(PAIR.corrupted, capture="mlp_out")
    edit = replace("L2.mlp_out", trace["L2.mlp_out"])
    clean, corrupted = (logit_difference(tiny_llama, text) for text in (PAIR.clean, PAIR.corrupted))

    rows = completeness(tiny_llama, PAIR, ["input→L2.mlp", "L2.mlp→logits"], samples=0, greedy=1)

    expected = (logit_difference(tiny_llama, PAIR.clean, edit) - corrupted) / (clean - corrupted)
    assert rows[-1].nodes == (mlp(2),)
    assert rows[-1].model == pytest.approx(expected, abs=1e-4)
    assert rows[-1].circuit == pytest.approx(0, abs=1e-4)


def test_every_planted_node_is_needed_and_an_idle_one_is_not(toy_model):
    idle = {"input→L1.H2.v", "L1.H2→logits"}

    rows = minimality(toy_model, random_token_pairs(), planted_edges() | idle, samples=3)

    change = {str(row.node): row.change for row in rows}
    assert set(change) == {"L0.H2", "L1.H1", "L1.H2"}
    assert change["L1.H2"] == pytest.approx(0, abs=1e-3)
    assert change["L0.H2"] > 0.5
    assert change["L1.H1"] > 0.5


# circuits of growing size


def test_the_areas_are_those_of_their_definitions():
    curve = FaithfulnessCurve((0.1, 0.5, 1.0), (0.0, 0.5, 1.0), (0.5, 1.5, 1.0), ((1, 1),) * 3)

    assert curve.cpr == pytest.approx(0.4 * 0.25 + 0.5 * 0.75)
    assert curve.cmd == pytest.approx(0.4 * 0.5 + 0.5 * 0.25)


def test_exact_scores_give_the_areas_of_a_step_at_the_circuit_size(toy_model, exact_scores):
    """The planted circuit is 5 of 81 edges: f is 0 for circuits of up to 4 edges, and 1 from 8 on."""
    curve = faithfulness_curve(toy_model, random_token_pairs(), exact_scores)

    assert curve.signed[:6] == pytest.approx([0] * 6, abs=0.05)
    assert curve.signed[6:] == pytest.approx([1] * 4, abs=0.01)
    step = (1 - 0.1) + (0.1 - 0.05) / 2
    assert curve.cpr == pytest.approx(step, abs=0.02)
    assert curve.cmd == pytest.approx(1 - 0.001 - step, abs=0.02)
    assert curve.n_edges[5][0] < 5
    assert 5 <= curve.n_edges[6][0] <= 8


def test_random_scores_need_most_of_the_model(toy_model):
    rng, n = np.random.default_rng(0), graph_of(toy_model).n_edges

    curves = [faithfulness_curve(toy_model, random_token_pairs(2), rng.random(n)) for _ in range(6)]

    assert np.mean([curve.cpr for curve in curves]) == pytest.approx(0.25, abs=0.08)
    assert np.mean([curve.cmd for curve in curves]) == pytest.approx(0.75, abs=0.08)


def test_signed_scores_rank_harmful_edges_last_and_magnitudes_first(tiny_llama):
    graph = graph_of(tiny_llama)
    harmful = parse_edge("L2.mlp→logits")
    scores = {edge: (-100.0 if edge == harmful else 1.0) for edge in graph.edges()}

    curve = faithfulness_curve(tiny_llama, PAIR, scores, sizes=(0.5, 0.995, 1.0))

    assert curve.signed[2] == pytest.approx(1, abs=1e-4)
    assert curve.signed[1] != pytest.approx(curve.magnitude[1], abs=1e-3)
    assert curve.magnitude[1] != pytest.approx(curve.signed[0], abs=1e-3)


@pytest.mark.parametrize("sizes", [(0.5,), (0.5, 0.1), (0.0, 1.0), (0.5, 2.0)])
def test_sizes_that_are_no_ascending_shares_are_refused(tiny_llama, sizes):
    with pytest.raises(SweepError, match="ascending"):
        faithfulness_curve(tiny_llama, PAIR, np.zeros(190), sizes=sizes)


def test_an_edge_of_another_model_is_refused(tiny_llama):
    with pytest.raises(SweepError, match=r"has no edge L7\.H0→logits"):
        faithfulness(tiny_llama, PAIR, ["L7.H0→logits"])


def test_a_circuit_result_that_contradicts_itself_is_refused():
    edge = CircuitEdge(sender="input", receiver="L0.mlp", into="mlp")
    rest = {
        "method": "acdc", "threshold": 0.1, "metric": "kl", "clean_metric": 0, "corrupted_metric": 1,
        "circuit_metric": 0, "n_tested": 1,
    }  # fmt: skip

    with pytest.raises(ResultError, match="twice"):
        CircuitResult(edges=(edge, edge), n_edges=5, **rest)
    with pytest.raises(ResultError, match="of 0"):
        CircuitResult(edges=(edge,), n_edges=0, **rest)
