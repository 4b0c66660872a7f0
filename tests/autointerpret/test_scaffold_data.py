"""What a scaffold's setup.py gives a judge: independent pairs, unselected candidates, a behaviour."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlxterp.autointerpret import ExperimentLog, init_autointerpret, read_hypothesis
from mlxterp.causal import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import LANDMARKS, factual_recall_pairs
from mlxterp.remeasure import gate_cells
from mlxterp.statistics.clusters import clusters
from mlxterp.statistics.decisions import Gate, gate
from mlxterp.worlds import shuffled_twin


def setup_of(directory: Path, scaffold: str, **given: str) -> types.ModuleType:
    """The setup.py of a new investigation, imported."""
    path = init_autointerpret(directory / scaffold, scaffold=scaffold, **given) / "setup.py"
    module = types.ModuleType("setup")
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


def gate_of(model: InterpretableModel, setup: types.ModuleType, pairs: list[PromptPair]) -> Gate:
    """The gate's decision about a model: every pair is a cluster here."""
    cells = gate_cells(model, pairs, "logit_diff", setup.candidates)
    both, unselected = cells.pairs, cells.candidates
    assert unselected is not None
    return gate(
        both.gap,
        np.concatenate([both.answer_preferred, both.foil_preferred]),
        np.concatenate([both.answer_rank, both.foil_rank]),
        cells.d_vocab,
        candidates=unselected.answer_preferred & unselected.foil_preferred,
    )


@pytest.fixture(scope="module")
def induction(tmp_path_factory) -> types.ModuleType:
    return setup_of(tmp_path_factory.mktemp("scaffolds"), "induction")


def test_the_induction_scaffold_passes_the_gate_on_fresh_pairs_and_its_shuffled_twin_fails(induction):
    fresh = induction.confirm_pairs(24, 5)

    assert gate_of(induction.model, induction, fresh).passed
    assert not gate_of(shuffled_twin(induction.model, 0), induction, fresh).passed


def test_fresh_pairs_are_as_many_clusters_apart_from_those_explored_and_decided_by_the_seed(induction):
    fresh, others = induction.confirm_pairs(48, 5), induction.confirm_pairs(48, 6)

    assert len(fresh) == 48
    assert len(clusters([*induction.dataset, *fresh])) == len(induction.dataset) + 48
    assert induction.confirm_pairs(48, 5) == fresh
    assert not set(fresh) & set(others)


def test_the_declaring_experiment_of_the_instructions_can_be_read_and_runs_as_it_stands(
    induction, tmp_path, monkeypatch
):
    path = init_autointerpret(tmp_path / "p", scaffold="induction")
    text = (path / "CLAUDE.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    declaring = next(block for block in blocks if "HYPOTHESIS" in block)
    monkeypatch.chdir(path)
    monkeypatch.setitem(sys.modules, "setup", induction)

    hypothesis = read_hypothesis(declaring.encode())
    exec(compile(declaring, "experiment.py", "exec"), {})

    assert hypothesis is not None
    assert hypothesis.site == ("L1.z.h1@-1",)
    (entry,) = ExperimentLog(path / "results.jsonl").entries()
    assert entry.hypothesis == hypothesis.claim
    assert entry.result["numbers"]["L1.H1"] == pytest.approx(1)
    assert entry.informative


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scaffold", ["factual_recall", "generic"])
def test_a_scaffold_on_a_real_model_holds_what_8_to_explore_and_24_to_confirm_need(tmp_path, scaffold):
    setup = setup_of(tmp_path, scaffold)
    pairs = list(setup.dataset)

    assert len(clusters(pairs)) == len(pairs) >= 32
    assert len({len(setup.model.to_tokens(pair.clean)[0]) for pair in pairs}) == 1
    assert gate_of(setup.model, setup, pairs).passed
    assert not gate_of(shuffled_twin(setup.model, 0), setup, pairs).passed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_induction_scaffold_passes_the_gate_on_a_real_model_too(tmp_path):
    setup = setup_of(tmp_path, "induction", model_name="smollm2-135m")
    fresh = setup.confirm_pairs(24, 5)

    assert gate_of(setup.model, setup, fresh).passed
    assert not gate_of(shuffled_twin(setup.model, 0), setup, fresh).passed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_couples_that_are_written_out_are_the_ones_that_the_model_shows(tmp_path):
    setup = setup_of(tmp_path, "factual_recall")

    found = factual_recall_pairs(
        setup.model, LANDMARKS, template=setup.TEMPLATES, both_directions=False, shown=True
    )

    assert len(setup.COUPLES) == len(setup.dataset) == 53
    assert [replace(pair, cluster=None) for pair in found[:53]] == setup.dataset


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_templates_of_facts_are_slices_that_share_the_clusters(tmp_path):
    setup = setup_of(tmp_path, "factual_recall")

    slices = {template: [p for p in setup.dataset if p.slice == template] for template in setup.TEMPLATES}
    assert sum(len(pairs) for pairs in slices.values()) == len(setup.dataset)
    assert all(len(pairs) >= 16 for pairs in slices.values())
    assert {pair.slice for pair in setup.dataset[:2]} == set(setup.TEMPLATES)
