"""Models whose layers mlx-lm's LoRA or DoRA has wrapped."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxterp.causal import EdgeRun, attribution_patching, edge_attribution
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import ModelNotFound
from tests.core.conftest import close
from tests.tiny_models import SIZES, ByteTokenizer, tiny_module

PROMPT = list(range(3, 15))
KEYS = {
    "o_proj": ["self_attn.o_proj"],
    "lm_head": ["lm_head"],
    "embedding": ["model.embed_tokens"],
    "every kind": ["self_attn.o_proj", "self_attn.q_proj", "mlp.down_proj", "lm_head", "model.embed_tokens"],
}


def adapted(keys: list[str], *, dora: bool, module: nn.Module | None = None, **sizes) -> nn.Module:
    """A tiny llama with random adapters of rank 2 that matter to the logits."""
    from mlx_lm.tuner.utils import linear_to_lora_layers

    module = tiny_module("llama", **sizes) if module is None else module
    config = {"rank": 2, "scale": 3.0, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(module, 3, config, use_dora=dora)
    for path, part in module.named_modules():
        if "lora_b" in part:
            key = mx.random.key(len(path))
            part.lora_a = 0.3 * mx.random.normal(part.lora_a.shape, key=key)
            part.lora_b = 0.3 * mx.random.normal(part.lora_b.shape, key=mx.random.split(key)[0])
    return module


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize(
    ("where", "tied"),
    [(where, tied) for where in KEYS for tied in (False, True) if not (tied and where == "lm_head")],
)
def test_an_adapted_model_has_every_hook_point_and_its_adapted_weights(where, dora, tied):
    keys = [key for key in KEYS[where] if not (tied and key == "lm_head")]
    module = adapted(keys, dora=dora, tie_word_embeddings=tied)
    plain = tiny_module("llama", tie_word_embeddings=tied)

    model = InterpretableModel(module, ByteTokenizer())

    assert [name for name, c in model.capabilities.items() if not c.available] == []
    assert mx.array_equal(model.logits(PROMPT), module(mx.array([PROMPT])))
    assert not close(model.logits(PROMPT), plain(mx.array([PROMPT])), 1e-2)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "4-bit"])
def test_what_the_weights_say_is_what_the_adapted_model_computes(dora, quantized):
    module = tiny_module("llama", hidden_size=64, head_dim=32, intermediate_size=64)
    if quantized:
        nn.quantize(module, group_size=32, bits=4, class_predicate=lambda _, m: isinstance(m, nn.Linear))
    model = InterpretableModel(adapted(KEYS["every kind"], dora=dora, module=module), ByteTokenizer())
    trace = model.trace(PROMPT, capture=["L1.z", "L1.attn_out", "L2.resid_post"])

    heads, bias = model.architecture.head_outputs(1, trace["L1.z"])
    tokens = mx.array([5, 70])
    directions, constants = model.architecture.logit_directions(tokens)
    resid = trace["L2.resid_post"]
    logits = model.architecture.norm_scale(resid) * (resid @ directions.T) + constants

    assert close(mx.sum(heads, axis=-2) + bias, trace["L1.attn_out"], 1e-4)
    assert close(logits, trace.logits[..., tokens], 1e-4)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_rows_of_an_adapted_layer_are_its_answers_to_the_identity(dora):
    from mlxterp.core.architecture import linear

    module = adapted(KEYS["every kind"], dora=dora)
    layer, embedding = module.model.layers[1].self_attn.o_proj, module.model.embed_tokens

    assert close(linear.rows(layer), layer(mx.eye(32)).T)
    assert close(linear.rows(layer, mx.array([3, 1])), layer(mx.eye(32)).T[mx.array([3, 1])])
    assert close(linear.rows(embedding), embedding(mx.arange(SIZES["vocab_size"])))
    assert (linear.width(layer), linear.n_rows(embedding)) == (32, SIZES["vocab_size"])


def save_adapter(folder, module: nn.Module, keys: list[str]) -> None:
    weights = {n: v for n, v in tree_flatten(module.parameters()) if n.rsplit(".", 1)[-1].startswith("lora_")}
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    parameters = {"rank": 2, "scale": 3.0, "dropout": 0.1, "keys": keys}
    config = {"fine_tune_type": "lora", "num_layers": 3, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_an_adapter_is_loaded_from_the_directory_that_mlx_lm_wrote(tmp_path):
    keys = KEYS["every kind"]
    expected = adapted(keys, dora=False)
    save_adapter(tmp_path, expected, keys)

    model = InterpretableModel(tiny_module("llama"), ByteTokenizer(), adapter_path=tmp_path)

    assert mx.array_equal(model.logits(PROMPT), expected(mx.array([PROMPT])))
    assert model.facts["adapter"] == tmp_path.name
    assert model.digest == InterpretableModel(expected).digest


def test_an_adapter_of_another_model_is_refused_and_not_left_out(tmp_path):
    keys = KEYS["o_proj"]
    save_adapter(tmp_path, adapted(keys, dora=False, hidden_size=64), keys)

    with pytest.raises(ModelNotFound, match=r"does not fit llama|cannot load it into llama"):
        InterpretableModel(tiny_module("llama"), adapter_path=tmp_path)


def test_a_directory_without_an_adapter_says_what_is_needed(tmp_path):
    with pytest.raises(ModelNotFound, match=r"no adapter_config\.json .* adapters\.safetensors"):
        InterpretableModel(tiny_module("llama"), adapter_path=tmp_path)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_edges_of_an_adapted_model_are_estimated_and_patched(dora):
    keys = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    model = InterpretableModel(adapted(keys, dora=dora), ByteTokenizer())
    other = [*PROMPT[:4], 60, *PROMPT[5:]]

    scores = edge_attribution(model, PROMPT, other, answer=5, foil=9)
    run = EdgeRun(model, np.array([PROMPT]), np.array([other]))
    every = run.logits(np.ones((1, run.n_edges), dtype=bool))[0, 0]

    assert np.allclose(every, np.array(model.logits(other)[0, -1]), atol=1e-4)
    of_one_gradient = {"component": "z", "layers": [2], "steps": 1, "verify": 0}
    nodes = attribution_patching(
        model, PROMPT, other, direction="noising", answer=5, foil=9, **of_one_gradient
    )
    of_head = [s for e, s in zip(scores.edges, scores.scores, strict=True) if e.startswith("L2.H1→")]
    assert sum(of_head) == pytest.approx(nodes.effects[0, 1], abs=1e-4)
