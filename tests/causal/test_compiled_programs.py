"""On programs compiled into weights, the exact edge methods find the circuit that the compiler wrote.

Truth depends on the ablation. For the corrupted prompt's values and for means, an edge is in it when what it
carries depends on the tokens, and the answer on that; edges that carry positions are the same on every prompt
of a length. With zero in their place those are missed too.
"""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.causal import acdc, edge_attribution, faithfulnesses, path_patching, roc_auc
from mlxterp.causal.circuits.edge_patching import EdgeRun
from mlxterp.metrics import kl
from mlxterp.worlds.programs import LENGTH, PROGRAMS, TOKENS
from mlxterp.worlds.rasp import LOGIT


@pytest.fixture(scope="module", params=sorted(PROGRAMS))
def program(request):
    return request.param


@pytest.fixture(scope="module")
def case(program):
    return PROGRAMS[program]()


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


NOTHING = 1e-6  # losses are of order 1, so this is what float32 leaves of a 0: 16 units of rounding
ABLATIONS = ("corrupted", "zero", "mean")


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_exact_effect_of_each_edge_ranks_the_true_ones_first(case, ablation):
    pairs, truth = case.pairs(), case.compiled.truth_under(ablation)
    both = (np.array([getattr(p, s) for p in pairs]) for s in ("clean", "corrupted"))
    run = EdgeRun(case.compiled.model, *both, ablation=ablation)
    edges = list(run.graph.edges())
    clean = run.logits([()])[0]

    scores = np.array([kl(rows, clean).mean() for rows in run.logits([{edge} for edge in edges])])

    known = np.array([str(edge) in truth for edge in edges])
    assert known.sum() == len(truth)
    assert roc_auc(scores, known) == 1.0
    assert scores[~known].max() < NOTHING < 1e-3 < scores[known].min()


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_integrated_gradients_rank_the_true_edges_first_too(program, case, ablation):
    """The histogram's MLP is a staircase with slope 0 almost everywhere on the path, so gradients see the
    edge behind it only. Towards zero the path meets a step, and one edge escapes: the beginning's key, where
    all attention is even.
    """
    options = {"method": "eap-ig", "steps": 8, "metric": "l2", "ablation": ablation}

    result = edge_attribution(case.compiled.model, case.pairs(), **options)

    truth = case.compiled.truth_under(ablation)
    scores = np.where(np.abs(result.scores) < NOTHING, 0.0, np.abs(result.scores))
    if program == "histogram" and ablation != "zero":
        assert {edge for edge, score in zip(result.edges, scores, strict=True) if score} == {"L0.mlp→logits"}
        return
    known = [edge in truth for edge in result.edges]
    assert roc_auc(scores, known) >= (0.9 if ablation == "zero" else 1.0)


@pytest.mark.parametrize(
    ("ablation", "threshold"),
    [*(("corrupted", t) for t in (1e-4, 1e-3, 1e-2)), ("zero", 1e-4), ("mean", 1e-4)],
)
def test_acdc_finds_the_circuit_and_nothing_else(case, ablation, threshold):
    result = acdc(case.compiled.model, case.pairs(), threshold=threshold, ablation=ablation)

    assert {str(edge) for edge in result.edges} == case.compiled.truth_under(ablation)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_circuit_is_faithful_and_no_edge_of_it_can_go(case, ablation):
    truth = case.compiled.truth_under(ablation)
    circuits = [truth, frozenset(), *(truth - {edge} for edge in sorted(truth))]

    found = faithfulnesses(case.compiled.model, case.pairs(), circuits, metric="l2", ablation=ablation)

    assert found.effects[:2] == pytest.approx([1, 0], abs=1e-4)
    assert found.effects[2:].max() < 0.98


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
