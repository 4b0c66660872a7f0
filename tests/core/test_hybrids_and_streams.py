"""Blocks that differ among the layers of one model, and streams that are not a block's first argument."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp.core.interventions import replace
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import CapabilityUnavailable, MissingActivation
from tests.core.conftest import close
from tests.tiny_models import SIZES, randomise, tiny_module

CLEAN = list(range(3, 15))
CORRUPTED = [*CLEAN[:4], 60, *CLEAN[5:]]


def built(name: str, **sizes) -> nn.Module:
    module = pytest.importorskip(f"mlx_lm.models.{name}", reason="this mlx-lm does not have the architecture")
    model = module.Model(module.ModelArgs.from_dict({"model_type": name, **SIZES, **sizes}))
    randomise(model)
    return model


def talkie() -> nn.Module:
    return built("talkie")


def hybrid() -> nn.Module:
    """Gated delta nets, with attention in every second layer."""
    return built(
        "qwen3_next",
        num_hidden_layers=4,
        full_attention_interval=2,
        rope_scaling=None,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_conv_kernel_dim=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        partial_rotary_factor=0.5,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        norm_topk_prob=True,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        mlp_only_layers=[],
        attention_bias=False,
    )


def lfm2() -> nn.Module:
    """Short convolutions, with attention in layers 1 and 3."""
    return built(
        "lfm2",
        num_hidden_layers=4,
        full_attn_idxs=[1, 3],
        norm_eps=1e-5,
        conv_bias=False,
        conv_L_cache=3,
        block_dim=32,
        block_ff_dim=48,
        block_multiple_of=8,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
        tie_word_embeddings=True,
    )


def recovered(model: InterpretableModel, point: str) -> float:
    """The share of the change of logits that patching all of `point` undoes."""
    clean = model.trace(CLEAN, capture=[point])
    corrupted = model.logits(CORRUPTED)
    patched = model.logits(CORRUPTED, interventions=[replace(point, clean[point])])
    gap = np.array(clean.logits[0, -1] - corrupted[0, -1])
    return float(np.array(patched[0, -1] - corrupted[0, -1]) @ gap / (gap @ gap))


def test_the_stream_is_read_where_it_is_and_not_at_the_first_argument():
    model = InterpretableModel(talkie())

    trace = model.trace(CLEAN, capture=["resid_pre", "resid_post"])

    for layer in range(model.n_layers - 1):
        assert mx.array_equal(trace[f"L{layer + 1}.resid_pre"], trace[f"L{layer}.resid_post"])
    assert recovered(model, f"L{model.n_layers - 1}.resid_post") == pytest.approx(1, abs=1e-3)


def test_a_layer_of_such_a_model_run_by_itself_is_what_the_model_computes():
    model = InterpretableModel(talkie())
    trace = model.trace(CLEAN, capture=["resid_pre", "resid_post"])
    prologue = model.architecture.prologue(mx.array([CLEAN]))

    for layer in range(model.n_layers):
        after = model.architecture.block(layer, trace[f"L{layer}.resid_pre"], prologue)
        assert close(after, trace[f"L{layer}.resid_post"])


def test_a_model_whose_tokens_enter_again_says_so_and_one_whose_do_not_says_nothing():
    again = InterpretableModel(talkie())
    once = InterpretableModel(tiny_module("llama"))

    assert "tokens enter the residual stream again" in again.capabilities["resid_pre"].reason
    assert recovered(again, "L0.resid_pre") < 0.999
    assert once.capabilities["resid_pre"].reason == ""
    assert recovered(once, "L0.resid_pre") == pytest.approx(1, abs=1e-3)


def test_a_block_that_adds_something_else_too_has_no_attention_and_mlp_to_add_up():
    model = InterpretableModel(talkie())

    assert "is not resid_post" in model.capabilities["attn_out"].reason
    assert not model.capabilities["mlp_out"].available
    assert model.capabilities["z"].available
    assert model.capabilities["pattern"].available


class Unlike(nn.Module):
    """Blocks between which the stream is scaled, so that no stream goes through all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_module("llama")["model"]
        self.lm_head = nn.Linear(SIZES["hidden_size"], SIZES["vocab_size"], bias=False)

    def __call__(self, inputs: mx.array) -> mx.array:
        h = self.model.embed_tokens(inputs)
        for layer in self.model.layers:
            h = layer(0.5 * h, "causal", None)
        return self.lm_head(self.model.norm(h))


def test_what_has_no_meaning_without_one_stream_is_switched_off_with_the_reason():
    model = InterpretableModel(Unlike())

    for name in ("resid_pre", "resid_post", "attn_out", "mlp_out", "head_outputs"):
        assert "does not begin with what layer 0 ends with" in model.capabilities[name].reason
    assert model.capabilities["z"].available
    with pytest.raises(CapabilityUnavailable, match="does not begin with"):
        model.trace(CLEAN, capture=["L1.resid_pre"])


@pytest.mark.parametrize(
    ("build", "attending"), [(hybrid, (1, 3)), (lfm2, (1, 3))], ids=["qwen3_next", "lfm2"]
)
def test_the_attention_layers_of_a_hybrid_have_their_patterns(build, attending):
    model = InterpretableModel(build())

    trace = model.trace(CLEAN, capture=[f"L{layer}.pattern" for layer in attending])

    for layer in attending:
        rows = np.array(trace[f"L{layer}.pattern"]).sum(-1)
        assert rows.shape == (1, 4, len(CLEAN))
        assert np.allclose(rows, 1, atol=1e-5)
    assert model.architecture.layers_with("pattern") == attending
    assert (model.n_heads, model.n_kv_heads) == (4, 2)


def test_a_layer_without_attention_says_which_have_it():
    model = InterpretableModel(lfm2())

    with pytest.raises(CapabilityUnavailable, match=r"no 'z' in layer 0: .* have it: L1, L3\. .*'L1\.z'"):
        model.trace(CLEAN, capture=["L0.z"])
    with pytest.raises(CapabilityUnavailable, match=r"not have 'z' in every layer: .* L1, L3"):
        model.architecture.require("z")


def test_a_name_without_a_layer_is_that_of_the_layers_which_have_it():
    model = InterpretableModel(lfm2())

    trace = model.trace(CLEAN, capture="z")

    assert trace["L3.z"].shape == (1, len(CLEAN), 4, 8)
    with pytest.raises(MissingActivation, match=r"L1\.z, L3\.z"):
        trace["L0.z"]


def test_the_heads_of_a_hybrids_attention_layer_add_up_to_its_attn_out():
    model = InterpretableModel(lfm2())
    trace = model.trace(CLEAN, capture=["L3.z", "L3.attn_out"])

    heads, bias = model.architecture.head_outputs(3, trace["L3.z"])

    assert model.d_head == 8
    assert close(mx.sum(heads, axis=-2) + bias, trace["L3.attn_out"])
    with pytest.raises(CapabilityUnavailable, match="L1, L3"):
        model.architecture.w_o(0)


def test_a_hybrids_capabilities_are_kept_with_their_layers(tmp_path, monkeypatch):
    from mlxterp.core import self_check

    monkeypatch.setenv("MLXTERP_CACHE", str(tmp_path))
    model = InterpretableModel(lfm2())

    self_check.keep_capabilities(model.architecture, model.digest)

    kept = self_check.read_kept_capabilities(model.architecture, model.digest)
    assert kept == model.capabilities
    assert kept["z"].layers == (1, 3)
