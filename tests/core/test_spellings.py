"""Names of TransformerLens, nnsight and SAELens: the same activation, or an error that says what to write.

`tests/data/golden_spellings.npz` holds what TransformerLens 4.3.0 (TransformerBridge, no processing of the
weights) has under its own names on the same float32 weights: every 97th value. Gemma's embedding is scaled by
25.25 there, as mlx-lm scales it: √640 in bfloat16. transformers takes 25.298 in float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mlxterp
from mlxterp import other_libraries
from mlxterp.component_names import LAYER_NAMES
from mlxterp.core.hook_points import HookPoint, parse
from mlxterp.core.interventions import zero
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import ModelError, UnknownHookPoint
from mlxterp.models import fetch
from tests.tiny_models import tiny_module

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "golden_spellings.npz")
EVERY = 97
MODELS = ("smollm2-135m", pytest.param("gemma3-270m", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def toy() -> InterpretableModel:
    return InterpretableModel("toy-induction")


@pytest.mark.parametrize("name", MODELS)
def test_a_name_of_transformer_lens_gives_its_activation(name):
    theirs = {key.split("/")[1]: GOLDEN[key] for key in GOLDEN.files if key.startswith(f"{name}/")}
    tokens = theirs.pop("tokens").tolist()
    fetch.accept_terms(name)

    trace = InterpretableModel(name).trace(tokens, capture=list(theirs))

    for spelled, expected in theirs.items():
        ours = np.array(trace[spelled]).reshape(-1)[::EVERY]
        assert ours.shape == expected.shape, spelled
        assert np.abs(ours - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max()), spelled
    assert {key.split(".", 2)[-1] for key in theirs if key.startswith("blocks")} == set(
        other_libraries.IN_A_BLOCK
    )


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.1.attn.hook_z", "L1.z"),
        ("resid_post.1", "L1.resid_post"),
        (("resid_post", 1), "L1.resid_post"),
    ],
)
def test_another_spelling_is_the_same_hook_point(toy, theirs, ours):
    trace = toy.trace("cat dog cat", capture=[theirs])

    assert trace.names == [ours]
    assert np.array_equal(trace[theirs], trace[ours])
    assert parse(theirs) == parse(ours)
    assert {parse(theirs)} == {parse(ours)}


def test_an_intervention_takes_another_spelling(toy):
    ours, theirs = (
        toy.logits("cat dog cat", interventions=[zero(name, heads=1)])
        for name in ("L1.z", "blocks.1.attn.hook_z")
    )

    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("asked", ["blocks.1.attn.hook_q", "blocks.1.attn.hook_k", ("q", 1), "k.1"])
def test_queries_and_keys_before_rotary_are_refused_with_the_reason(asked):
    with pytest.raises(UnknownHookPoint, match=r"before the rotary embedding.*'L1\.[qk]'.*hook_rot_[qk]"):
        parse(asked)


def test_the_final_norm_before_its_weight_is_refused_with_the_name_behind_it():
    with pytest.raises(UnknownHookPoint, match=r"before the norm's weight.*'ln_final\.hook_out'"):
        parse("ln_final.hook_normalized")


@pytest.mark.parametrize("name", [*other_libraries.DIFFERENT, "hook_nonsense"])
def test_any_other_name_in_a_block_says_what_to_ask_for(name):
    with pytest.raises(UnknownHookPoint, match=r"blocks\.3") as refused:
        parse(f"blocks.3.{name}")

    assert "{" not in str(refused.value)


@pytest.mark.parametrize(
    "asked", [("resid_post", -1), ("resid_post",), ("resid_post", "9"), (9, "resid_post")]
)
def test_a_pair_that_is_no_name_and_layer_is_refused(asked):
    with pytest.raises(UnknownHookPoint, match=r"'resid_post', 9"):
        parse(asked)


def test_the_embedding_of_transformer_lens_is_refused_where_positions_are_added():
    learned = InterpretableModel(tiny_module("gpt2"))
    rotary = InterpretableModel(tiny_module("llama"))

    with pytest.raises(UnknownHookPoint, match="before positions are added"):
        learned.trace([1, 2, 3], capture=["hook_embed"])
    with pytest.raises(UnknownHookPoint, match="before positions are added"):
        _ = learned.trace([1, 2, 3], capture=["embed"])["hook_embed"]
    assert rotary.trace([1, 2, 3], capture=["hook_embed"]).names == ["embed"]


def test_module_paths_are_read_as_before():
    assert parse("model.layers.0.mlp") == HookPoint("model.layers.0.mlp")
    assert parse("blocks.0.attn.out") == HookPoint("blocks.0.attn.out")


@pytest.mark.parametrize("name", sorted(other_libraries.MODEL))
def test_an_attribute_of_another_librarys_model_says_what_to_call(toy, name):
    with pytest.raises(AttributeError, match=rf"'{name}'.*Here: "):
        getattr(toy, name)


@pytest.mark.parametrize("name", sorted(other_libraries.TRACE))
def test_an_attribute_of_another_librarys_cache_says_what_to_call(toy, name):
    with pytest.raises(AttributeError, match=rf"'{name}'.*Here: "):
        getattr(toy.trace("cat dog"), name)


@pytest.mark.parametrize("name", sorted(other_libraries.PACKAGE))
def test_a_name_of_another_library_in_the_package_says_what_to_use(name):
    with pytest.raises(AttributeError, match=rf"'{name}'.*Here: "):
        getattr(mlxterp, name)


def test_a_constructor_of_another_library_says_what_to_call():
    with pytest.raises(AttributeError, match=r"from_pretrained.*InterpretableModel\('smollm2-135m'\)"):
        InterpretableModel.from_pretrained("gpt2")


def test_calling_a_model_says_what_gives_logits(toy):
    with pytest.raises(ModelError, match=r"model\.logits\(text\)"):
        toy("cat dog")


def test_no_name_of_ours_is_in_the_table_of_others(toy):
    ours = {*dir(toy), *vars(toy), *LAYER_NAMES}

    assert ours & set(other_libraries.MODEL) == set()
    assert set(dir(toy.trace("cat"))) & set(other_libraries.TRACE) == set()
    assert set(dir(mlxterp)) & set(other_libraries.PACKAGE) == set()


def test_an_ordinary_misspelling_is_an_ordinary_error(toy):
    with pytest.raises(AttributeError, match="'InterpretableModel' has no attribute 'n_layerz'"):
        _ = toy.n_layerz
