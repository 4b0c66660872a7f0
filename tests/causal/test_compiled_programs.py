"""On programs compiled into weights, the exact edge methods find the circuit that the compiler wrote.

Truth is meant for resample ablation: an edge is in it when what it carries depends on the tokens, and the
answer on that. Edges that carry positions are the same on every prompt of a length.
"""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.causal import acdc, edge_attribution, faithfulness, path_patching, roc_auc
from mlxterp.causal.edge_run import EdgeRun
from mlxterp.metrics import kl
from tests.rasp import LOGIT
from tests.rasp.programs import LENGTH, PROGRAMS, TOKENS


@pytest.fixture(scope="module", params=sorted(PROGRAMS))
def case(request):
    return PROGRAMS[request.param]()


def logits_of(case, prompts) -> np.ndarray:
    tokens = np.array([[TOKENS, *prompt] for prompt in prompts])
    return np.array(case.compiled.model.run(tokens)[0])[:, -1]


def test_the_compiled_program_computes_what_it_says(case):
    prompts = case.prompts(64, seed=1)
    logits = logits_of(case, prompts)

    wanted = np.array([case.answer(prompt) for prompt in prompts])

    answered = logits[:, 0] / LOGIT if case.number else logits.argmax(axis=1)
    assert len(set(wanted.tolist())) > 2
    assert answered == pytest.approx(wanted, abs=1e-4)


def test_the_exact_effect_of_each_edge_ranks_the_true_ones_first(case):
    pairs = case.pairs()
    run = EdgeRun(
        case.compiled.model, *(np.array([getattr(p, s) for p in pairs]) for s in ("clean", "corrupted"))
    )
    edges = list(run.graph.edges())
    clean = run.logits([()])[0]

    scores = np.array([kl(rows, clean).mean() for rows in run.logits([{edge} for edge in edges])])

    known = np.array([str(edge) in case.compiled.truth for edge in edges])
    assert known.sum() == len(case.compiled.truth)
    assert roc_auc(scores, known) == 1.0
    assert scores[~known].max() < 1e-6 < 1e-3 < scores[known].min()


def test_integrated_gradients_rank_the_true_edges_first_too(case):
    result = edge_attribution(case.compiled.model, case.pairs(), method="eap-ig", steps=8, metric="l2")

    known = [edge in case.compiled.truth for edge in result.edges]
    assert roc_auc(np.abs(result.scores), known) == 1.0


@pytest.mark.parametrize("threshold", [1e-4, 1e-3, 1e-2])
def test_acdc_finds_the_circuit_and_nothing_else(case, threshold):
    result = acdc(case.compiled.model, case.pairs(), threshold=threshold)

    assert {str(edge) for edge in result.edges} == case.compiled.truth


def test_the_circuit_is_faithful_and_no_edge_of_it_can_go(case):
    model, pairs, truth = case.compiled.model, case.pairs(), case.compiled.truth

    assert faithfulness(model, pairs, truth, metric="l2").effects == pytest.approx([1], abs=1e-4)
    for edge in truth:
        assert faithfulness(model, pairs, truth - {edge}, metric="l2").effects[0] < 0.98


def test_path_patching_names_the_last_head_of_each_circuit(case):
    senders = {edge.partition("→")[0] for edge in case.compiled.truth if edge.endswith("→logits")}

    result = path_patching(
        case.compiled.model, case.pairs(), receivers="logits", freeze_mlps=True, metric="l2"
    )

    found = {c.label for c in result.components() if abs(c.effect) > 1e-3}
    assert found == senders
    assert len(senders) == 1


def test_prompts_have_one_length(case):
    assert {len(prompt) for prompt in case.prompts(5)} == {LENGTH - 1}
