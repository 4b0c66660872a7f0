"""A GGUF file as a model of mlx-lm: which module, which configuration, which tensor is which parameter.

Architectures are those of `FAMILIES`. Names of tensors come from the `gguf` package's map, which knows those
of transformers and mlx-lm; what llama.cpp changes when it converts a model stands in the table here. What a
file holds beyond that is refused, because leaving a tensor out gives a model that is wrong quietly. The bytes
are read in `gguf_file.py`, the tokenizer in `tokenizer.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlxterp.errors import UnsupportedArchitecture
from mlxterp.models import gguf_file
from mlxterp.models.gguf_file import GgufFile
from mlxterp.models.mlx_lm_classes import model_module
from mlxterp.models.tokenizer import GgufTokenizer, from_metadata

GROUP = 32  # weights per scale in the quantised formats Q4_0, Q4_1 and Q8_0
PACKED = ("Q4_0", "Q4_1", "Q8_0")
"""The quantisations that MLX computes with as they are."""

_INSTEAD = "Load the model from a directory in mlx-lm's format instead."
Values = Callable[..., Any]
"""`value("block_count")`: an entry of this architecture's metadata; a second argument if it is absent."""


def _nothing(_: Values) -> dict[str, Any]:
    return {}


def _gemma2(value: Values) -> dict[str, Any]:
    return {
        "attn_logit_softcapping": value("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": value("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _query_scalar(value, largest=46),
    }


def _gemma3(value: Values) -> dict[str, Any]:
    return {
        "query_pre_attn_scalar": _query_scalar(value, largest=62),
        "rope_local_base_freq": value("rope.freq_base_swa", 10_000.0),
        "sliding_window": value("attention.sliding_window", 512),
        "sliding_window_pattern": 6,  # five layers of local attention, then a global one
    }


def _query_scalar(value: Values, *, largest: int) -> int:
    """What queries are scaled by: the width of a head, but for the model of 27B in its generation.

    No file holds it, so that one is known by its number of layers.
    """
    if value("block_count") == largest:
        return int(value("embedding_length")) // int(value("attention.head_count"))
    return int(value("attention.key_length"))


def _gpt2(value: Values) -> dict[str, Any]:
    return {
        "n_ctx": value("context_length"),
        "n_positions": value("context_length"),
        "n_embd": value("embedding_length"),
        "n_head": value("attention.head_count"),
        "n_layer": value("block_count"),
        "layer_norm_epsilon": value("attention.layer_norm_epsilon"),
    }


@dataclass(frozen=True)
class GgufFamily:
    """What llama.cpp makes of a family, and what its files leave out.

    Attributes:
        model_type: mlx-lm's module.
        architectures: as transformers names the class.
        interleaved: whether the rows of q and k are stored by pairs of rotary dimensions.
        norm_shift: what was added to norm weights.
        rotary: whether positions are rotary.
        partial_rotary: whether mlx-lm's module can turn a part of each head only.
        config: what the configuration has beyond the common part.
    """

    model_type: str
    architectures: str
    interleaved: bool = False
    norm_shift: float = 0.0
    rotary: bool = True
    partial_rotary: bool = False
    config: Callable[[Values], dict[str, Any]] = field(default=_nothing)


FAMILIES: dict[str, GgufFamily] = {
    "llama": GgufFamily("llama", "LlamaForCausalLM", interleaved=True),  # Mistral and SmolLM too
    "smollm3": GgufFamily("smollm3", "SmolLM3ForCausalLM", interleaved=True),
    "qwen2": GgufFamily("qwen2", "Qwen2ForCausalLM"),
    "qwen3": GgufFamily("qwen3", "Qwen3ForCausalLM"),
    "gemma2": GgufFamily("gemma2", "Gemma2ForCausalLM", norm_shift=1.0, config=_gemma2),
    "gemma3": GgufFamily("gemma3_text", "Gemma3ForCausalLM", norm_shift=1.0, config=_gemma3),
    "phi3": GgufFamily("phi3", "Phi3ForCausalLM", partial_rotary=True),
    "gpt2": GgufFamily("gpt2", "GPT2LMHeadModel", rotary=False, config=_gpt2),
}
"""By `general.architecture` of a file."""


class Read(NamedTuple):
    """What a file holds: the model, its tokenizer, and the configuration as transformers writes it."""

    module: nn.Module
    tokenizer: GgufTokenizer
    config: dict[str, Any]


def read(path: Path, *, quantized: bool = False) -> Read:
    """The model in a GGUF file, in float32, or with its quantised weights as they are.

    Costs about 10 CPU seconds a billion weights. Scales of quantised weights are float32: with float16 scales
    MLX computes quantised products in half precision, ten times slower on a CPU, and the logits move.

    Raises:
        ModelNotFound: the file is no whole GGUF file.
        UnsupportedArchitecture: it holds a model or tensors that are not read here; says what they are.
    """
    file = gguf_file.read(path)
    family, config = _describe(file)
    tokenizer = from_metadata(file.metadata)
    names = _names_of_parameters(file, config)
    if quantized:
        stored = _packed(file)
        weights = {
            _renamed(parameter, leaf): stored[_renamed(tensor, leaf)]
            for parameter, tensor in names.items()
            for leaf in ("", "scales", "biases")
            if _renamed(tensor, leaf) in stored
        }
        for name in weights:
            weights[name] = _undone(name, weights[name], family, config)
    else:
        weights = {
            parameter: mx.array(
                _undone(parameter, gguf_file.to_float32(file.tensors[tensor], tensor), family, config)
            )
            for parameter, tensor in names.items()
        }
    return Read(assemble(config, weights, quantized=quantized), tokenizer, config)


def _renamed(name: str, leaf: str) -> str:
    """The name beside a weight: of its scales, of its biases, or of itself."""
    return f"{name.removesuffix('.weight')}.{leaf}" if leaf and name.endswith(".weight") else name


def _undone(name: str, value: Any, family: GgufFamily, config: Mapping[str, Any]) -> Any:
    """The parameter as it was before llama.cpp converted it."""
    if family.interleaved and ".q_proj." in name:
        return deinterleave(value, config["num_attention_heads"])
    if family.interleaved and ".k_proj." in name:
        return deinterleave(value, config["num_key_value_heads"])
    if family.norm_shift and name.endswith("norm.weight"):
        return value - family.norm_shift
    return value


def deinterleave(rows: Any, n_heads: int) -> Any:
    """Undo llama.cpp's order of the rows of q and k.

    Rotary positions turn pairs of dimensions. llama.cpp stores a pair's two rows one after the other, mlx-lm
    and transformers store all first halves, then all second ones. Only the output dimension is touched, so
    packed quantised weights, scales and biases are reordered the same way.
    """
    pairs = rows.reshape(n_heads, rows.shape[0] // n_heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def assemble(config: Mapping[str, Any], weights: Mapping[str, mx.array], *, quantized: bool) -> nn.Module:
    """The mlx-lm module of this configuration with these weights, named as mlx-lm names them."""
    module = _module(config)
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
    # mlx-lm's own loading calls it too; Gemma's takes its unembedding out there if the weights have none.
    prepare = getattr(type(module), "sanitize", None)
    if prepare is not None:
        values = prepare(module, values)
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
        raise UnsupportedArchitecture(
            f"The tensors are not those of a {config['model_type']}: {error}. {_INSTEAD}"
        ) from error
    mx.eval(module.parameters())
    return module


def _module(config: Mapping[str, Any]) -> nn.Module:
    classes = model_module(config["model_type"])
    module: nn.Module = classes.Model(classes.ModelArgs.from_dict(config))
    return module


def _bits(weights: Mapping[str, mx.array], layer: str) -> int:
    """Bits per weight, from the number of 32-bit words for each group."""
    words, groups = weights[f"{layer}.weight"].shape[-1], weights[f"{layer}.scales"].shape[-1]
    return int(words * 32 // (groups * GROUP))


def _packed(file: GgufFile) -> dict[str, mx.array]:
    """The tensors as MLX reads them: quantised ones as weights, scales and biases."""
    others = Counter(gguf_file.type_name(t.kind) for t in file.tensors.values()) - Counter()
    unfit = {kind: n for kind, n in others.items() if kind not in (*PACKED, "F32", "F16")}
    if unfit:
        raise UnsupportedArchitecture(
            f"quantized=True keeps {', '.join(PACKED)}, which MLX computes with; {file.path.name} has "
            f"{', '.join(f'{n} tensors in {kind}' for kind, n in unfit.items())}. Load it without "
            "quantized=True, in float32."
        )
    loaded: Any = mx.load(str(file.path), format="gguf")
    return dict(loaded)


def _names_of_parameters(file: GgufFile, config: Mapping[str, Any]) -> dict[str, str]:
    """By parameter of the module, its tensor in the file; every tensor has to be one.

    Raises:
        UnsupportedArchitecture: naming the tensors that the module has no place for.
    """
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    known = {name: number for number, name in MODEL_ARCH_NAMES.items()}[file.metadata["general.architecture"]]
    table = get_tensor_name_map(known, config["num_hidden_layers"])
    found: dict[str, str] = {}
    for parameter, _ in tree_flatten(_module(config).parameters()):
        for spelled in (parameter, parameter.replace("model.", "transformer.", 1)):
            tensor: str | None = table.get_name(spelled, try_suffixes=(".weight", ".bias"))
            if tensor is not None and tensor in file.tensors:
                found[parameter] = tensor
    beyond = sorted(set(file.tensors) - {*found.values(), *_without_parameter(file, config)})
    if beyond:
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise UnsupportedArchitecture(
            f"{file.path.name} holds the tensor {beyond[0]!r}{more}, which a plain "
            f"{config['model_type']} does not have. {_INSTEAD}"
        )
    return found


def _without_parameter(file: GgufFile, config: Mapping[str, Any]) -> set[str]:
    """Tensors that say nothing beyond the parameters: a copy of the embedding, factors that `config` has."""
    ours = {"rope_freqs.weight"} if "rope_freqs.weight" in file.tensors else set()
    output, embedding = (file.tensors.get(name) for name in ("output.weight", "token_embd.weight"))
    if config["model_type"] == "gpt2" and output is not None and embedding is not None:
        same = output.kind == embedding.kind and np.array_equal(output.data, embedding.data)
        ours |= {"output.weight"} if same else set()
    return ours


def _describe(file: GgufFile) -> tuple[GgufFamily, dict[str, Any]]:
    """The file's family, and its metadata in the words of mlx-lm and transformers."""
    architecture = file.metadata.get("general.architecture")
    if architecture not in FAMILIES:
        raise UnsupportedArchitecture(
            f"{file.path.name} holds a model of the architecture {architecture!r}; read here are "
            f"{', '.join(map(repr, FAMILIES))}. {_INSTEAD}"
        )
    family, metadata, tensors = FAMILIES[architecture], file.metadata, file.tensors

    def value(key: str, *otherwise: Any) -> Any:
        full = f"{architecture}.{key}"
        if full not in metadata and not otherwise:
            raise UnsupportedArchitecture(f"{file.path.name} does not say its {full!r}. {_INSTEAD}")
        return metadata.get(full, *otherwise)

    n_heads, width = value("attention.head_count"), value("embedding_length")
    n_kv_heads = value("attention.head_count_kv", n_heads)
    if not all(isinstance(n, int) for n in (n_heads, n_kv_heads, value("feed_forward_length"))):
        raise UnsupportedArchitecture(f"{file.path.name} has layers of different sizes. {_INSTEAD}")
    d_head = value("attention.key_length", width // n_heads)
    config = {
        "model_type": family.model_type,
        "architectures": [family.architectures],
        "hidden_size": width,
        "num_hidden_layers": value("block_count"),
        "intermediate_size": value("feed_forward_length"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "head_dim": d_head,
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon", 1e-5),
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": value("context_length"),
        "rope_theta": value("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "torch_dtype": "float32",
    }
    return family, config | _rotary(file, family, value, d_head) | family.config(value)


def _rotary(file: GgufFile, family: GgufFamily, value: Values, d_head: int) -> dict[str, Any]:
    """What the configuration says of rotary positions beyond their base: a part of each head, a scaling."""
    if not family.rotary:
        return {}
    turned, scaling = value("rope.dimension_count", d_head), value("rope.scaling.type", "none")
    long = [name for name in file.tensors if name.startswith("rope_factors")]
    if (turned != d_head and not family.partial_rotary) or scaling not in ("none", "linear") or long:
        what = f"of the type {scaling!r}" if scaling != "none" else f"by {', '.join(long) or 'a part only'}"
        raise UnsupportedArchitecture(
            f"{file.path.name} scales its rotary positions {what}, or turns only part of a head ({turned} of "
            f"{d_head} dimensions), which is not read here. {_INSTEAD}"
        )
    found: dict[str, Any] = {"partial_rotary_factor": turned / d_head} if family.partial_rotary else {}
    if scaling == "linear":
        found["rope_scaling"] = {"type": "linear", "factor": value("rope.scaling.factor")}
    elif "rope_freqs.weight" in file.tensors:
        factors = gguf_file.to_float32(file.tensors["rope_freqs.weight"], "rope_freqs.weight").reshape(-1)
        found["rope_scaling"] = _llama3_scaling(factors, value("rope.freq_base", 10000.0), file.path)
    return found


def _llama3_scaling(factors: np.ndarray[Any, Any], base: float, path: Path) -> dict[str, Any]:
    """Llama 3.1's scaling, of which a file holds only the factor of each frequency.

    All models with it are scaled from 8192 positions, between wavelengths of a quarter and all of these. The
    factor of the lowest frequency is its third number; the factors that follow have to be the file's.
    """
    factor = float(factors.max())
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    wavelengths = 2 * math.pi * base ** (np.arange(len(factors)) / len(factors))
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(expected, factors, rtol=1e-3):
        raise UnsupportedArchitecture(
            f"{path.name} holds the tensor 'rope_freqs.weight' with factors that are not those of Llama "
            f"3.1's scaling by {factor:g}. {_INSTEAD}"
        )
    return scaling
