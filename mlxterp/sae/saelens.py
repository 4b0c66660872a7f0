"""SAELens's format: `cfg.json` and `sae_weights.safetensors`, read and written.

Lives here: its names, shapes and conventions, written down once in `from_saelens`. Does not live here: other
formats (`formats.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxterp.core.hook_points import parse
from mlxterp.errors import SAEFormatError, UnknownHookPoint
from mlxterp.sae.sae import SAE, Activation, JumpRelu, Relu, TopK
from mlxterp.sae.weight_files import CONFIG, Arrays, check, required

WEIGHTS = "sae_weights.safetensors"
ARCHITECTURES = (
    "standard",
    "topk",
    "batchtopk",
    "matryoshka_batchtopk",
    "jumprelu",
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)
_OURS = "mlxterp"

_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
}
"""TransformerLens's names of places, as SAELens writes them, and ours."""


def save_sae(sae: SAE, path: str | Path, *, dtype: mx.Dtype = mx.float32) -> Path:
    """Writes an SAE as `cfg.json` and `sae_weights.safetensors`, in SAELens's format.

    In float32 it is exact: what is read back has the same digest; `mx.bfloat16` takes half the space. Our own
    facts (metadata, names of hook points) are in a part of cfg.json of their own.

    Args:
        path: a directory, made if it is not there.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if isinstance(sae.activation, JumpRelu):
        arrays["threshold"] = sae.activation.threshold
    if sae.W_skip is not None:
        arrays["W_skip"] = mx.contiguous(sae.W_skip.T)
    mx.save_safetensors(str(folder / WEIGHTS), {name: array.astype(dtype) for name, array in arrays.items()})
    config = _config(sae) | {"dtype": str(dtype).rpartition(".")[2]}
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    return folder


def _config(sae: SAE) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architecture": _architecture(sae),
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtract_b_dec,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": sae.model,
            "hook_name": _hook_name(sae.hook_point),
            _OURS: {"hook_point": sae.hook_point, "model": sae.model, "metadata": dict(sae.metadata)},
        },
    }
    if isinstance(sae.activation, TopK):
        config["k"] = sae.activation.k
        config["rescale_acts_by_decoder_norm"] = False
    if sae.d_out != sae.d_in or sae.is_transcoder:
        config["d_out"] = sae.d_out
    if sae.hook_point_out is not None:
        config["metadata"]["hook_name_out"] = _hook_name(sae.hook_point_out)
        config["metadata"][_OURS]["hook_point_out"] = sae.hook_point_out
    return config


def _architecture(sae: SAE) -> str:
    kind = {Relu: "", TopK: "topk", JumpRelu: "jumprelu"}[type(sae.activation)]
    if not sae.is_transcoder and sae.W_skip is None:
        return kind or "standard"
    whole = "skip_transcoder" if sae.W_skip is not None else "transcoder"
    if kind == "topk":
        # SAELens has no name for it; its own readers refuse it instead of reading a ReLU.
        return f"topk_{whole}"
    return f"{kind}_{whole}" if kind else whole


def from_saelens(config: Mapping[str, Any], arrays: Arrays, said: Mapping[str, Any], file: Path) -> SAE:
    """SAELens's conventions:

    - `W_enc` is [d_in, d_sae], `W_dec` [d_sae, d_out].
    - `apply_b_dec_to_input`: pre = (x − b_dec) W_enc + b_enc, else x W_enc + b_enc.
    - topk's `rescale_acts_by_decoder_norm`: pre-activations are scaled by the norms of the decoder rows
      before the choice, and divided by them after: the same as an SAE with unit decoder rows.
    - `W_skip` is [d_out, d_in].
    - `normalize_activations`: only with "none" are the weights for raw activations. The others scale each
      token by its own norm, or all by a number that is not in the file.
    """
    architecture = str(config.get("architecture", "standard"))
    known = (*ARCHITECTURES, "topk_transcoder", "topk_skip_transcoder")
    if architecture not in known:
        raise SAEFormatError(
            f"{file}: the architecture {architecture!r} is not known here. Known: {', '.join(known)}."
        )
    normalised = config.get("normalize_activations", "none") or "none"
    if normalised != "none":
        raise SAEFormatError(
            f"{file}: normalize_activations = {normalised!r}: these weights are not for raw activations, and "
            "the scale is not in the file. Read is 'none'; SAELens can fold a constant scale in."
        )
    reshaped = config.get("reshape_activations", "none") or "none"
    heads = reshaped != "none"
    needed = ["W_enc", "b_enc", "W_dec", "b_dec"]
    if "skip" in architecture:
        needed.append("W_skip")
    if "jumprelu" in architecture:
        needed.append("threshold")
    d_in, d_sae = int(config["d_in"]), int(config["d_sae"])
    d_out = int(config.get("d_out", d_in))
    shapes = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
        "W_skip": (d_out, d_in),
        "threshold": (d_sae,),
    }
    ours = (config.get("metadata") or {}).get(_OURS) or {}
    check(arrays, needed, shapes, file)
    if heads:
        raise SAEFormatError(
            f"{file}: reshape_activations = {reshaped!r} reads all heads as one vector. Read are SAEs on "
            "activations of one axis; give z of one layer with its heads side by side to an SAE of your own."
        )
    unknown = sorted(set(arrays) - set(shapes) - {"topk_threshold"})
    if unknown:
        raise SAEFormatError(f"{file}: arrays {unknown} are not known here. Known: {', '.join(shapes)}.")
    metadata = config.get("metadata") or {}
    W_enc, b_enc, W_dec = arrays["W_enc"], arrays["b_enc"], arrays["W_dec"]
    transcoder = "transcoder" in architecture
    if "topk" in architecture and config.get("rescale_acts_by_decoder_norm", False):
        norms = mx.linalg.norm(W_dec.astype(mx.float32), axis=1)
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    place = ours.get("hook_point") or _place(metadata.get("hook_name") or config.get("hook_name"))
    out = ours.get("hook_point_out") or _place(metadata.get("hook_name_out") or config.get("hook_name_out"))
    return SAE(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=arrays["b_dec"],
        activation=_activation(architecture, config, arrays, file),
        hook_point=said["hook_point"] or required(place, "hook_point", file),
        hook_point_out=(said["hook_point_out"] or required(out, "hook_point_out", file))
        if transcoder
        else None,
        model=str(
            said["model"]
            or ours.get("model")
            or metadata.get("model_name")
            or config.get("model_name")
            or "unknown"
        ),
        subtract_b_dec=bool(config.get("apply_b_dec_to_input", not transcoder)) and not transcoder,
        W_skip=arrays["W_skip"].T if "W_skip" in arrays else None,
        metadata=ours.get("metadata") or {"format": "SAELens", "config": dict(config)},
    )


def _activation(architecture: str, config: Mapping[str, Any], arrays: Arrays, file: Path) -> Activation:
    if architecture.startswith("topk"):
        if "k" not in config:
            raise SAEFormatError(f"{file}: a {architecture} SAE whose {CONFIG} has no 'k'. Add it there.")
        return TopK(int(config["k"]))
    if "jumprelu" in architecture:
        return JumpRelu(arrays["threshold"])
    if "batchtopk" in architecture:
        if "topk_threshold" not in arrays:
            raise SAEFormatError(
                f"{file}: a {architecture} SAE without its threshold; what it gives would depend on the "
                "batch. Save it for inference with SAELens first, which makes it a jumprelu SAE."
            )
        return JumpRelu(arrays["topk_threshold"])
    function = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if function != "relu":
        raise SAEFormatError(f"{file}: the activation function {function!r} is not known here. Known: relu.")
    return Relu()


def _place(hook: str | None) -> str | None:
    """`blocks.7.hook_resid_pre` → `L7.resid_pre`; our own spelling as it is; None for others."""
    if hook is None:
        return None
    parts = hook.split(".")
    if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdecimal() and parts[2] in _HOOKS:
        return f"L{parts[1]}.{_HOOKS[parts[2]]}"
    try:
        return str(parse(hook))
    except UnknownHookPoint:
        return None


def _hook_name(place: str) -> str:
    point = parse(place)
    for theirs, ours in _HOOKS.items():
        if point.name == ours:
            return f"blocks.{point.layer}.{theirs}"
    return place
