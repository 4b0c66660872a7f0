import copy

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp.component_names import LAYER_NAMES
from mlxterp.core import interventions as iv
from mlxterp.core.architecture.families import COMMON
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import (
    CapabilityUnavailable,
    HookError,
    InterventionNotFired,
    MissingActivation,
    ModelError,
    TokenError,
    UnknownHookPoint,
)
from tests.core.conftest import close
from tests.tiny_models import VOCAB, ByteTokenizer, randomise, tiny_module

TEXT = "The cat sat"


def test_a_model_says_its_sizes(tiny_llama):
    sizes = (
        tiny_llama.n_layers,
        tiny_llama.n_heads,
        tiny_llama.n_kv_heads,
        tiny_llama.d_model,
        tiny_llama.d_head,
    )

    assert sizes == (3, 4, 2, 32, 8)
    assert tiny_llama.d_vocab == VOCAB


@pytest.mark.parametrize(
    ("point", "shape"),
    [
        ("L1.resid_pre", (1, 11, 32)),
        ("L1.q", (1, 11, 4, 8)),
        ("L1.k", (1, 11, 2, 8)),
        ("L1.v", (1, 11, 2, 8)),
        ("L1.pattern", (1, 4, 11, 11)),
        ("L1.z", (1, 11, 4, 8)),
        ("L1.attn_out", (1, 11, 32)),
        ("final_norm", (1, 11, 32)),
        ("logits", (1, 11, VOCAB)),
        ("model.layers.1.mlp.up_proj", (1, 11, 48)),
    ],
)
def test_each_hook_point_has_the_axes_its_page_says(tiny_llama, point, shape):
    assert tiny_llama.trace(TEXT, capture=point)[point].shape == shape


def test_a_trace_works_as_a_value_and_in_a_with_block(tiny_llama):
    value = tiny_llama.trace(TEXT, capture=["L1.z"])
    with tiny_llama.trace(TEXT, capture=["L1.z"]) as t:
        assert mx.array_equal(t["L1.z"], value["L1.z"])
        assert mx.array_equal(t.activations["L1.z"], value["L1.z"])


def test_a_trace_holds_what_was_asked_for_and_nothing_else(tiny_llama):
    t = tiny_llama.trace(TEXT, capture=["L2.z", "embed"])

    assert sorted(t.names) == ["L2.z", "embed"]
    assert "L1.z" not in t


def test_what_was_not_captured_is_an_error_that_says_what_was_and_what_to_add(tiny_llama):
    t = tiny_llama.trace(TEXT, capture=["L1.z"])

    with pytest.raises(MissingActivation, match=r"Captured: L1\.z\. Add capture=\['L0\.z'\]"):
        t["L0.z"]


def test_assigning_into_a_trace_is_an_error_and_not_a_silent_nothing(tiny_llama):
    t = tiny_llama.trace(TEXT, capture=["L1.z"])

    with pytest.raises(TypeError):
        t["L1.z"] = mx.zeros(3)
    with pytest.raises(TypeError):
        t.activations["L1.z"] = mx.zeros(3)


def test_a_trace_shows_its_tokens_as_text(tiny_llama):
    t = tiny_llama.trace("cat")

    assert (t.tokens.tolist(), t.str_tokens) == ([[99, 97, 116]], ["c", "a", "t"])
    assert tiny_llama.trace(["cat", "a"]).str_tokens == [["c", "a", "t"], ["a"]]


@pytest.mark.parametrize("prompt", ["cat", [99, 97, 116], np.array([99, 97, 116]), mx.array([[99, 97, 116]])])
@pytest.mark.usefixtures("pinned_threads")
def test_a_prompt_may_be_text_or_token_ids(tiny_llama, prompt):
    assert mx.array_equal(tiny_llama.logits(prompt), tiny_llama.logits("cat"))


def test_a_list_of_texts_gives_a_list_of_token_arrays(tiny_llama):
    assert [row.tolist() for row in tiny_llama.to_tokens(["cat", "a"])] == [[[99, 97, 116]], [[97]]]


@pytest.mark.parametrize("prompt", [[VOCAB], [-1], [], "", [0.5], ["a", [VOCAB]]])
def test_tokens_that_do_not_exist_are_an_error(tiny_llama, prompt):
    with pytest.raises(TokenError):
        tiny_llama.logits(prompt)


@pytest.mark.parametrize("layer", [3, 40])
def test_a_layer_that_does_not_exist_is_an_error_with_the_range(tiny_llama, layer):
    with pytest.raises(UnknownHookPoint, match="3 layers, L0 to L2"):
        tiny_llama.trace(TEXT, capture=[f"L{layer}.z"])
    with pytest.raises(UnknownHookPoint, match="3 layers, L0 to L2"):
        tiny_llama.logits(TEXT, interventions=[iv.zero(f"L{layer}.z")])


def test_a_module_path_that_does_not_exist_is_an_error_that_says_what_is_there(tiny_llama):
    with pytest.raises(UnknownHookPoint, match=r"has no 'upproj'\. It has: down_proj, gate_proj, up_proj"):
        tiny_llama.trace(TEXT, capture=["model.layers.1.mlp.upproj"])
    with pytest.raises(UnknownHookPoint, match=r"'model\.layers\.0'"):
        tiny_llama.trace(TEXT, capture=["model.layers"])


@pytest.mark.usefixtures("pinned_threads")
def test_a_module_path_can_be_edited(tiny_llama):
    by_path = tiny_llama.logits(TEXT, interventions=[iv.zero("model.layers.1.mlp.down_proj")])

    assert mx.array_equal(by_path, tiny_llama.logits(TEXT, interventions=[iv.zero("L1.mlp_out")]))


def test_an_intervention_whose_module_never_runs_raises():

    module = tiny_module("llama")
    module.part = {"unused": nn.Linear(32, 32)}

    with pytest.raises(InterventionNotFired, match="never computed"):
        InterpretableModel(module, ByteTokenizer()).logits(TEXT, interventions=[iv.zero("part.unused")])


def test_capturing_a_module_that_never_runs_raises():

    module = tiny_module("llama")
    module.part = {"unused": nn.Linear(32, 32)}

    with pytest.raises(MissingActivation, match="without calling"):
        InterpretableModel(module, ByteTokenizer()).trace(TEXT, capture=["part.unused"])


def test_a_position_beyond_the_prompt_raises(tiny_llama):
    with pytest.raises(HookError, match="positions 0 to 10"):
        tiny_llama.logits(TEXT, interventions=[iv.zero("L1.mlp_out", positions=11)])


def test_interventions_at_one_place_apply_in_the_order_given(tiny_llama):
    one, two = iv.add("L1.mlp_out", 1.0), iv.scale("L1.mlp_out", 2.0)
    plain = tiny_llama.trace(TEXT, capture="L1.mlp_out")["L1.mlp_out"]

    add_first = tiny_llama.trace(TEXT, capture="L1.mlp_out", interventions=[one, two])["L1.mlp_out"]
    scale_first = tiny_llama.trace(TEXT, capture="L1.mlp_out", interventions=[two, one])["L1.mlp_out"]

    assert close(add_first, (plain + 1) * 2)
    assert close(scale_first, plain * 2 + 1)


def test_what_is_captured_at_an_edited_place_is_what_the_model_went_on_with(tiny_llama):
    t = tiny_llama.trace(TEXT, capture=["L1.mlp_out"], interventions=[iv.zero("L1.mlp_out")])

    assert not np.any(np.array(t["L1.mlp_out"]))


def test_logits_and_the_final_norm_can_be_edited(tiny_llama):
    zeroed = tiny_llama.logits(TEXT, interventions=[iv.zero("final_norm", positions=2)])

    assert not np.any(np.array(zeroed[:, 2]))
    assert not np.any(np.array(tiny_llama.logits(TEXT, interventions=[iv.zero("logits")])))


@pytest.mark.parametrize("capture", [["resid_post"], "all"])
def test_a_run_computes_nothing_before_it_is_read(tiny_llama, capture):
    tokens = tiny_llama.to_tokens(TEXT * 20)
    tiny_llama.run(tokens)[0].shape  # noqa: B018 - whatever the first run sets up
    before = mx.get_active_memory()

    _, captured = tiny_llama.run(tokens, capture=capture)
    unread = mx.get_active_memory() - before
    activation = captured[HookPoint("resid_post", 0)]
    mx.eval(activation)

    assert unread < 4 * activation.size <= mx.get_active_memory() - before


def test_a_captured_activation_is_not_changed_by_what_the_model_does_later(tiny_llama):
    t = tiny_llama.trace(TEXT, capture=["resid_pre", "embed"])
    tokens = mx.array(tiny_llama.to_tokens(TEXT))

    assert mx.array_equal(t["embed"], tiny_llama.model.model.embed_tokens(tokens))


def test_a_perturbations_gradient_is_the_slope_of_the_logits(tiny_llama):
    tokens = mx.array(tiny_llama.to_tokens(TEXT))
    points = ["L0.resid_pre", "L1.z", "L1.attn_out", "L1.resid_mid", "L2.mlp_out", "L1.q", "L1.v"]
    shapes = {p: tiny_llama.trace(TEXT, capture=p)[p].shape for p in points}
    directions = {p: mx.random.normal(s, key=mx.random.key(i)) for i, (p, s) in enumerate(shapes.items())}

    def metric(perturbations):
        edits = [iv.add(p, value) for p, value in perturbations.items()]
        logits, _ = tiny_llama.run(tokens, interventions=edits)
        return logits[0, -1, 7] - logits[0, -1, 9]

    gradients = mx.grad(metric)({p: mx.zeros(s) for p, s in shapes.items()})

    for p in points:
        step = 1e-2
        up, down = (metric({p: sign * step * directions[p]}).item() for sign in (1, -1))
        slope = (gradients[p] * directions[p]).sum().item()
        assert slope == pytest.approx((up - down) / (2 * step), rel=2e-2, abs=2e-3)


def test_rows_of_the_unembedding_give_the_logits_from_the_final_norm(tiny_llama):
    t = tiny_llama.trace(TEXT, capture="final_norm")

    rows = tiny_llama.unembedding([3, 5])

    assert rows.shape == (2, 32)
    assert close(t["final_norm"] @ rows.T, t.logits[..., mx.array([3, 5])])


def test_the_digest_follows_the_weights():
    same, again, other = (
        InterpretableModel(tiny_module("llama", seed=seed), verify=False).digest for seed in (0, 0, 1)
    )

    assert same == again != other


def test_a_changed_weight_changes_the_digest(tiny_llama):
    model = InterpretableModel(tiny_module("llama"), verify=False)
    before = model.digest
    norm = model.model.model.norm
    norm.weight = norm.weight + 1

    assert InterpretableModel(model.model, verify=False).digest != before == tiny_llama.digest


def test_a_model_without_a_tokenizer_takes_token_ids_and_says_so_when_given_text():
    model = InterpretableModel(tiny_module("llama"))

    assert model.logits([1, 2, 3]).shape == (1, 3, VOCAB)
    with pytest.raises(TokenError, match="without a tokenizer"):
        model.logits("cat")


def test_the_blas_that_computes_is_stated(tiny_llama):
    assert tiny_llama.blas.name


def test_quantising_a_module_is_not_ours_to_do():
    with pytest.raises(ModelError, match=r"nn\.quantize"):
        InterpretableModel(tiny_module("llama"), quantized=True)


def test_weights_are_cast_when_a_dtype_is_asked_for():
    model = InterpretableModel(tiny_module("llama"), ByteTokenizer(), dtype=mx.float16)

    assert model.logits(TEXT).dtype == mx.float16


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_models_pass_their_checks(dtype):
    model = InterpretableModel(tiny_module("llama"), ByteTokenizer(), dtype=dtype)

    assert [name for name, c in model.capabilities.items() if not c.available] == []


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_has_everything_a_float_one_has(bits):

    module = tiny_module("llama", hidden_size=64, head_dim=32, intermediate_size=64)
    nn.quantize(module, group_size=32, bits=bits)
    model = InterpretableModel(module, ByteTokenizer())
    t = model.trace(TEXT, capture=["final_norm", "L1.z", "L1.attn_out"])

    assert [name for name, c in model.capabilities.items() if not c.available] == []
    assert close(t["final_norm"] @ model.unembedding([3, 5]).T, t.logits[..., mx.array([3, 5])])
    assert close(mx.einsum("bphd,hdm->bpm", t["L1.z"], model.architecture.w_o(1)), t["L1.attn_out"])


def test_a_quantised_tied_embedding_gives_dequantised_unembedding_rows():

    module = tiny_module("llama", hidden_size=64, head_dim=32, intermediate_size=64, tie_word_embeddings=True)
    nn.quantize(module, group_size=32, bits=4)
    model = InterpretableModel(module, ByteTokenizer())
    t = model.trace(TEXT, capture=["final_norm"])

    assert close(t["final_norm"] @ model.unembedding([3]).T, t.logits[..., 3:4])


def test_a_missing_part_is_named_with_what_there_is():
    model = InterpretableModel(tiny_module("gemma2"), ByteTokenizer(), family=COMMON)

    with pytest.raises(
        CapabilityUnavailable, match=r"gemma2 has no 'pattern'.*Available in a layer: resid_pre, z"
    ):
        model.trace(TEXT, capture=["L0.pattern"])


def test_random_weights_are_the_same_for_a_seed():
    one, two = tiny_module("qwen2"), tiny_module("qwen2", seed=3)
    randomise(two, 0)

    assert mx.array_equal(one.model.embed_tokens.weight, two.model.embed_tokens.weight)


def test_an_activation_is_an_attribute_of_its_layer(tiny_llama):
    with tiny_llama.trace(TEXT, capture=["z", "embed", "L1.resid_post"]) as t:
        assert mx.array_equal(t.layers[1].z, t["L1.z"])
        assert mx.array_equal(t.layers[-1].z, t["L2.z"])
        assert mx.array_equal(t.embed, t["embed"])
        assert [layer.z.shape for layer in t.layers] == [t["L0.z"].shape] * 3
        assert dir(t.layers[1]) == ["resid_post", "z"]
        assert "resid_post" in repr(t.layers[1])


def test_an_attribute_that_was_not_captured_is_an_error_that_lists_what_was(tiny_llama):
    t = tiny_llama.trace(TEXT, capture=["L1.z"])

    with pytest.raises(AttributeError, match=r"layers\[1\]\.q .*Captured there: z\. Add capture=\['L1\.q'\]"):
        _ = t.layers[1].q
    with pytest.raises(MissingActivation, match="Captured there: nothing"):
        _ = t.layers[0].z
    with pytest.raises(AttributeError, match=r"layers\[1\]\.attn .*In a layer there are: resid_pre, q"):
        _ = t.layers[1].attn
    with pytest.raises(AttributeError, match=r"no 'final_norm'\. Captured: L1\.z"):
        _ = t.final_norm
    with pytest.raises(IndexError, match="3, 0 to 2"):
        _ = t.layers[3]
    assert getattr(t, "embed", None) is None
    assert copy.copy(t).tokens.tolist() == t.tokens.tolist()


@pytest.mark.usefixtures("pinned_threads")
def test_all_is_every_hook_point_there_is(any_family):
    t = any_family.trace(TEXT, capture="all")

    there = [name for name in LAYER_NAMES if any_family.capabilities[name].available]
    assert set(dir(t.layers[0])) == set(there)
    assert len(t.names) == len(there) * any_family.n_layers + 3
    assert mx.array_equal(t.logits, any_family.logits(TEXT))
