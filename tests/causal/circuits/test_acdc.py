"""ACDC finds the edges that were planted, batches decide as single edges do, and a search can be taken up."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mlxterp.causal import PromptPair, edge_attribution
from mlxterp.causal.circuits.acdc import acdc
from mlxterp.causal.circuits.edge_patching import EdgeRun
from mlxterp.causal.circuits.graph import graph_of, parse_edge
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MlxterpError, NoGap, SweepError
from mlxterp.results import AnalysisResult
from tests.causal.conftest import PAIR, PAIRS, planted_edges, random_token_pairs
from tests.tiny_models import ByteTokenizer, tiny_module


@pytest.fixture(scope="module")
def two_layers() -> InterpretableModel:
    return InterpretableModel(tiny_module("llama", num_hidden_layers=2), ByteTokenizer())


def edges_of(result) -> list[str]:
    return [str(edge) for edge in result.edges]


@pytest.mark.parametrize("threshold", [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])
def test_it_finds_exactly_the_planted_edges_over_five_decades_of_the_threshold(toy_model, threshold):
    result = acdc(toy_model, random_token_pairs(), threshold=threshold)

    assert len(planted_edges()) == 5
    assert set(edges_of(result)) == planted_edges()
    assert result.nodes == ("input", "L0.H2", "L1.H1", "logits")
    assert result.circuit_metric == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("metric", ["logit_diff", "l2", "log_prob"])
def test_other_metrics_find_them_too(toy_model, metric):
    """`logit_diff` is a behaviour: what is lost of it counts, so a higher value is a lower loss."""
    result = acdc(toy_model, random_token_pairs(), threshold=0.1, metric=metric)

    assert set(edges_of(result)) == planted_edges()
    assert result.circuit_metric == pytest.approx(result.clean_metric, abs=0.05)


def test_an_infinite_threshold_removes_every_edge_and_minus_infinity_keeps_all(two_layers):
    none = acdc(two_layers, PAIR, threshold=math.inf)
    every = acdc(two_layers, PAIR, threshold=-math.inf)

    assert none.edges == ()
    assert none.circuit_metric == pytest.approx(none.corrupted_metric, rel=1e-4)
    assert edges_of(every) == [str(edge) for edge in graph_of(two_layers).edges()]
    assert every.circuit_metric == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_batches_decide_as_single_edges_do(seed):
    module = tiny_module("llama", seed=seed, num_hidden_layers=2)
    model = InterpretableModel(module, ByteTokenizer())
    kept = set()
    for threshold in (1e-2, 0.1):
        one_by_one = acdc(model, PAIR, threshold=threshold, batch=1)

        batched = acdc(model, PAIR, threshold=threshold, batch=32)

        assert edges_of(batched) == edges_of(one_by_one)
        assert batched.n_tested == one_by_one.n_tested
        effects = ([e.effect for e in r.edges] for r in (batched, one_by_one))
        assert next(effects) == pytest.approx(next(effects), abs=1e-5)
        kept.add(len(batched.edges))
    assert len(kept) > 1
    assert max(kept) > 5


@pytest.mark.parametrize("estimated", ["rightly", "at random", "the other way round"])
def test_estimates_decide_what_is_tested_together_and_never_what_is_kept(two_layers, estimated):
    options = {"threshold": 0.02, "metric": "logit_diff"}
    scores = edge_attribution(two_layers, PAIR, method="eap-ig", metric="logit_diff")
    random = np.random.default_rng(0).normal(size=len(scores.edges))
    made = {"rightly": 1, "at random": random, "the other way round": -1}[estimated]

    found = acdc(two_layers, PAIR, estimates=replace(scores, scores=scores.scores * made), **options)

    one_by_one = acdc(two_layers, PAIR, batch=1, **options)
    assert edges_of(found) == edges_of(one_by_one)
    assert found.n_tested == one_by_one.n_tested
    assert 5 < len(found.edges) < found.n_tested
    assert [e.effect for e in found.edges] == pytest.approx([e.effect for e in one_by_one.edges], abs=1e-5)


def test_with_right_estimates_more_is_decided_by_a_batch(toy_model):
    pairs, batches = random_token_pairs(), []
    for estimates in (None, edge_attribution(toy_model, pairs, method="eap-ig", metric="kl")):
        seen = []
        acdc(toy_model, pairs, threshold=0.1, estimates=estimates, progress=seen.append)
        batches.append(len(seen))

    assert batches[1] < batches[0]


def test_estimates_of_another_models_edges_are_refused(toy_model, two_layers):
    scores = edge_attribution(toy_model, random_token_pairs(1), method="eap-ig", metric="kl")

    with pytest.raises(SweepError, match="estimates of 81 edges are not those"):
        acdc(two_layers, PAIR, threshold=0.1, estimates=scores)


def test_a_search_says_how_long_it_may_take_before_it_begins(two_layers):
    seen = []

    acdc(two_layers, PAIR, threshold=0.1, progress=seen.append)

    assert (seen[0].done, seen[0].kept, seen[0].seconds) == (0, 0, 0.0)
    assert seen[0].seconds_left > 0
    assert seen[-1].seconds_left == 0
    assert [each.done for each in seen] == sorted({each.done for each in seen})


def test_the_decisions_are_those_of_the_algorithm_as_it_is_written(two_layers):
    """Algorithm 1 of the paper in a few lines, one run of the model per edge."""
    model = two_layers
    pairs, threshold = PAIRS[:1], 0.02
    tokens = [np.array([list(p.encode())]) for p in (pairs[0].clean, pairs[0].corrupted)]
    run = EdgeRun(model, *tokens)

    def loss(removed):
        rows = run.logits([set(), removed]).astype(np.float64)[:, 0]
        p, q = (row - row.max() - np.log(np.exp(row - row.max()).sum()) for row in rows)
        return (np.exp(p) * (p - q)).sum()

    removed = set()
    for edge in reversed(list(run.graph.edges())):
        if loss(removed | {edge}) - loss(removed) < threshold:
            removed = removed | {edge}

    result = acdc(model, pairs, threshold=threshold)

    assert {parse_edge(name) for name in edges_of(result)} == set(run.graph.edges()) - removed
    assert 0 < len(result.edges) < len(removed)


def test_inputs_of_nodes_that_nothing_reads_any_more_are_not_tested(toy_model):
    result = acdc(toy_model, random_token_pairs(), threshold=0.1)

    assert result.n_edges == graph_of(toy_model).n_edges == 81
    assert result.n_tested < 30


def test_a_search_that_was_stopped_goes_on_from_its_checkpoint(two_layers, tmp_path):
    file = tmp_path / "search.json"
    calls = []

    def stop_at_fifth(progress):
        calls.append(progress)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        acdc(two_layers, PAIR, threshold=0.01, checkpoint=file, progress=stop_at_fifth)
    before = json.loads(file.read_text())["position"]
    resumed = []

    result = acdc(two_layers, PAIR, threshold=0.01, checkpoint=file, progress=resumed.append)

    whole = acdc(two_layers, PAIR, threshold=0.01)
    assert 0 < before < whole.n_edges
    assert resumed[0].done == before
    assert edges_of(result) == edges_of(whole)
    assert result.n_tested == whole.n_tested
    assert not list(tmp_path.glob("*.new"))
    assert acdc(two_layers, PAIR, threshold=0.01, checkpoint=file) == result


@pytest.mark.parametrize(
    ("change", "named"), [({"threshold": 0.02}, "threshold"), ({"metric": "l2"}, "metric")]
)
def test_a_checkpoint_of_another_search_is_refused(tiny_llama, tmp_path, change, named):
    file = tmp_path / "search.json"
    acdc(tiny_llama, PAIR, threshold=math.inf, checkpoint=file)

    with pytest.raises(SweepError, match=named):
        acdc(tiny_llama, PAIR, **{"threshold": math.inf, "checkpoint": file} | change)


def test_two_metrics_of_one_name_do_not_share_a_checkpoint(tiny_llama, tmp_path):
    def score_of(answer: int, foil: int):
        def score(logits):
            return np.asarray(logits)[:, answer] - np.asarray(logits)[:, foil]

        return score

    file = tmp_path / "search.json"
    of_7 = acdc(tiny_llama, PAIR, threshold=0.3, metric=score_of(7, 9), checkpoint=file)

    with pytest.raises(MlxterpError, match="the metric's values on the clean and corrupted runs"):
        acdc(tiny_llama, PAIR, threshold=0.3, metric=score_of(60, 3), checkpoint=file)
    assert acdc(tiny_llama, PAIR, threshold=0.3, metric=score_of(7, 9), checkpoint=file) == of_7
    assert edges_of(acdc(tiny_llama, PAIR, threshold=0.3, metric=score_of(60, 3))) != edges_of(of_7)


def test_a_file_that_is_no_checkpoint_is_refused(tiny_llama, tmp_path):
    (tmp_path / "x").write_text("[1, 2")

    with pytest.raises(SweepError, match="no checkpoint"):
        acdc(tiny_llama, PAIR, threshold=1.0, checkpoint=tmp_path / "x")


def test_progress_counts_edges_and_estimates_the_rest(two_layers):
    told = []

    acdc(two_layers, PAIR, threshold=0.01, progress=told.append)

    assert [p.done for p in told] == sorted({p.done for p in told})
    assert told[-1].done == told[-1].edges == 82
    assert told[-1].seconds_left == 0
    assert all(p.seconds_left > 0 for p in told[:-1])
    assert "82 of 82 edges" in str(told[-1])


def test_the_result_survives_json(tiny_llama):
    result = acdc(tiny_llama, PAIR, threshold=0.05)

    back = AnalysisResult.from_json(result.to_json())

    assert back == result
    assert back.nodes == result.nodes
    assert back.find(str(result.edges[0])).effect == pytest.approx(result.edges[0].effect)
    assert back.measured_on["ablation"].startswith("removed edges carry")


@pytest.mark.parametrize("arguments", [{"threshold": math.nan}, {"threshold": 1.0, "batch": 0}])
def test_a_threshold_or_batch_that_means_nothing_is_refused(tiny_llama, arguments):
    with pytest.raises(SweepError, match="Give a threshold"):
        acdc(tiny_llama, PAIR, **arguments)


def test_a_pair_without_a_gap_is_refused(tiny_llama):
    with pytest.raises(NoGap):
        acdc(tiny_llama, PAIR, threshold=0.1, metric=lambda logits: np.ones(len(logits)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_graph_of_smollm2_leaves_a_small_circuit_that_does_most_of_the_work():
    told = []
    pair = PromptPair(
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
        answer=" Mary",
        foil=" John",
    )

    result = acdc(InterpretableModel("smollm2-135m"), pair, threshold=0.02, progress=told.append)

    assert result.n_edges == told[-1].done == 70_651
    assert 10 < len(result.edges) < 500
    assert "logits" in result.nodes
    assert result.circuit_metric < result.corrupted_metric / 3
