"""Small random models of every architecture in mlx-lm, as far as one set of sizes can build it.

One table of sizes by the names that mlx-lm's arguments have; what an architecture needs differently stands in
`DIFFERS`. Where several values are common (router, kinds of layers), they are tried in turn.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import typing
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from tests.tiny_models import FAMILIES, SIZES, randomise

MAX_PARAMETERS = 4_000_000
PROBE = [[1, 2, 3]]
HELPERS = frozenset(("activations", "base", "bitlinear_layers", "cache", "gated_delta", "mla")) | {
    "pipeline",
    "rope_utils",
    "ssm",
    "switch_layers",
}

_NUMBERS: tuple[tuple[int | float, str], ...] = (
    (
        0,
        "pad_token_id",
    ),
    (
        1,
        "n_shared_experts num_shared_experts n_group topk_group first_k_dense_replace decoder_sparse_step "
        "n_groups bos_token_id moe_layer_freq moe_layer_interval layer_freq num_expert_group moe_group "
        "num_nextn",
    ),
    (
        2,
        "num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k full_attention_interval "
        "num_kv_heads n_kv_heads n_head_kv linear_num_key_heads expand mamba_expand eos_token_id "
        "layer_group_size top_k_experts num_key_value_groups num_query_groups mup_width attn_layer_period "
        "expert_layer_period zero_expert_num num_global_key_value_heads interleave_moe_layer_step "
        "global_attn_every_n_layers",
    ),
    (
        3,
        "n_layer n_layers num_layers num_hidden_layers conv_L_cache",
    ),
    (
        4,
        "n_head n_heads num_heads num_experts num_local_experts n_routed_experts sliding_window "
        "conv_kernel linear_num_value_heads linear_conv_kernel_dim mamba_num_heads mamba_n_heads "
        "mamba_d_conv time_step_rank mamba_dt_rank rotary_dim window_size attention_window_size "
        "num_attention_groups group_norm_size mamba_d_head_count d_conv index_topk attention_chunk_size "
        "sliding_window_size moe_num_experts",
    ),
    (
        8,
        "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim state_size mamba_head_dim mamba_d_head "
        "ssm_state_size mamba_d_state linear_key_head_dim linear_value_head_dim kv_channels "
        "query_pre_attn_scalar global_head_dim d_state mamba_headdim index_head_dim index_n_heads "
        "chunk_size swa_head_dim",
    ),
    (
        16,
        "kv_lora_rank q_lora_rank moe_intermediate_size shared_expert_intermediate_size dim_model_base "
        "decay_low_rank_dim gate_low_rank_dim a_low_rank_dim v_low_rank_dim expert_ffn_hidden_size "
        "moe_shared_expert_intermediate_size shared_intermediate_size lora_rank block_multiple_of "
        "hidden_size_per_layer_input intermediate_size_mlp",
    ),
    (
        32,
        "n_embd d_model dim model_dim hidden_size block_dim lru_width mamba_d_ssm conv_dim",
    ),
    (
        48,
        "ffn_hidden_size n_inner hidden_dim intermediate_size d_ff block_ff_dim feed_forward_length "
        "ffn_dim expert_intermediate_size",
    ),
    (
        128,
        "vocab_size vocab_size_per_layer_input",
    ),
    (
        256,
        "n_positions n_ctx max_position_embeddings max_seq_len seq_length "
        "original_max_position_embeddings max_sequence_length model_max_length",
    ),
    (
        0.25,
        "rotary_pct logit_scale",
    ),
    (
        0.5,
        "partial_rotary_factor residual_multiplier",
    ),
    (
        1.0,
        "routed_scaling_factor mup_base block_ffn_dim_multiplier",
    ),
    (
        4.0,
        "logits_scaling",
    ),
    (
        1e-5,
        "layer_norm_epsilon norm_eps norm_epsilon layer_norm_eps rms_norm_eps layernorm_epsilon",
    ),
)
GENERIC: dict[str, Any] = {
    **SIZES,
    **{name: number for number, names in _NUMBERS for name in names.split()},
    **dict.fromkeys(["attention_bias", "mlp_bias", "use_bias", "conv_bias", "bias", "use_qkv_bias"], False),
    **dict.fromkeys(["norm_topk_prob", "use_qk_norm"], True),
    "rope_scaling": None,
    "hidden_act": "silu",
    "mlp_only_layers": [],
    "full_attn_idxs": [1],
    "attention_multiplier": 0.3,
    "embedding_multiplier": 2.0,
    "scale_depth": 1.4,
    "scale_emb": 3.0,
    "time_step_limit": (0.0, 100.0),
    "rotary_emb_base": 10000,
    "mamba_chunk_size": 8,
}
_ALIKE = ["full_attention"] * 3
ROUTERS: tuple[dict[str, Any], ...] = (
    {"scoring_func": "softmax", "topk_method": "greedy"},
    {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
)
KINDS: tuple[dict[str, Any], ...] = (
    {"layer_types": _ALIKE},
    {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window_pattern": 2},
    {"sliding_window_pattern": 2},
    {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    {"layer_types": ["conv", "full_attention", "conv"]},
    {"layer_types": ["mamba", "attention", "mamba"]},
    {"layers_block_type": ["mamba", "attention", "mamba"]},
    {"hybrid_override_pattern": ["M", "*", "-"]},
    {"sliding_window_pattern": "LG"},
    {"block_types": ["recurrent", "attention", "recurrent"]},
)
DIFFERS: dict[str, dict[str, Any]] = {
    **{name: differs for name, differs in FAMILIES.values() if differs},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_ssm": 32},
    "gptj": {"rotary_dim": 4, "n_inner": 48},
    "exaone_moe": {"is_moe_layer": [False, True, True], "mlp_layer_types": ["dense", "sparse", "sparse"]},
    "gemma4_text": {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "num_experts": None,
    },
    "lfm2-vl": {"block_auto_adjust_ff_dim": False},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "hunyuan": {"rope_scaling": {"type": "dynamic", "alpha": 1.0, "factor": 1.0}},
    "mistral4": {"rope_parameters": {"rope_theta": 10000.0, "type": "default"}},
    "ministral3": {"rope_parameters": {"rope_theta": 10000.0, "type": "default"}},
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.5}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.5}},
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.5}},
        ]
    },
    "minicpm3": {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
    "llama4_text": {"no_rope_layers": [1, 1, 0], "intermediate_size_mlp": 48},
    "longcat_flash": {"mla_scale_q_lora": True, "mla_scale_kv_lora": True},
    "mimo_v2_flash": {"hybrid_layer_pattern": [1, 0, 1], "moe_layer_freq": [0, 1, 1]},
    "afm7": {"num_layers": 3, "num_kv_reuse_layers": 1},
}
UNSTABLE = ("phi3small",)
_TEXT = ("text_config", "language_config", "llm_config")


def architectures() -> list[str]:
    """The names of mlx-lm's architectures."""
    import mlx_lm.models

    return [m.name for m in pkgutil.iter_modules(mlx_lm.models.__path__) if m.name not in HELPERS]


def small_module(name: str) -> nn.Module | str:
    """A small random model that runs, or why there is none: what the first way to build it said."""
    if name in UNSTABLE:
        return "at these sizes it ends its process in some runs"
    try:
        module = importlib.import_module(f"mlx_lm.models.{name}")
    except SystemExit:  # one asks for a package of its own and exits
        return "it needs a package that mlx-lm does not install"
    problem = ""
    for args in _ways(name, module.ModelArgs):
        try:
            model: nn.Module = module.Model(module.ModelArgs.from_dict(args))
            size = sum(array.size for _, array in tree_flatten(model.parameters()))
            if size > MAX_PARAMETERS:
                problem = problem or f"it has {size / 1e6:.0f} M parameters at these sizes"
                continue
            randomise(model)
            mx.eval(model(mx.array(PROBE)))
        except Exception as error:  # noqa: BLE001 - another architecture's own code, given guessed arguments
            text = "; ".join(str(error).strip().splitlines()[:1])
            problem = problem or ": ".join(filter(None, (type(error).__name__, text)))
            continue
        return model
    return problem


def _ways(name: str, arguments: Any) -> Iterator[dict[str, Any]]:
    for kinds in KINDS:
        for router in ROUTERS:
            args = {"model_type": name, **GENERIC, **router, **kinds, **DIFFERS.get(name, {})}
            args |= {key: {**args, "model_type": name.replace("_vl", "")} for key in _TEXT}
            yield {**_guessed(arguments, args), **args}


def _guessed(arguments: Any, given: dict[str, Any]) -> dict[str, Any]:
    """A value of the right type for each argument without a default that the table does not name."""
    hints = typing.get_type_hints(arguments)
    nothing = dataclasses.MISSING
    return {
        field.name: _small(hints[field.name])
        for field in dataclasses.fields(arguments)
        if field.name not in given and field.default is nothing and field.default_factory is nothing
    }


def _small(hint: Any) -> Any:
    if typing.get_origin(hint) is typing.Union:
        hint = typing.get_args(hint)[0]
    values: dict[Any, Any] = {int: 4, float: 1.0, bool: False, str: "silu"}
    return values.get(hint, [])
