"""Files of every family, written as llama.cpp's converter writes them, read into the model they came from.

The names, the order of rows and the shift of norms are written down here a second time, by hand: a mistake in
mlxterp.models.gguf is not repeated by what it is compared with.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf as gguf_package
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxterp.errors import ModelNotFound, UnsupportedArchitecture
from mlxterp.models import gguf
from tests.tiny_models import SIZES, randomise

TOKENS = mx.array([[5, 17, 100, 3, 99, 17, 64, 2, 8, 1]])
N_HEADS, N_KV_HEADS = SIZES["num_attention_heads"], SIZES["num_key_value_heads"]

IN_A_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
}
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.wte": "token_embd",
    "model.wpe": "position_embd",
    "model.ln_f": "output_norm",
}
PIECES = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab", "  ", *(f"<0x{i:02X}>" for i in range(100))]
GPT2 = {
    "n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64, "layer_norm_epsilon": 1e-5,
}  # fmt: skip
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

# name of the case -> (architecture in the file, mlx-lm's module, its sizes, more metadata)
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", "llama", {}, {}),
    "llama with biases": ("llama", "llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "llama scaled": (
        "llama", "llama", {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "llama 3.1": ("llama", "llama", {"rope_scaling": LLAMA_3, "rope_theta": 500_000.0}, {}),
    "mistral": ("llama", "llama", {"model_type": "mistral", "tie_word_embeddings": True}, {}),
    "smollm3": ("smollm3", "smollm3", {"num_hidden_layers": 5}, {}),
    "qwen2": ("qwen2", "qwen2", {}, {}),
    "qwen3": ("qwen3", "qwen3", {"head_dim": 16}, {}),
    "gemma2": (
        "gemma2", "gemma2",
        {"query_pre_attn_scalar": 8.0, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
        {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
    ),
    "gemma2 27B": (
        "gemma2", "gemma2",
        {"num_hidden_layers": 46, "head_dim": 16, "query_pre_attn_scalar": 8.0},
        {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3": (
        "gemma3", "gemma3_text",
        {
            "num_hidden_layers": 7, "sliding_window": 4, "query_pre_attn_scalar": 8, "rope_theta": 1e6,
            "rms_norm_eps": 1e-6,
        },
        {"attention.sliding_window": 4},
    ),
    "phi3": ("phi3", "phi3", {"hidden_size": 32}, {}),
    "phi3, half of a head turned": (
        "phi3", "phi3", {"partial_rotary_factor": 0.5}, {"rope.dimension_count": 4},
    ),
    "gpt2": ("gpt2", "gpt2", GPT2, {}),
}  # fmt: skip


def random_module(case: str) -> nn.Module:
    _, name, differs, _ = CASES[case]
    classes = importlib.import_module(f"mlx_lm.models.{name}")
    module = classes.Model(classes.ModelArgs.from_dict({"model_type": name, **SIZES, **differs}))
    randomise(module)
    return module


def as_llama_cpp_has_it(architecture: str, name: str, value: np.ndarray) -> np.ndarray:
    """One parameter after `convert_hf_to_gguf.py`."""
    if architecture in ("llama", "smollm3") and ("q_proj" in name or "k_proj" in name):
        heads = N_HEADS if "q_proj" in name else N_KV_HEADS
        pairs = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
        return pairs.swapaxes(1, 2).reshape(value.shape)
    if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        return value + 1
    return value


def name_in_the_file(architecture: str, name: str) -> str:
    module, leaf = name.rsplit(".", 1)
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{leaf}"
    _, _, layer, part = module.split(".", 3)
    known = IN_A_LAYER | (GEMMA if architecture.startswith("gemma") else {})
    return f"blk.{layer}.{known[part]}.{leaf}"


def write(
    path: Path,
    case: str,
    module: nn.Module,
    kinds: Mapping[str, Any] | None = None,
    *,
    prefix: bool = True,
    **changes: Any,
) -> Path:
    """A whole file; `kinds` are quantisations by a part of a tensor's name."""
    architecture, _, _, more = CASES[case]
    args = module.args
    writer = gguf_package.GGUFWriter(str(path), architecture)
    writer.add_context_length(args.n_ctx if architecture == "gpt2" else 256)
    writer.add_embedding_length(32)
    writer.add_block_count(args.n_layer if architecture == "gpt2" else args.num_hidden_layers)
    writer.add_feed_forward_length(48)
    writer.add_head_count(N_HEADS)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_head_count_kv(N_KV_HEADS)
        writer.add_layer_norm_rms_eps(args.rms_norm_eps)
        writer.add_rope_freq_base(args.rope_theta)
        if architecture in ("qwen3", "gemma2", "gemma3", "llama"):
            writer.add_key_length(args.head_dim)
    for key, value in more.items():
        full = f"{architecture}.{key}"
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        (writer.add_float32 if isinstance(value, float) else add)(full, value)
    add_tokenizer(writer, prefix=prefix)
    for name, value in tree_flatten(module.parameters()):
        stored = as_llama_cpp_has_it(architecture, name, np.array(value))
        tensor = name_in_the_file(architecture, name)
        kind = next((each for part, each in (kinds or {}).items() if part in tensor), None)
        if kind is None:
            writer.add_tensor(tensor, stored)
        else:
            writer.add_tensor(tensor, gguf_package.quants.quantize(stored, kind), raw_dtype=kind)
    for tensor, value in changes.items():
        writer.add_tensor(tensor, value)
    if case == "llama 3.1":
        base = args.rope_theta ** (np.arange(0, 8, 2) / 8)
        scaled = np.array(module.model.layers[0].self_attn.rope._freqs)
        writer.add_tensor("rope_freqs.weight", (scaled / base).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: Any, *, prefix: bool = True) -> None:
    kinds = [2, 3, 3, 1, 1, 1, 1, 1, 4]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_scores([-float(i) for i in range(109)])
    writer.add_token_types(kinds + [6] * 100)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(prefix)


@pytest.mark.parametrize("case", CASES)
def test_a_file_is_read_into_the_model_it_was_written_from(case: str, tmp_path: Path):
    original = random_module(case)

    read = gguf.read(write(tmp_path / "tiny.gguf", case, original))

    expected = original(TOKENS)
    assert mx.abs(read.module(TOKENS) - expected).max() <= 1e-4 * mx.maximum(1, mx.abs(expected).max())


@pytest.mark.parametrize("case", ["llama", "gemma3"])
def test_without_what_llama_cpp_changed_undone_it_is_another_model(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    original = random_module(case)
    path = write(tmp_path / "tiny.gguf", case, original)
    monkeypatch.setattr(gguf, "_undone", lambda _name, value, *_: value)

    assert mx.abs(gguf.read(path).module(TOKENS) - original(TOKENS)).max() > 1e-2


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16"])
def test_quantised_tensors_have_the_values_that_the_format_gives_them(kind: str, tmp_path: Path):
    original = random_module("llama")
    number = gguf_package.GGMLQuantizationType[kind]

    read = gguf.read(write(tmp_path / "tiny.gguf", "llama", original, {"attn_v": number}))

    weights = np.array(original.model.layers[0].self_attn.v_proj.weight)
    stored = gguf_package.quants.dequantize(gguf_package.quants.quantize(weights, number), number)
    assert np.array_equal(read.module.model.layers[0].self_attn.v_proj.weight, stored)
    assert 0 < np.abs(stored - weights).max() < 0.2


def test_a_tensor_type_without_a_formula_is_named(tmp_path: Path):
    original = random_module("gpt2")
    path = write(tmp_path / "tiny.gguf", "gpt2", original)
    file = gguf.gguf_file.read(path)
    kind = gguf_package.GGMLQuantizationType.I8
    odd = file.tensors["blk.0.ffn_up.weight"]._replace(kind=int(kind))

    with pytest.raises(UnsupportedArchitecture, match=r"'blk\.0\.ffn_up\.weight' is of the type I8"):
        gguf.gguf_file.to_float32(odd, "blk.0.ffn_up.weight")


def test_quantised_weights_that_mlx_cannot_keep_are_named(tmp_path: Path):
    kinds = {"attn_v": gguf_package.GGMLQuantizationType.Q5_1}
    path = write(tmp_path / "tiny.gguf", "llama", random_module("llama"), kinds)

    with pytest.raises(UnsupportedArchitecture, match="has 3 tensors in Q5_1"):
        gguf.read(path, quantized=True)


def test_factors_of_rotary_frequencies_that_are_not_llama_3s_are_refused(tmp_path: Path):
    path = write(
        tmp_path / "tiny.gguf",
        "llama",
        random_module("llama"),
        **{"rope_freqs.weight": np.array([1, 5, 2, 3], np.float32)},
    )

    with pytest.raises(UnsupportedArchitecture, match=r"rope_freqs\.weight.*not those of Llama 3\.1"):
        gguf.read(path)


def test_an_unembedding_beside_gpt2s_is_read_only_if_it_is_the_embedding(tmp_path: Path):
    original = random_module("gpt2")
    embedding = np.array(original.model.wte.weight)
    same = write(tmp_path / "same.gguf", "gpt2", original, **{"output.weight": embedding})
    other = write(tmp_path / "other.gguf", "gpt2", original, **{"output.weight": embedding + 1})

    assert mx.allclose(gguf.read(same).module(TOKENS), original(TOKENS), atol=1e-4)
    with pytest.raises(UnsupportedArchitecture, match=r"holds the tensor 'output\.weight'"):
        gguf.read(other)


def test_a_file_that_is_cut_off_is_refused_and_says_where(tmp_path: Path):
    path = write(tmp_path / "tiny.gguf", "llama", random_module("llama"))
    whole = path.read_bytes()

    for length in (len(whole) - 40, 400, 10):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelNotFound, match="not whole"):
            gguf.read(path)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        (True, ["<s>", "▁ab", "  ", "▁", "b", "a", "▁", "<0x0A>"]),  # a prefix behind a whole token, too
        (False, ["<s>", "ab", "  ", "b", "a", "▁", "<0x0A>"]),
    ],
)
def test_sentencepiece_joins_pieces_by_score_and_falls_back_to_bytes(
    prefix: bool, expected: list[str], tmp_path: Path
):
    path = write(tmp_path / "tiny.gguf", "llama", random_module("llama"), prefix=prefix)
    tokenizer = gguf.read(path).tokenizer

    ids = tokenizer.encode("ab  ba \n")

    assert [PIECES[i] for i in ids] == expected
    if not prefix:
        assert tokenizer.decode(ids[1:]) == "ab  ba \n"
