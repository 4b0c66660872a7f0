"""A GGUF file of a tiny llama, and a wheel with one in it: reading and fetching can be tested in full."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from tokenizers.pre_tokenizers import ByteLevel

from mlxterp.models.fetch import ModelFile, Wheel
from mlxterp.models.mlx_lm_classes import model_module

N_HEADS, N_KV_HEADS, D_MODEL, D_MLP, N_LAYERS = 4, 2, 64, 96, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "c a", "ca t"]
VOCABULARY = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_llama(*, tied: bool = True) -> nn.Module:
    """The model that the files hold, with random weights."""
    llama = model_module("llama")
    mx.random.seed(0)
    module: nn.Module = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=D_MODEL,
            num_hidden_layers=N_LAYERS,
            intermediate_size=D_MLP,
            num_attention_heads=N_HEADS,
            num_key_value_heads=N_KV_HEADS,
            rms_norm_eps=1e-5,
            vocab_size=len(VOCABULARY),
            rope_theta=5000.0,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
        )
    )
    module.update({"model": {"norm": {"weight": mx.random.uniform(0.5, 1.5, (D_MODEL,))}}})
    mx.eval(module.parameters())
    return module


def tensors(module: nn.Module) -> dict[str, mx.array]:
    """The model's weights under the format's names, q and k in llama.cpp's order."""
    found = {}
    for name, value in tree_flatten(module.parameters()):
        heads = N_HEADS if "q_proj" in name else N_KV_HEADS if "k_proj" in name else 0
        if heads:  # what convert_hf_to_gguf.py does
            value = (
                value.reshape(heads, 2, value.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
            )
        found[_name(name)] = value
    return found


def _name(name: str) -> str:
    outside = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outside:
        return outside[name]
    _, _, layer, part = name.split(".", 3)
    part, leaf = part.rsplit(".", 1)
    return f"blk.{layer}.{_NAMES[part]}.{leaf}"


def metadata(**changes: Any) -> dict[str, Any]:
    """What such a file says about itself, with `changes`; None takes an entry out, `__` stands for a dot."""
    found = {
        "general.architecture": "llama",
        "llama.embedding_length": mx.array(D_MODEL, mx.uint32),
        "llama.block_count": mx.array(N_LAYERS, mx.uint32),
        "llama.feed_forward_length": mx.array(D_MLP, mx.uint32),
        "llama.attention.head_count": mx.array(N_HEADS, mx.uint32),
        "llama.attention.head_count_kv": mx.array(N_KV_HEADS, mx.uint32),
        "llama.attention.layer_norm_rms_epsilon": mx.array(1e-5),
        "llama.rope.freq_base": mx.array(5000.0),
        "llama.context_length": mx.array(256, mx.uint32),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": VOCABULARY,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.token_type": mx.array([3] * len(SPECIAL) + [1] * (len(VOCABULARY) - len(SPECIAL))),
        "tokenizer.ggml.eos_token_id": mx.array(2, mx.uint32),
        "tokenizer.ggml.bos_token_id": mx.array(1, mx.uint32),
        "tokenizer.ggml.add_bos_token": mx.array(0, mx.uint32),
        "tokenizer.chat_template": TEMPLATE,
    }
    found |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in found.items() if value is not None}


def write(path: Path, module: nn.Module | None = None, **changes: Any) -> Path:
    """A whole file."""
    mx.save_gguf(str(path), tensors(module or tiny_llama()), metadata(**changes))
    return path


def model_file(directory: Path, gguf: Path, *, parts: int = 1) -> ModelFile:
    """Wheels with this file in them, as pip takes them from a directory, and what describes them."""
    whole = gguf.read_bytes()
    step = -(-len(whole) // parts)
    return ModelFile(
        wheels=tuple(_wheel(directory, i, whole[i * step : (i + 1) * step]) for i in range(parts)),
        file="tiny.gguf",
        sha256=hashlib.sha256(whole).hexdigest(),
        size=len(whole),
    )


def _wheel(directory: Path, part: int, content: bytes) -> Wheel:
    project = "tiny_model_for_tests" + (f"_part{part}" if part else "")
    file, info = directory / f"{project}-1.0-py3-none-any.whl", f"{project}-1.0.dist-info"
    named = project.replace("_", "-")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny/tiny.gguf", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {named}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(
        requirement=f"{named}==1.0",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        size=file.stat().st_size,
        member="tiny/tiny.gguf",
    )
