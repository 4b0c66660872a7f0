"""SAEs in files: SAELens (read and written), sparsify and Gemma Scope (read).

Lives here: names, transpositions and conventions of each format. Does not live here: fetching files.

What the conventions of SAELens mean is written down once, in `_from_saelens`, and checked by hand-computed
numbers in the tests. What is read becomes an `SAE` on raw activations; what cannot be expressed as one is
refused, naming it.
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

SAELENS_WEIGHTS, CONFIG, SPARSIFY_WEIGHTS = "sae_weights.safetensors", "cfg.json", "sae.safetensors"
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

Arrays = dict[str, mx.array]


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
    mx.save_safetensors(
        str(folder / SAELENS_WEIGHTS), {name: array.astype(dtype) for name, array in arrays.items()}
    )
    config = _config(sae) | {"dtype": str(dtype).rpartition(".")[2]}
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    return folder


def load_sae(
    path: str | Path,
    *,
    model: str | None = None,
    hook_point: str | None = None,
    hook_point_out: str | None = None,
) -> SAE:
    """The SAE in a directory or file, on raw activations in float32.

    Read are directories of SAELens (`cfg.json`, `sae_weights.safetensors`; architectures as in
    `ARCHITECTURES`) and of sparsify (`cfg.json`, `sae.safetensors`), and Gemma Scope's `params.npz`.

    Args:
        path: the directory, or a `.npz` file.
        model, hook_point, hook_point_out: what the file does not say, or says in a way not known here; they
            go before what the file says.

    Raises:
        SAEFormatError: no such file; a format, architecture or option not known here, listing those that
            are; or arrays of the wrong shape.
    """
    file = Path(path).expanduser()
    said = {"model": model, "hook_point": hook_point, "hook_point_out": hook_point_out}
    if file.suffix == ".npz" and file.is_file():
        return _from_gemma_scope(file, said)
    if (file / "params.npz").is_file():
        return _from_gemma_scope(file / "params.npz", said)
    if (file / CONFIG).is_file() and (file / SAELENS_WEIGHTS).is_file():
        return _from_saelens(_read_config(file), _arrays(file / SAELENS_WEIGHTS), said, file)
    if (file / CONFIG).is_file() and (file / SPARSIFY_WEIGHTS).is_file():
        return _from_sparsify(_read_config(file), _arrays(file / SPARSIFY_WEIGHTS), said, file)
    there = ", ".join(sorted(p.name for p in file.iterdir())) if file.is_dir() else "nothing"
    raise SAEFormatError(
        f"No SAE at {file}: there is {there or 'an empty directory'}. Read are: {CONFIG} with "
        f"{SAELENS_WEIGHTS} (SAELens) or {SPARSIFY_WEIGHTS} (sparsify), and params.npz (Gemma Scope)."
    )


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


def _from_saelens(config: Mapping[str, Any], arrays: Arrays, said: Mapping[str, Any], file: Path) -> SAE:
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
    _check(arrays, needed, shapes, file)
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
        hook_point=said["hook_point"] or _needed(place, "hook_point", file),
        hook_point_out=(said["hook_point_out"] or _needed(out, "hook_point_out", file))
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


def _from_sparsify(config: Mapping[str, Any], arrays: Arrays, said: Mapping[str, Any], file: Path) -> SAE:
    """sparsify's conventions: `encoder.weight` is torch's [d_sae, d_in], `W_dec` [d_sae, d_out]. An SAE takes
    b_dec off its input, a transcoder does not. Its activation function is the k largest, or all that are
    positive ("groupmax" is refused)."""
    function = config.get("activation", "topk")
    if function != "topk":
        raise SAEFormatError(f"{file}: the activation {function!r} is not known here. Known: topk.")
    if config.get("signed"):
        raise SAEFormatError(f"{file}: signed latents have no meaning here: activations are 0 or positive.")
    d_sae, d_in = arrays["encoder.weight"].shape if "encoder.weight" in arrays else (0, 0)
    transcoder = bool(config.get("transcode", False))
    d_out = arrays["W_dec"].shape[1] if "W_dec" in arrays else d_in
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (d_sae, d_in),
        "encoder.bias": (d_sae,),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
        "W_skip": (d_out, d_in),
    }
    _check(arrays, [name for name in shapes if name != "W_skip"], shapes, file)
    if config.get("d_in", d_in) != d_in:
        raise SAEFormatError(
            f"{file}: {CONFIG} says d_in = {config['d_in']}, encoder.weight is {(d_sae, d_in)}. One of them "
            "is of another SAE."
        )
    if "k" not in config:
        raise SAEFormatError(f"{file}: {CONFIG} has no 'k'. Add it there.")
    place = said["hook_point"] or _sparsify_place(file.name)
    skip = arrays.get("W_skip")
    return SAE(
        W_enc=arrays["encoder.weight"].T,
        b_enc=arrays["encoder.bias"],
        W_dec=arrays["W_dec"],
        b_dec=arrays["b_dec"],
        activation=TopK(int(config["k"])),
        hook_point=_needed(place, "hook_point", file),
        hook_point_out=_needed(said["hook_point_out"], "hook_point_out", file) if transcoder else None,
        model=str(said["model"] or "unknown"),
        subtract_b_dec=not transcoder,
        W_skip=None if skip is None else skip.T,
        metadata={"format": "sparsify", "config": dict(config)},
    )


def _from_gemma_scope(file: Path, said: Mapping[str, Any]) -> SAE:
    """Gemma Scope's `params.npz`: W_enc [d_in, d_sae], W_dec [d_sae, d_in], JumpReLU; b_dec stays on the
    input (Lieberum et al. 2024, arXiv:2408.05147)."""
    loaded: Any = mx.load(str(file))
    arrays: Arrays = dict(loaded)
    if "W_enc" not in arrays or arrays["W_enc"].ndim != 2:
        raise SAEFormatError(
            f"{file}: arrays {sorted(arrays)}. Gemma Scope's are W_enc, b_enc, W_dec, b_dec, threshold."
        )
    d_in, d_sae = arrays["W_enc"].shape
    d_out = arrays["W_dec"].shape[1] if "W_dec" in arrays and arrays["W_dec"].ndim == 2 else d_in
    shapes = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
        "threshold": (d_sae,),
    }
    _check(arrays, list(shapes), shapes, file)
    return SAE(
        W_enc=arrays["W_enc"],
        b_enc=arrays["b_enc"],
        W_dec=arrays["W_dec"],
        b_dec=arrays["b_dec"],
        activation=JumpRelu(arrays["threshold"]),
        hook_point=_needed(said["hook_point"], "hook_point", file),
        hook_point_out=said["hook_point_out"],
        model=str(said["model"] or "unknown"),
        metadata={"format": "Gemma Scope"},
    )


def _check(arrays: Arrays, needed: list[str], shapes: Mapping[str, tuple[int, ...]], file: Path) -> None:
    missing = [name for name in needed if name not in arrays]
    wrong = [
        f"{name} {tuple(arrays[name].shape)} and not {shape}"
        for name, shape in shapes.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    problems = ([f"without {', '.join(missing)}"] if missing else []) + wrong
    if problems:
        raise SAEFormatError(
            f"{file}: {'; '.join(problems)}. It holds {', '.join(sorted(arrays))}. Check that config and "
            "weights belong together."
        )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except json.JSONDecodeError as problem:
        raise SAEFormatError(f"{folder / CONFIG} is not JSON: {problem}. Get the file again.") from problem
    if not isinstance(config, dict):
        raise SAEFormatError(f"{folder / CONFIG} holds a {type(config).__name__}, not an object.")
    return config


def _arrays(file: Path) -> Arrays:
    loaded: Any = mx.load(str(file))
    mx.eval(loaded)
    return dict(loaded)


def _needed(value: str | None, name: str, file: Path) -> str:
    if value is None:
        raise SAEFormatError(
            f"{file} does not say where it reads or writes in our words. Give {name}= to load_sae, as in "
            "'L15.resid_post'."
        )
    return value


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


def _sparsify_place(name: str) -> str | None:
    """sparsify names directories after modules: `layers.10` is the output of block 10, `layers.10.mlp` its
    MLP's."""
    parts = name.split(".")
    if len(parts) >= 2 and parts[0] in ("layers", "h") and parts[1].isdecimal():
        last = {(): "resid_post", ("mlp",): "mlp_out"}.get(tuple(parts[2:]))
        return None if last is None else f"L{parts[1]}.{last}"
    return None
