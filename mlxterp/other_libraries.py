"""Names that users of TransformerLens, nnsight and SAELens type, and what they are here.

Two tables for hook points: spellings of the same activation, and names whose activation is another one, with
the reason. Then the names of calls, which give an error that says ours. Everything that knows another
library's words is in this file; `core/hook_points.py` and the `__getattr__` of models, traces and the package
look them up. Standard library only.

The activations of the first table are those of TransformerLens 4.3 to 1e-4 (`tests/core/test_spellings.py`).
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Spelled(NamedTuple):
    """A hook point of ours, as another library spelled it."""

    name: str
    layer: int | None


IN_A_BLOCK = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "attn.hook_pattern": "pattern",
    "attn.hook_rot_q": "q",
    "attn.hook_rot_k": "k",
}
"""What is behind `blocks.9.` in TransformerLens, and the same activation here."""

OUTSIDE = {"hook_embed": "embed", "ln_final.hook_out": "final_norm"}

BEFORE_ROTARY = (
    "{asked} is before the rotary embedding in TransformerLens; '{ours}' here is what attention uses, after "
    "it. Ask for '{ours}' or 'blocks.{layer}.attn.hook_rot_{name}', which are the same; before rotary is the "
    "output of a module, as in 'model.layers.{layer}.self_attn.{name}_proj' of a llama."
)
_NO_NAME = "It has no name here. The output of any module is read by its path in model.model, as in {path}."
_SCALE = "The factor of a norm is not kept. It follows from '{stream}', which is what the norm is given."
DIFFERENT = {
    "attn.hook_q": BEFORE_ROTARY,
    "attn.hook_k": BEFORE_ROTARY,
    "attn.hook_result": (
        "What each head adds is not stored: model.architecture.head_outputs({layer}, trace['L{layer}.z']) "
        "gives it, and direct_logit_attribution its part of a logit."
    ),
    "hook_attn_in": "It is split by head there. 'L{layer}.resid_pre' enters the layer.",
    "hook_mlp_in": "Ask for 'L{layer}.resid_mid', or 'L{layer}.resid_pre' in a parallel block.",
    "attn.hook_attn_scores": (
        "Scores before the softmax come from mlxterp.causal.attention_scores; 'L{layer}.pattern' is after it."
    ),
    "mlp.hook_pre": _NO_NAME.format(path="'model.layers.{layer}.mlp.gate_proj' of a llama"),
    "mlp.hook_pre_linear": _NO_NAME.format(path="'model.layers.{layer}.mlp.up_proj' of a llama"),
    "mlp.hook_post": (
        "Neurons are what enters the last projection of an MLP and have no name here; "
        "direct_logit_neurons gives what each adds to a logit."
    ),
    "ln1.hook_scale": _SCALE.replace("{stream}", "L{layer}.resid_pre"),
    "ln2.hook_scale": _SCALE.replace("{stream}", "L{layer}.resid_mid"),
    "ln1.hook_normalized": _NO_NAME.format(path="'model.layers.{layer}.input_layernorm' of a llama"),
    "ln2.hook_normalized": _NO_NAME.format(path="'model.layers.{layer}.post_attention_layernorm' of a llama"),
}
"""What is behind `blocks.9.` in TransformerLens and is no hook point here, and what to do instead."""

DIFFERENT_OUTSIDE = {
    "hook_pos_embed": "Positions are in 'embed' where a model adds them; most rotate queries and keys.",
    "ln_final.hook_normalized": (
        "It is before the norm's weight in TransformerLens, and 'final_norm' here is behind it, as is "
        "'ln_final.hook_out'. Divide 'final_norm' by the weight, or unembed it as it is."
    ),
    "ln_final.hook_scale": (
        "The factor of the final norm is not kept. It follows from 'resid_post' of the last layer; "
        "direct_logit_attribution uses the factor of each run."
    ),
}
WITH_POSITIONS = (
    "'hook_embed' is before positions are added in TransformerLens, and this model adds learned ones: "
    "'embed' here is with them. Ask for 'embed', or for the embedding module by its path."
)

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_DOTTED = re.compile(r"([a-z_]+)\.(\d+)")


def spelled(text: str) -> Spelled | None:
    """The hook point that `blocks.9.attn.hook_z`, `hook_embed` or `z.9` is here; None for other texts."""
    if text in OUTSIDE:
        return Spelled(OUTSIDE[text], None)
    block = _BLOCK.fullmatch(text)
    if block:
        return Spelled(IN_A_BLOCK[block[2]], int(block[1])) if block[2] in IN_A_BLOCK else None
    dotted = _DOTTED.fullmatch(text)
    if dotted and dotted[1] in {*IN_A_BLOCK.values()} - {"q", "k"}:
        return Spelled(dotted[1], int(dotted[2]))
    return None


def why_not(text: str) -> str | None:
    """Why a hook point of TransformerLens is none here, and what to ask for; None for other texts."""
    block, dotted = _BLOCK.fullmatch(text), _DOTTED.fullmatch(text)
    if dotted and dotted[1] in ("q", "k"):
        return _reason(f"attn.hook_{dotted[1]}", dotted[2], f"{dotted[1]!r} of a layer")
    if block and block[2] in DIFFERENT:
        return _reason(block[2], block[1], "It")
    if block and "hook_" in block[2]:
        return f"Of TransformerLens's names in a block these are read here: {', '.join(IN_A_BLOCK)}."
    return DIFFERENT_OUTSIDE.get(text)


def _reason(name: str, layer: str, asked: str) -> str:
    letter = name[-1]
    return DIFFERENT[name].format(asked=asked, ours=f"L{layer}.{letter}", layer=layer, name=letter)


_TRACE = "trace = model.trace(text, capture=['resid_post', 'L9.z'])"
_EDITED = "model.trace(text, interventions=[zero('L9.z', heads=1)])"
_NAMES = "hook points are texts, as in 'L9.resid_post' or 'blocks.9.hook_resid_post'"

MODEL = {
    "run_with_cache": f"{_TRACE}; then trace.logits and trace['L9.z'].",
    "run_with_hooks": f"{_EDITED}; functions: edit('L9.z', function) of mlxterp.core.interventions.",
    "add_hook": f"interventions belong to one run: {_EDITED}.",
    "add_perma_hook": f"interventions belong to one run: {_EDITED}.",
    "reset_hooks": "nothing has to be reset: interventions belong to one run.",
    "remove_all_hook_fns": "nothing has to be removed: interventions belong to one run.",
    "hooks": f"interventions belong to one run: {_EDITED}.",
    "hook_dict": "model.capabilities: every hook point, and why one is missing.",
    "hook_points": "model.capabilities: every hook point, and why one is missing.",
    "cfg": "model.n_layers, model.n_heads, model.n_kv_heads, model.d_model, model.d_head, model.d_vocab.",
    "config": "model.n_layers, model.n_heads, model.n_kv_heads, model.d_model, model.d_head, model.d_vocab.",
    "W_U": "model.unembedding(token_ids): rows of W_U in float32, [n, d_model].",
    "W_O": "model.architecture.w_o(layer): float32 [n_heads, d_head, d_model].",
    "W_E": "the embedding module in model.model, by its path, as in model.model.model.embed_tokens.weight.",
    "W_Q": "the module in model.model, as in model.model.layers[9].self_attn.q_proj.weight.",
    "W_K": "the module in model.model, as in model.model.layers[9].self_attn.k_proj.weight.",
    "W_V": "the module in model.model, as in model.model.layers[9].self_attn.v_proj.weight.",
    "W_in": "the module in model.model, as in model.model.layers[9].mlp.up_proj.weight.",
    "W_out": "the module in model.model, as in model.model.layers[9].mlp.down_proj.weight.",
    "W_pos": "the table of positions in model.model, where there is one.",
    "blocks": "model.model.layers: the modules; activations by name, as in 'L9.z'.",
    "transformer": "model.model: the module itself, whose modules have their own paths.",
    "lm_head": "model.model: the module itself; rows of W_U are model.unembedding(token_ids).",
    "unembed": "model.unembedding(token_ids), or direct_logit_attribution of mlxterp.causal.",
    "embed": "model.trace(text, capture=['embed'])['embed'].",
    "ln_final": "model.trace(text, capture=['final_norm'])['final_norm'].",
    "tokens_to_residual_directions": "model.unembedding(token_ids): float32 [n, d_model].",
    "all_head_labels": "head labels are 'L9.H6'; result.components() has them with their effects.",
    "loss_fn": "model.logits(text); metrics of a sweep are named as in metric='logit_diff'.",
    "forward": "model.logits(text), or model.run(tokens) of a batch of token ids.",
    "from_pretrained": "InterpretableModel('smollm2-135m'), a directory, a GGUF file or a hub id.",
    "from_pretrained_no_processing": "InterpretableModel(name): weights are never folded or centred.",
    "boot_transformers": "InterpretableModel(name): a directory, a GGUF file or a hub id.",
    "run_with_cache_with_saes": "active_features(model, sae, text) of mlxterp.sae.",
    "run_with_saes": "feature_effects or feature_clamp of mlxterp.sae.",
    "add_sae": "functions of mlxterp.sae take a model and an SAE; nothing is attached.",
    "reset_saes": "nothing has to be reset: functions of mlxterp.sae take a model and an SAE.",
    "session": "each model.trace(…) is one run and gives a value.",
    "scan": "a trace has the true shapes: model.trace(text, capture='all').",
    "invoke": "several prompts are one batch: model.trace([text, other]).",
    "output": f"{_TRACE}; then trace['L9.resid_post'].",
    "input": f"{_TRACE}; then trace['L9.resid_pre'].",
}
"""Attributes of models elsewhere, and what to write here."""

CALLED = "model.logits(text) gives logits, model.trace(text, capture=…) activations too."
"""What to write instead of `model(text)`."""

TRACE = {
    "cache_dict": "trace.activations: every captured activation by its name.",
    "keys": "trace.names: what was captured.",
    "items": "trace.activations.items().",
    "values": "trace.activations.values().",
    "stack_activation": "mx.stack([trace.layers[i].z for i in range(model.n_layers)]).",
    "stack_head_results": "model.architecture.head_outputs(layer, trace.layers[layer].z), per layer.",
    "accumulated_resid": "logit_lens of mlxterp.causal, or trace.layers[i].resid_post.",
    "decompose_resid": "direct_logit_attribution(model, text, answer=…, foil=…) of mlxterp.causal.",
    "logit_attrs": "direct_logit_attribution(model, text, answer=…, foil=…) of mlxterp.causal.",
    "apply_ln_to_stack": "direct_logit_attribution freezes the final norm's factor by itself.",
    "remove_batch_dim": "trace['L9.z'][0].",
    "to": "arrays of MLX are in the memory of every device.",
    "save": "nothing has to be saved: activations are values when the trace is made.",
    "invoke": "several prompts are one batch: model.trace([text, other]).",
    "output": "trace.logits, or trace['L9.resid_post'].",
    "input": "trace.tokens, or trace['L9.resid_pre'].",
}

PACKAGE = {
    "HookedTransformer": "InterpretableModel('smollm2-135m'), a directory, a GGUF file or a hub id.",
    "TransformerBridge": "InterpretableModel('smollm2-135m'), a directory, a GGUF file or a hub id.",
    "HookedSAETransformer": "InterpretableModel(name), and functions of mlxterp.sae that take it and an SAE.",
    "LanguageModel": "InterpretableModel('smollm2-135m'), a directory, a GGUF file or a hub id.",
    "NNsight": "InterpretableModel(module, tokenizer): any mlx.nn.Module with a list of blocks.",
    "ActivationCache": f"{_TRACE}; a Trace is what it gives.",
    "HookedRootModule": "InterpretableModel(module, tokenizer): any mlx.nn.Module with a list of blocks.",
    "FactoredMatrix": "numpy.linalg.svd of model.architecture.w_o(layer) with a module's own weight.",
    "SAE": "load_sae(path) of mlxterp.sae, which reads SAELens's files.",
    "SAETrainingRunner": "train_sae of mlxterp.sae.",
    "ActivationsStore": "cached_activations or build_store of mlxterp.sae.",
    "patching": "activation_patching(model, clean, corrupted, …) of mlxterp.causal.",
    "utils": f"{_NAMES}; model.to_single_token(text) and mlxterp.metrics have the rest.",
    "get_act_name": f"{_NAMES}.",
    "test_prompt": "behaviour(model, clean, …) of mlxterp.causal.",
}


def instead(names: dict[str, str], owner: str, name: str) -> str | None:
    """The message for a name of another library that `owner` does not have; None for any other name."""
    if name not in names:
        return None
    return f"{owner} has no {name!r}, which other libraries have. Here: {names[name]}"
