"""Read a GGUF file into a model of mlx-lm: names, the order of rotary rows, quantised weights.

Architectures: llama, as the format calls it (Llama, Mistral, SmolLM and the like without scaled rotary
positions or experts). What the file holds beyond that is refused, because leaving a tensor out gives a model
that is wrong quietly. The tokenizer is in `tokenizer.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlxterp.errors import ModelNotFound, UnsupportedArchitecture
from mlxterp.models.mlx_lm_classes import model_module
from mlxterp.models.tokenizer import GgufTokenizer, from_metadata

GROUP = 32  # weights per scale in the quantised formats Q4_0, Q4_1 and Q8_0

_INSTEAD = "Load the model from a directory in mlx-lm's format instead."
_IN_A_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class Read(NamedTuple):
    """What a file holds: the model, its tokenizer, and the configuration as transformers writes it."""

    module: nn.Module
    tokenizer: GgufTokenizer
    config: dict[str, Any]


def read(path: Path, *, quantized: bool = False) -> Read:
    """The model in a GGUF file, in float32, or with its quantised weights as they are.

    Scales are float32 either way: with float16 scales MLX computes quantised products in half precision,
    which is ten times slower on a CPU and moves the logits.

    Raises:
        ModelNotFound: the file is no GGUF file.
        UnsupportedArchitecture: it holds a model that is not read here; says what it is.
    """
    tensors, metadata = _open(path)
    config = _config(tensors, metadata, path)
    weights = {_name(name, path): value for name, value in tensors.items()}
    for name in weights:
        if "q_proj" in name:
            weights[name] = deinterleave(weights[name], config["num_attention_heads"])
        elif "k_proj" in name:
            weights[name] = deinterleave(weights[name], config["num_key_value_heads"])
    return Read(assemble(config, weights, quantized=quantized), from_metadata(metadata), config)


def deinterleave(rows: mx.array, n_heads: int) -> mx.array:
    """Undo llama.cpp's order of the rows of q and k.

    Rotary positions turn pairs of dimensions. llama.cpp stores a pair's two rows one after the other, mlx-lm
    and transformers store all first halves, then all second ones. Only the output dimension is touched, so
    packed quantised weights, scales and biases are reordered the same way.
    """
    pairs = rows.reshape(n_heads, rows.shape[0] // n_heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def assemble(config: Mapping[str, Any], weights: Mapping[str, mx.array], *, quantized: bool) -> nn.Module:
    """The mlx-lm module of this configuration with these weights, named as mlx-lm names them."""
    llama = model_module("llama")
    module: nn.Module = llama.Model(llama.ModelArgs.from_dict(config))
    packed = {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}
    bits = {name: _bits(weights, name) for name in packed}
    values: dict[str, mx.array] = {}
    for name, value in weights.items():
        layer, _, leaf = name.rpartition(".")
        if layer not in packed:
            values[name] = value.astype(mx.float32)
        elif quantized:
            values[name] = value if leaf == "weight" else value.astype(mx.float32)
        elif leaf == "weight":
            scales, biases = (weights[f"{layer}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            values[name] = mx.dequantize(value, scales, biases, group_size=GROUP, bits=bits[layer])
    if quantized:
        nn.quantize(
            module,
            class_predicate=lambda path, _: (
                {"group_size": GROUP, "bits": bits[path]} if path in packed else False
            ),
        )
    try:
        module.load_weights(list(values.items()))
    except ValueError as error:
        raise UnsupportedArchitecture(f"The tensors are not those of a llama: {error}. {_INSTEAD}") from error
    mx.eval(module.parameters())
    return module


def _bits(weights: Mapping[str, mx.array], layer: str) -> int:
    """Bits per weight, from the number of 32-bit words for each group."""
    words, groups = weights[f"{layer}.weight"].shape[-1], weights[f"{layer}.scales"].shape[-1]
    return int(words * 32 // (groups * GROUP))


def _open(path: Path) -> tuple[dict[str, mx.array], dict[str, Any]]:
    try:
        loaded: Any = mx.load(str(path), format="gguf", return_metadata=True)
    except (RuntimeError, ValueError) as error:
        raise ModelNotFound(f"{path} cannot be read as a GGUF file: {error}. Is the file whole?") from error
    tensors, metadata = loaded
    return tensors, metadata


def _name(tensor: str, path: Path) -> str:
    """mlx-lm's name of a tensor."""
    layer, name, leaf = re.fullmatch(r"(?:blk\.(\d+)\.)?(.+)\.(\w+)", tensor).groups()  # type: ignore[union-attr]
    known = _OUTSIDE if layer is None else _IN_A_LAYER
    if name not in known:
        raise UnsupportedArchitecture(
            f"{path.name} holds the tensor {tensor!r}, which a plain llama does not have. {_INSTEAD}"
        )
    return f"{known[name]}.{leaf}" if layer is None else f"model.layers.{layer}.{known[name]}.{leaf}"


def _config(tensors: Mapping[str, mx.array], metadata: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The file's metadata in the words of mlx-lm and transformers."""
    family = metadata.get("general.architecture")
    if family != "llama":
        raise UnsupportedArchitecture(
            f"{path.name} holds a model of the architecture {family!r}; what is read here is 'llama'. "
            f"{_INSTEAD}"
        )

    def value(key: str, otherwise: Any = None) -> Any:
        found = metadata.get(f"llama.{key}", otherwise)
        return found.item() if isinstance(found, mx.array) else found

    n_heads, width = value("attention.head_count"), value("embedding_length")
    d_head = value("attention.key_length", width // n_heads)
    if value("rope.dimension_count", d_head) != d_head or value("rope.scaling.type", "none") != "none":
        raise UnsupportedArchitecture(
            f"{path.name} scales its rotary positions or turns only part of a head. {_INSTEAD}"
        )
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "num_hidden_layers": value("block_count"),
        "intermediate_size": value("feed_forward_length"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": value("attention.head_count_kv", n_heads),
        "head_dim": d_head,
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": value("context_length"),
        "rope_theta": value("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": "float32",
    }
