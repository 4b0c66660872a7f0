"""What is no prompt, no model or no list is refused by name, before anything is computed."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.causal import activation_patching
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import ModelError, PromptPairError, SweepError

CLEAN, CORRUPTED = "cat dog fish moon cat dog", "cat dog sun moon cat dog"
OTHER, OTHER_CORRUPTED = "sun fish dog moon sun fish", "sun fish cat moon sun fish"


@pytest.fixture(scope="module")
def toy() -> InterpretableModel:
    return InterpretableModel("toy-induction")


def test_lists_of_prompts_are_pairs_in_their_order(toy):
    by_list = activation_patching(
        toy, [CLEAN, OTHER], [CORRUPTED, OTHER_CORRUPTED], component="z", by="layer_head", metric="kl"
    )
    first = activation_patching(toy, CLEAN, CORRUPTED, component="z", by="layer_head", metric="kl")

    assert len(by_list.per_example) == 2
    assert np.allclose(by_list.per_example[0], first.effects, atol=1e-5)


@pytest.mark.parametrize(
    ("clean", "corrupted", "words"),
    [
        ([CLEAN, OTHER], [CORRUPTED], "2 clean and 1 corrupted prompts"),
        ([CLEAN, OTHER], CORRUPTED, "2 clean and one corrupted prompts"),
        ("", CORRUPTED, "clean is an empty text"),
        (CLEAN, "", "corrupted is an empty text"),
        (123, CORRUPTED, "clean=123 is no prompt"),
        (CLEAN, 4.5, "corrupted=4.5 is no prompt"),
    ],
)
def test_what_is_no_pair_of_prompts_is_refused(toy, clean, corrupted, words):
    with pytest.raises(PromptPairError, match=words):
        activation_patching(toy, clean, corrupted, component="z", answer=" fish", foil=" sun")


def test_a_name_in_place_of_a_model_is_refused_with_the_call_that_loads_it():
    with pytest.raises(ModelError, match=r"InterpretableModel\('toy-induction'\)"):
        activation_patching("toy-induction", CLEAN, CORRUPTED, component="z")  # type: ignore[arg-type]


def test_one_layer_without_a_list_is_refused(toy):
    with pytest.raises(SweepError, match=r"layers=1 is one number. Pass a list, as in layers=\[1\]"):
        activation_patching(toy, CLEAN, CORRUPTED, component="z", layers=1, answer=" fish", foil=" sun")  # type: ignore[arg-type]


@pytest.mark.parametrize("chosen", ["all", ["0"], [0.5]])
def test_layers_and_positions_that_are_no_whole_numbers_are_refused(tiny_llama, chosen):
    options = {"component": "z", "answer": "x", "foil": "y"}
    for name, by in (("layers", "layer_head"), ("positions", "layer_pos_head")):
        with pytest.raises(SweepError, match=f"{name}=.* is no list of whole numbers"):
            activation_patching(tiny_llama, "the cat sat", "the dog sat", by=by, **options | {name: chosen})


def test_a_metric_may_compute_with_mlx(toy):
    fish, sun = toy.to_single_token(" fish"), toy.to_single_token(" sun")

    own = activation_patching(
        toy, CLEAN, CORRUPTED, component="z", metric=lambda x: mx.array(x)[:, fish] - mx.array(x)[:, sun]
    )
    named = activation_patching(toy, CLEAN, CORRUPTED, component="z", answer=" fish", foil=" sun")

    assert np.allclose(own.effects, named.effects, atol=1e-5)
