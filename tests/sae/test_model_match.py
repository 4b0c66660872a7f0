"""A model other than an SAE was trained on, or one that was treated in another way, is warned of."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxterp import InterpretableModel
from mlxterp.errors import SAEMismatch
from mlxterp.sae import SAE, Relu, active_features, build_store
from mlxterp.sae.model_match import mismatches


@pytest.fixture(scope="module")
def model() -> InterpretableModel:
    return InterpretableModel("toy-induction")


def sae(model: InterpretableModel, *, trained_on: str = "toy-induction", **config: object) -> SAE:
    d = model.d_model
    return SAE(
        W_enc=mx.eye(d),
        b_enc=mx.zeros(d),
        W_dec=mx.eye(d),
        b_dec=mx.zeros(d),
        activation=Relu(),
        hook_point="L0.resid_post",
        model=trained_on,
        metadata={"format": "SAELens", "config": {"metadata": config}},
    )


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"trained_on": "gpt2-small"}, "model: this SAE was trained on 'gpt2-small'"),
        ({"prepend_bos": True}, "prepend_bos = True"),
        (
            {"model_from_pretrained_kwargs": {"center_writing_weights": True, "fold_ln": True}},
            r"model_from_pretrained_kwargs: .* loaded with {'center_writing_weights': True}",
        ),
        ({"model_from_pretrained_kwargs": {"revision": "step1000"}}, "'revision': 'step1000'"),
    ],
)
def test_a_difference_is_warned_of_by_its_field_wherever_a_model_meets_an_sae(model, facts, field):
    other = sae(model, **facts)

    with pytest.warns(SAEMismatch, match=field):
        build_store(model, other, ["cat dog fish moon"])
    with pytest.warns(SAEMismatch, match=field):
        active_features(model, other, "cat dog fish moon")


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"trained_on": "unknown"},
        {"trained_on": "someone/toy-induction-4bit"},
        {"prepend_bos": False, "model_from_pretrained_kwargs": {"center_writing_weights": False}},
        {"model_from_pretrained_kwargs": {"fold_ln": True, "device": "cuda"}},
    ],
)
def test_what_makes_no_difference_is_not_warned_of(model, facts):
    assert mismatches(model, sae(model, **facts)) == []


def test_an_older_saelens_config_has_its_facts_at_the_top(model):
    old = sae(model)
    object.__setattr__(old, "metadata", {"config": {"prepend_bos": True}})

    assert "prepend_bos" in mismatches(model, old)[0]
