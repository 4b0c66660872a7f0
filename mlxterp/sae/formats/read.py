"""Reading SAEs from files: SAELens, sparsify, Gemma Scope.

Lives here: which format a place holds, and the conventions of sparsify and Gemma Scope. Does not live here:
SAELens's (`saelens.py`), fetching files.

What is read becomes an `SAE` on raw activations; what cannot be expressed as one is refused, naming it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxterp.errors import SAEFormatError
from mlxterp.sae.formats.saelens import ARCHITECTURES as ARCHITECTURES
from mlxterp.sae.formats.saelens import WEIGHTS as SAELENS_WEIGHTS
from mlxterp.sae.formats.saelens import from_saelens
from mlxterp.sae.formats.saelens import save_sae as save_sae
from mlxterp.sae.formats.weight_files import (
    CONFIG,
    Arrays,
    check,
    read_arrays,
    read_config,
    required,
)
from mlxterp.sae.sae import SAE, JumpRelu, TopK

SPARSIFY_WEIGHTS = "sae.safetensors"


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
        return from_saelens(read_config(file), read_arrays(file / SAELENS_WEIGHTS), said, file)
    if (file / CONFIG).is_file() and (file / SPARSIFY_WEIGHTS).is_file():
        return _from_sparsify(read_config(file), read_arrays(file / SPARSIFY_WEIGHTS), said, file)
    there = ", ".join(sorted(p.name for p in file.iterdir())) if file.is_dir() else "nothing"
    raise SAEFormatError(
        f"No SAE at {file}: there is {there or 'an empty directory'}. Read are: {CONFIG} with "
        f"{SAELENS_WEIGHTS} (SAELens) or {SPARSIFY_WEIGHTS} (sparsify), and params.npz (Gemma Scope)."
    )


def _from_sparsify(config: Mapping[str, Any], arrays: Arrays, said: Mapping[str, Any], file: Path) -> SAE:
    """sparsify's conventions: `encoder.weight` is torch's [d_sae, d_in], `W_dec` [d_sae, d_out], `W_skip`
    [d_out, d_in]. An SAE takes b_dec off its input, a transcoder does not. Its activation function is the k
    largest of those that are positive ("groupmax" is refused). With `multi_topk`, what its forward returns is
    of 4 k features; its encode and decode, and ours, are of k.

    What these say was compared with sparsify 1.3.3 (tests/data/sparsify)."""
    function = config.get("activation", "topk")
    if function != "topk":
        raise SAEFormatError(
            f"{file}: the activation {function!r} is not known here. Known: topk. Use this SAE with sparsify."
        )
    if config.get("signed"):
        raise SAEFormatError(
            f"{file}: signed = true, latents of both signs. Activations are 0 or positive here. Use this SAE "
            "with sparsify."
        )
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
    skips = bool(config.get("skip_connection", "W_skip" in arrays))
    check(arrays, [name for name in shapes if name != "W_skip" or skips], shapes, file)
    unknown = sorted(set(arrays) - set(shapes)) + (["W_skip"] if "W_skip" in arrays and not skips else [])
    if unknown:
        raise SAEFormatError(
            f"{file}: arrays {unknown} do not go with {CONFIG}. Known: {', '.join(shapes)}; W_skip where "
            "skip_connection is true. Check that config and weights belong together."
        )
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
        hook_point=required(place, "hook_point", file),
        hook_point_out=required(said["hook_point_out"], "hook_point_out", file) if transcoder else None,
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
    check(arrays, list(shapes), shapes, file)
    return SAE(
        W_enc=arrays["W_enc"],
        b_enc=arrays["b_enc"],
        W_dec=arrays["W_dec"],
        b_dec=arrays["b_dec"],
        activation=JumpRelu(arrays["threshold"]),
        hook_point=required(said["hook_point"], "hook_point", file),
        hook_point_out=said["hook_point_out"],
        model=str(said["model"] or "unknown"),
        metadata={"format": "Gemma Scope"},
    )


def _sparsify_place(name: str) -> str | None:
    """sparsify names directories after modules: `layers.10` is the output of block 10, `layers.10.mlp` its
    MLP's."""
    parts = name.split(".")
    if len(parts) >= 2 and parts[0] in ("layers", "h") and parts[1].isdecimal():
        last = {(): "resid_post", ("mlp",): "mlp_out"}.get(tuple(parts[2:]))
        return None if last is None else f"L{parts[1]}.{last}"
    return None
