"""SAELens's format: `cfg.json` and `sae_weights.safetensors`, read and written.

Its names, shapes and conventions are written down once, in `to_sae`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxterp.core.hook_points import parse
from mlxterp.errors import SAEFormatError, UnknownHookPoint
from mlxterp.sae.formats.weight_files import CONFIG, Arrays, Overrides, check, required
from mlxterp.sae.sae import SAE, Activation, JumpRelu, Relu, TopK

WEIGHTS = "sae_weights.safetensors"
ARCHITECTURES = (
    "standard",
    "topk",
    "batchtopk",
    "matryoshka_batchtopk",
    "jumprelu",
    "gated",
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)
_OURS = "mlxterp"
_VERSION = "6.54.12"
"""The version whose format is written and was compared with. A file without a version is taken by SAELens for
one from before version 6, and its hook points are dropped."""
_NORMALISED = {
    "expected_average_only_in": "all are to be scaled by a number that is not in the file. Fold it in with "
    "SAELens (`fold_activation_norm_scaling_factor`) and save again",
    "constant_norm_rescale": "each token is scaled to one norm, which no weights on raw activations do. Use "
    "this SAE with SAELens",
    "layer_norm": "each token is normalised by itself, which no weights on raw activations do. Use this SAE "
    "with SAELens",
}

_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
}
"""TransformerLens's names of hook points, as SAELens writes them, and ours."""


def save_sae(sae: SAE, path: str | Path, *, dtype: mx.Dtype = mx.float32) -> Path:
    """Writes an SAE as `cfg.json` and `sae_weights.safetensors`, in SAELens's format.

    In float32 it is exact: what is read back has the same digest; `mx.bfloat16` takes half the space.
    Metadata and our names of hook points are in a section of cfg.json of their own. SAELens 6 reads all but
    TopK transcoders, and transcoders that take b_dec off their input, which it has no form for and refuses.

    Args:
        path: a directory, made if it does not exist.
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
            "sae_lens_version": _VERSION,
            "model_name": sae.model,
            "hook_name": _hook_name(sae.hook_point),
            _OURS: {"hook_point": sae.hook_point, "model": sae.model, "metadata": dict(sae.metadata)},
        },
    }
    if isinstance(sae.activation, TopK):
        config["k"] = sae.activation.k
        config["rescale_acts_by_decoder_norm"] = False
    if "transcoder" in config["architecture"]:
        config["d_out"] = sae.d_out
    if sae.hook_point_out is not None:
        config["metadata"]["hook_name_out"] = _hook_name(sae.hook_point_out)
        config["metadata"][_OURS]["hook_point_out"] = sae.hook_point_out
    return config


def _architecture(sae: SAE) -> str:
    kind = {Relu: "", TopK: "topk", JumpRelu: "jumprelu"}[type(sae.activation)]
    if not sae.is_transcoder and sae.W_skip is None and sae.d_in == sae.d_out:
        return kind or "standard"
    whole = "skip_transcoder" if sae.W_skip is not None else "transcoder"
    if kind == "topk":
        # SAELens has no such architecture: its readers refuse the name instead of reading a ReLU.
        return f"topk_{whole}"
    return f"{kind}_{whole}" if kind else whole


def to_sae(config: Mapping[str, Any], arrays: Arrays, overrides: Overrides, file: Path) -> SAE:
    """The SAE of this config and these arrays, by SAELens's conventions:

    - `W_enc` is [d_in, d_sae], `W_dec` [d_sae, d_out].
    - `apply_b_dec_to_input`: pre = (x − b_dec) W_enc + b_enc, else x W_enc + b_enc.
    - `rescale_acts_by_decoder_norm` of topk and batchtopk: pre-activations are scaled by the norms of the
      decoder rows before the choice, and what is chosen stays scaled, for rows of norm 1.
    - gated: pi = (x − b_dec) W_enc; where pi + b_gate > 0, max(exp(r_mag) pi + b_mag, 0). That is a JumpReLU
      with W_enc scaled by exp(r_mag) and the threshold b_mag − exp(r_mag) b_gate (Rajamanoharan et al. 2024,
      arXiv:2404.16014).
    - `W_skip` is [d_out, d_in].
    - `normalize_activations`: only with "none" are the weights for raw activations.
    - Before version 6, topk was an `activation_fn` of the architecture "standard".

    Compared with SAELens 6.54.12 (tests/data/saes/saelens).
    """
    architecture = str(config.get("architecture", "standard"))
    known = (*ARCHITECTURES, "topk_transcoder", "topk_skip_transcoder")
    if architecture not in known:
        raise SAEFormatError(
            f"{file}: the architecture {architecture!r} is not known here. Known: {', '.join(known)}. "
            "Use this SAE with the program that wrote it."
        )
    normalised = config.get("normalize_activations", "none") or "none"
    if normalised != "none":
        raise SAEFormatError(
            f"{file}: normalize_activations = {normalised!r}: these weights are not for raw activations; "
            f"{_NORMALISED.get(str(normalised), 'it is not known here. Use SAELens')}. Read is 'none'."
        )
    reshaped = config.get("reshape_activations", "none") or "none"
    heads = reshaped != "none"
    transcoder = "transcoder" in architecture
    ours = (config.get("metadata") or {}).get(_OURS) or {}
    if transcoder and config.get("apply_b_dec_to_input", False) and not ours:
        raise SAEFormatError(
            f"{file}: apply_b_dec_to_input = True in a {architecture}, which reads its input as it is. If "
            f"b_dec is really to be taken off, put it into b_enc; then set it to false in {CONFIG}."
        )
    gated = architecture == "gated"
    needed = ["W_enc", *(("b_gate", "b_mag", "r_mag") if gated else ("b_enc",)), "W_dec", "b_dec"]
    if "skip" in architecture:
        needed.append("W_skip")
    if "jumprelu" in architecture:
        needed.append("threshold")
    missing = [name for name in ("d_in", "d_sae") if name not in config]
    if missing:
        raise SAEFormatError(f"{file}: {CONFIG} has no {', '.join(missing)}. Add the widths of the arrays.")
    d_in, d_sae = int(config["d_in"]), int(config["d_sae"])
    d_out = int(config.get("d_out", d_in))
    shapes = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
        "W_skip": (d_out, d_in),
        "threshold": (d_sae,),
        "topk_threshold": (),
        **(dict.fromkeys(("b_gate", "b_mag", "r_mag"), (d_sae,)) if gated else {}),
    }
    check(arrays, needed, shapes, file)
    if heads:
        raise SAEFormatError(
            f"{file}: reshape_activations = {reshaped!r} reads all heads as one vector. Read are SAEs on "
            "activations of one axis; give z of one layer with its heads side by side to an SAE of your own."
        )
    used = {*needed, "topk_threshold"} if "batchtopk" in architecture else set(needed)
    unknown = sorted(set(arrays) - used)
    if unknown:
        raise SAEFormatError(
            f"{file}: arrays {unknown}, which a {architecture} SAE does not have. It has "
            f"{', '.join(needed)}. Check its architecture, or fold them in with the program that wrote them."
        )
    metadata = config.get("metadata") or {}
    activation = _activation(architecture, config, arrays, file)
    W_enc, W_dec = arrays["W_enc"], arrays["W_dec"]
    b_enc = arrays["b_mag"] if gated else arrays["b_enc"]
    if gated:
        W_enc = W_enc * mx.exp(arrays["r_mag"].astype(mx.float32))
    if "topk" in architecture and config.get("rescale_acts_by_decoder_norm", False):
        norms = mx.linalg.norm(W_dec.astype(mx.float32), axis=1)
        W_enc, b_enc = W_enc * norms, b_enc * norms
        W_dec = W_dec / mx.where(norms > 0, norms, 1.0)[:, None]
    point = ours.get("hook_point") or _hook_point(metadata.get("hook_name") or config.get("hook_name"))
    out = ours.get("hook_point_out") or _hook_point(
        metadata.get("hook_name_out") or config.get("hook_name_out")
    )
    return SAE(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=arrays["b_dec"],
        activation=activation,
        hook_point=overrides.hook_point or required(point, "hook_point", file),
        hook_point_out=_hook_point_out(overrides.hook_point_out or out, ours, file) if transcoder else None,
        model=str(
            overrides.model
            or ours.get("model")
            or metadata.get("model_name")
            or config.get("model_name")
            or "unknown"
        ),
        subtract_b_dec=bool(config.get("apply_b_dec_to_input", not transcoder)),
        W_skip=arrays["W_skip"].T if "W_skip" in arrays else None,
        metadata=ours.get("metadata") or {"format": "SAELens", "config": dict(config)},
    )


def _hook_point_out(place: str | None, ours: Mapping[str, Any], file: Path) -> str | None:
    """Where a transcoder writes. An SAE of ours with a skip path is saved as a transcoder that writes where
    it reads."""
    return place if ours else required(place, "hook_point_out", file)


def _activation(architecture: str, config: Mapping[str, Any], arrays: Arrays, file: Path) -> Activation:
    if architecture.startswith("topk"):
        if "k" not in config:
            raise SAEFormatError(f"{file}: a {architecture} SAE whose {CONFIG} has no 'k'. Add it there.")
        return TopK(int(config["k"]))
    if "jumprelu" in architecture:
        return JumpRelu(arrays["threshold"])
    if architecture == "gated":
        b_mag, r_mag, b_gate = (arrays[name].astype(mx.float32) for name in ("b_mag", "r_mag", "b_gate"))
        return JumpRelu(b_mag - mx.exp(r_mag) * b_gate)
    if "batchtopk" in architecture:
        if "topk_threshold" not in arrays:
            raise SAEFormatError(
                f"{file}: a {architecture} SAE without its threshold; what it gives would depend on the "
                "batch. Save it for inference with SAELens first, which makes it a jumprelu SAE."
            )
        return JumpRelu(arrays["topk_threshold"])
    function = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if function == "topk":
        k = (config.get("activation_fn_kwargs") or {}).get("k")
        if k is None:
            raise SAEFormatError(
                f"{file}: activation_fn 'topk' whose activation_fn_kwargs have no 'k'. Add it in {CONFIG}."
            )
        return TopK(int(k))
    if function != "relu":
        raise SAEFormatError(
            f"{file}: the activation function {function!r} is not known here. Known: relu, topk. Use "
            "this SAE with the program that wrote it."
        )
    return Relu()


def _hook_point(hook: str | None) -> str | None:
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
