"""Circuit discovery: the planted edges, and nothing else; a narrowed search says what it left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mlxterp.causal import (
    PromptPair,
    acdc,
    activation_patching,
    edge_attribution,
    faithfulness,
    path_patching,
)
from mlxterp.causal.batching import sweep
from mlxterp.causal.circuits.circuit import Circuit
from mlxterp.causal.circuits.graph import graph_of
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MetricError, NoGap, ResultError, SweepError
from mlxterp.results import AnalysisResult, CircuitResult, FaithfulnessResult
from mlxterp.workflows import circuit_discovery, discovery, narratives
from tests.causal.circuits.test_acdc import planted_edges, random_token_pairs
from tests.rounding import backward_error
from tests.tiny_models import ByteTokenizer, tiny_module

CLEAN, CORRUPTED = "the cat sat", "the dog sat"
EIFFEL, COLOSSEUM = "The Eiffel Tower is in", "The Colosseum is in"


@pytest.fixture(scope="module")
def small_llama():
    """Two layers of four heads, two of them to a key/value head, and MLPs: 82 edges."""
    return InterpretableModel(tiny_module("llama", num_hidden_layers=2), ByteTokenizer())


@pytest.fixture(scope="module")
def planted_pairs():
    return random_token_pairs(4)


@pytest.fixture(scope="module")
def found(toy_model, planted_pairs):
    return circuit_discovery(toy_model, planted_pairs)


@pytest.fixture(scope="module")
def small_circuit(small_llama):
    return circuit_discovery(small_llama, CLEAN, CORRUPTED, threshold=0.02, candidates=60)


def edges_of(circuit) -> set[str]:
    return {str(edge) for edge in circuit.edges}


def test_it_finds_exactly_the_planted_edges_and_they_do_the_models_work(found):
    circuit = found.get_step("acdc")

    assert edges_of(circuit) == planted_edges()
    assert list(circuit.nodes) == ["input", "L0.H2", "L1.H1", "logits"]
    judged = found.get_step("faithfulness")
    assert judged.faithfulness == pytest.approx(1, abs=1e-3)
    assert judged.row("all but the circuit").faithfulness == pytest.approx(0, abs=1e-3)
    assert max(judged.of("random")) < 0.5
    assert "A circuit of 5 edges and 4 nodes does 1 of the model's work" in found.conclusion
    assert "all 81 edges were searched" in found.conclusion


def test_its_components_are_the_edges_of_the_circuit(found):
    assert {c.label for c in found.top_components(5)} == planted_edges()


def test_every_step_is_what_the_analysis_alone_returns(small_llama):
    pair = (small_llama, CLEAN, CORRUPTED)
    steps = ("attribution", "activation", "acdc", "paths")
    result = circuit_discovery(*pair, threshold=0.05, steps=steps)

    scores = edge_attribution(*pair, method="eap-ig", metric="kl")
    rounding = backward_error(
        small_llama, lambda: edge_attribution(*pair, method="eap-ig", metric="kl").scores
    )
    assert result.get_step("attribution").scores == pytest.approx(scores.scores, abs=rounding)
    for step, component, by in (
        ("activation", "z", "layer_head"),
        ("activation_mlp", "mlp_out", "layer"),
    ):
        options = {"component": component, "by": by, "metric": "kl", "direction": "noising"}
        alone = activation_patching(*pair, **options)
        rounding = backward_error(
            small_llama, lambda options=options: activation_patching(*pair, **options).effects
        )
        assert result.get_step(step).effects == pytest.approx(alone.effects, abs=rounding)
    circuit = acdc(*pair, threshold=0.05)
    assert edges_of(result.get_step("acdc")) == edges_of(circuit)

    def does():
        return faithfulness(small_llama, PromptPair(CLEAN, CORRUPTED), circuit, metric="kl").effects

    f, rounding = does()[0], backward_error(small_llama, does)
    assert result.get_step("faithfulness").faithfulness == pytest.approx(f, abs=rounding)
    value = result.get_step("faithfulness").row("the circuit").value
    assert value == pytest.approx(circuit.circuit_metric, abs=1e-4)

    def paths():
        senders = list(result.get_step("paths").senders)
        return path_patching(*pair, receivers="logits", senders=senders, metric="kl").effects

    assert result.get_step("paths").effects == pytest.approx(paths(), abs=backward_error(small_llama, paths))


def test_only_candidates_are_searched_and_the_result_says_which_share(small_circuit, small_llama):
    circuit, scores = small_circuit.get_step("acdc"), small_circuit.get_step("attribution")

    best = {c.label for c in scores.top_components(60)}
    assert edges_of(circuit) <= best
    assert circuit.measured_on["searched_edges"] == 60
    assert 0 < circuit.n_tested <= 60 < circuit.n_edges
    assert f"60 of {circuit.n_edges:,} edges" in small_circuit.conclusion
    (caution,) = [c for c in small_circuit.step("acdc").cautions if "untested" in c]
    assert caution.startswith(f"{circuit.n_edges - 60:,} edges of small estimate")
    best_alone = faithfulness(small_llama, PromptPair(CLEAN, CORRUPTED), best, metric="kl").effects[0]
    loss = circuit.measured_on["loss_of_all_searched_edges"]
    assert 1 - loss / circuit.corrupted_metric == pytest.approx(best_alone, abs=1e-5)


def test_all_edges_are_searched_when_asked_or_without_attribution(small_llama):
    options = {"threshold": 0.1, "metric": "kl"}
    asked = circuit_discovery(small_llama, CLEAN, CORRUPTED, candidates="all", **options)
    alone = circuit_discovery(small_llama, CLEAN, CORRUPTED, steps=["acdc"], candidates=5, **options)

    everything = acdc(small_llama, CLEAN, CORRUPTED, **options)
    assert edges_of(asked.get_step("acdc")) == edges_of(alone.get_step("acdc")) == edges_of(everything)
    assert alone.step_names == ("acdc", "faithfulness")
    assert "searched_edges" not in asked.get_step("acdc").measured_on


def test_only_the_steps_that_are_asked_for_run(small_llama, monkeypatch):
    rows = []
    run_rows = sweep.run_rows
    monkeypatch.setattr(
        sweep, "run_rows", lambda m, t, r, *a, **k: (rows.append(len(r)), run_rows(m, t, r, *a, **k))[1]
    )

    result = circuit_discovery(small_llama, CLEAN, CORRUPTED, steps=["attribution"])
    assert (result.step_names, rows) == (("attribution",), [])
    assert "No circuit was searched" in result.conclusion

    result = circuit_discovery(small_llama, CLEAN, CORRUPTED, steps="activation")
    assert result.step_names == ("activation", "activation_mlp")
    assert rows == [small_llama.n_layers * (small_llama.n_heads + 1)]
    with pytest.raises(ResultError, match="activation, activation_mlp"):
        result.get_step("acdc")


def test_a_circuit_of_nothing_is_said_to_be_nothing(small_llama):
    result = circuit_discovery(small_llama, CLEAN, CORRUPTED, threshold=1e9)

    assert result.get_step("acdc").nodes == ()
    assert result.conclusion == "No circuit was found at threshold 1e+09."
    pair, empty = PromptPair(CLEAN, CORRUPTED), result.get_step("acdc")
    rounding = backward_error(
        small_llama, lambda: faithfulness(small_llama, pair, empty, metric="kl").effects
    )
    assert result.get_step("faithfulness").faithfulness == pytest.approx(0, abs=rounding)
    assert "Lower the threshold" in result.narrative


@pytest.mark.parametrize(
    ("faithfulness", "said"),
    [(1.0, None), (0.5, "only part of the model's work"), (-0.5, "away from"), (1.5, "overshoots")],
)
def test_how_much_of_the_work_a_circuit_does_is_said(found, faithfulness, said):
    judged = found.get_step("faithfulness")
    rows = [
        replace(row, faithfulness=faithfulness if row.group == "found" else row.faithfulness)
        for row in judged.rows
    ]

    step = narratives.faithfulness(replace(judged, rows=tuple(rows)), found.get_step("acdc"))

    assert "does not show that the circuit holds on others" in step.cautions[0]
    beyond_random = [text for text in step.cautions[1:] if "not more faithful than random" in text]
    assert len(beyond_random) == (faithfulness < 0)
    others = [text for text in step.cautions[1:] if text not in beyond_random]
    assert [said in text for text in others] == ([] if said is None else [True])


def test_prompts_of_different_lengths_work_and_the_account_says_how(small_llama):
    """The guide's own pair has different lengths in most tokenizers."""
    result = circuit_discovery(small_llama, EIFFEL, COLOSSEUM, threshold=0.05, candidates=40)

    circuit = result.get_step("acdc")
    assert circuit.measured_on["alignment"]["kind"] == "auto"
    assert "The prompts have 22 and 19 tokens" in result.narrative
    assert result.get_step("attribution").method == "eap"
    assert result.get_step("attribution").metric == "shift_towards_clean"
    assert "instead of EAP-IG" in result.narrative
    with pytest.raises(SweepError, match="Leave the step out"):
        circuit_discovery(small_llama, EIFFEL, COLOSSEUM, steps=["acdc", "paths"])


def test_where_lengths_differ_estimates_are_of_a_metric_whose_gap_is_the_distance_both_ways(small_llama):
    pair = PromptPair(EIFFEL, COLOSSEUM)

    def scores(pairs):
        return circuit_discovery(small_llama, pairs, steps=["attribution"]).get_step("attribution")

    both, one = scores([pair, pair]), scores(pair)

    def log_p(text):
        row = np.array(small_llama.logits(text))[0, -1].astype(np.float64)
        return row - np.log(np.exp(row).sum())

    c, x = log_p(EIFFEL), log_p(COLOSSEUM)
    jeffreys = float(((np.exp(c) - np.exp(x)) * (c - x)).sum())
    assert one.clean_metric - one.corrupted_metric == pytest.approx(jeffreys, rel=1e-3)
    rounding = backward_error(small_llama, lambda: scores(pair).scores)
    assert both.scores == pytest.approx(one.scores, abs=rounding)
    assert both.per_example.shape == (2, len(one.edges))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"steps": ["attribution", "prayer"]}, SweepError, "attribution, activation, acdc, paths"),
        ({"candidates": 0}, SweepError, "at least one edge"),
        ({"metric": "accuracy"}, MetricError, "logit_diff"),
        ({"metric": "logit_diff"}, MetricError, "answer"),
        ({"metric": lambda logits: 0 * logits[:, 0]}, NoGap, "nothing to recover"),
    ],
)
def test_what_cannot_be_asked_is_refused(small_llama, options, error, says):
    with pytest.raises(error, match=says):
        circuit_discovery(small_llama, CLEAN, CORRUPTED, **options)


def test_another_metric_is_used_by_every_step(toy_model, pairs):
    result = circuit_discovery(toy_model, pairs, metric="logit_diff", threshold=0.1)

    assert {step.result.metric for step in result.steps} == {"logit_diff"}
    assert {"L0.H2", "L1.H1"} <= set(result.get_step("acdc").nodes)


def test_it_survives_json_and_each_step_keeps_its_kind(found):
    again = AnalysisResult.from_json(found.to_json())

    assert again == found
    assert isinstance(again.get_step("acdc"), CircuitResult)
    assert isinstance(again.get_step("faithfulness"), FaithfulnessResult)


def test_the_search_tells_how_long_it_takes(small_llama, capsys):
    heard = []
    circuit_discovery(small_llama, CLEAN, CORRUPTED, threshold=0.1, candidates=40, progress=heard.append)

    searching = [each for each in heard if each.step == "acdc" and each.total]
    assert searching[-1].done == searching[-1].total
    assert "kept" in str(searching[0])
    assert "s left" in str(searching[0])
    assert capsys.readouterr().err == ""


def test_a_search_can_be_taken_up_again(small_llama, tmp_path, small_circuit):
    options = {"threshold": 0.02, "candidates": 60, "checkpoint": tmp_path / "search.json"}
    first = circuit_discovery(small_llama, CLEAN, CORRUPTED, **options)
    again = circuit_discovery(small_llama, CLEAN, CORRUPTED, **options)

    assert edges_of(first.get_step("acdc")) == edges_of(again.get_step("acdc"))
    assert edges_of(again.get_step("acdc")) == edges_of(small_circuit.get_step("acdc"))
    with pytest.raises(SweepError, match="differs in searched"):
        circuit_discovery(small_llama, CLEAN, CORRUPTED, **options | {"candidates": 61})


def test_answer_and_foil_are_what_the_search_measures(small_llama):
    result = circuit_discovery(small_llama, CLEAN, CORRUPTED, answer="x", foil="y", steps=["activation"])
    by_pair = circuit_discovery(
        small_llama, PromptPair(CLEAN, CORRUPTED, answer="x", foil="y"), steps=["activation"]
    )

    gap = activation_patching(
        small_llama, CLEAN, CORRUPTED, component="z", direction="noising", answer="x", foil="y"
    )
    found = result.get_step("activation")
    assert (found.metric, found.clean_metric) == ("logit_diff", pytest.approx(gap.clean_metric))
    assert found.effects == pytest.approx(gap.effects, abs=1e-5)
    assert by_pair.get_step("activation") == found
    assert (
        circuit_discovery(small_llama, CLEAN, CORRUPTED, steps=["activation"]).measured_on["metric"] == "kl"
    )


def test_a_circuit_is_measured_on_pairs_that_the_search_did_not_use_and_the_account_says_so(toy_model):
    pairs = random_token_pairs(8)

    result = circuit_discovery(toy_model, pairs, metric="kl")

    searched = result.measured_on["searched_on"]
    others = [pair for i, pair in enumerate(pairs) if i not in searched]
    judged, circuit = result.get_step("faithfulness"), result.get_step("acdc")
    assert (len(searched), len(others)) == (4, 4)
    assert len(circuit.measured_on["prompts"]) == len(judged.measured_on["prompts"]) == 4
    assert circuit.measured_on["prompts"] != judged.measured_on["prompts"]
    alone = faithfulness(toy_model, others, circuit, metric="kl").effects[0]
    assert judged.faithfulness == pytest.approx(alone, abs=1e-5)
    row = judged.row("the circuit, on the pairs of the search")
    same = faithfulness(toy_model, [pairs[i] for i in searched], circuit, metric="kl").effects[0]
    assert row.faithfulness == pytest.approx(same, abs=1e-5)
    assert "does 1 of the model's work on 4 other pairs than the 4 of the search" in result.conclusion
    assert "measured on 4 other pairs than the search's" in result.narrative
    assert result.get_step("activation").n_pairs == 8


def test_seven_pairs_search_and_measure_alike_and_the_account_says_so(toy_model):
    result = circuit_discovery(toy_model, random_token_pairs(7), metric="kl", steps=["acdc"])

    assert "searched_on" not in result.measured_on
    assert "the model's work on the prompts of the search" in result.conclusion
    (caution,) = result.step("faithfulness").cautions
    assert caution.startswith("The same pairs that the search used: the strongest are too large on average")
    assert "Give at least 8 independent pairs" in caution


def test_random_circuits_have_as_many_edges_between_the_same_layers(small_llama, small_circuit):
    edges = tuple(graph_of(small_llama).edges())
    few = Circuit.of(["input→L0.H1.q", "L0.H0→L1.H2.q", "L0.H1→L1.H2.q", "L1.mlp→logits"])

    drawn = [discovery._random_edges(edges, few, np.random.default_rng(seed)) for seed in range(9)]

    def ends(circuit):
        return Counter(
            (e.sender.layer, e.sender.kind, e.receiver.layer, e.receiver.kind, e.into) for e in circuit.edges
        )

    assert {tuple(sorted(ends(each).items())) for each in drawn} == {tuple(sorted(ends(few).items()))}
    assert len({each.edges for each in drawn}) > 5
    own = next(iter(Circuit.of(["L0.H0→L1.H2.q"]).edges))
    assert all(own not in each.edges for each in drawn)
    assert len(small_circuit.get_step("faithfulness").of("random")) == 19


def test_the_best_of_twenty_circuits_has_a_p_of_a_twentieth(found):
    judged = found.get_step("faithfulness")

    assert judged.p_among_random == pytest.approx(1 / 20)
    assert "p among them is 0.05 by rank" in found.narrative
    assert "p = 0.05 by rank" in judged.summary()
