"""sparsify's format: `cfg.json` and `sae.safetensors`, read only.

`encoder.weight` is torch's [d_sae, d_in], `W_dec` [d_sae, d_out], `W_skip` [d_out, d_in]. An SAE takes
b_dec off its input, a transcoder does not. The activation function keeps the k largest of the positive
pre-activations ("groupmax" is refused). With `multi_topk`, sparsify's forward returns 4 k features; its
encode and decode, and ours, are of k. Compared with sparsify 1.3.3 (tests/data/saes/sparsify).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxterp.errors import SAEFormatError
from mlxterp.sae.formats.weight_files import CONFIG, Arrays, Overrides, check, required
from mlxterp.sae.sae import SAE, TopK

WEIGHTS = "sae.safetensors"


def to_sae(config: Mapping[str, Any], arrays: Arrays, overrides: Overrides, file: Path) -> SAE:
    """The SAE of this config and these arrays; `file` is the directory, for its name and for errors."""
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
    skip = arrays.get("W_skip")
    return SAE(
        W_enc=arrays["encoder.weight"].T,
        b_enc=arrays["encoder.bias"],
        W_dec=arrays["W_dec"],
        b_dec=arrays["b_dec"],
        activation=TopK(int(config["k"])),
        hook_point=required(overrides.hook_point or _hook_point(file.name), "hook_point", file),
        hook_point_out=required(overrides.hook_point_out, "hook_point_out", file) if transcoder else None,
        model=str(overrides.model or "unknown"),
        subtract_b_dec=not transcoder,
        W_skip=None if skip is None else skip.T,
        metadata={"format": "sparsify", "config": dict(config)},
    )


def _hook_point(folder: str) -> str | None:
    """sparsify names directories after modules: `layers.10` is the output of block 10, `layers.10.mlp` its
    MLP's."""
    parts = folder.split(".")
    if len(parts) >= 2 and parts[0] in ("layers", "h") and parts[1].isdecimal():
        last = {(): "resid_post", ("mlp",): "mlp_out"}.get(tuple(parts[2:]))
        return None if last is None else f"L{parts[1]}.{last}"
    return None
