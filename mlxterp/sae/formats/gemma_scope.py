"""Gemma Scope's files: JumpReLU SAEs and transcoders; b_dec stays on the input.

- `params.npz`, of Gemma 2: W_enc [d_in, d_sae], W_dec [d_sae, d_in]. It names neither model nor hook point.
- `params.safetensors` beside `config.json`, of Gemma 3 ("Gemma Scope 2"): w_enc, w_dec of the same shapes,
  and of a transcoder with a linear path `affine_skip_connection` [d_in, d_out]. The config names the model,
  and the modules that are read and written. Its crosscoders and cross-layer transcoders read or write several
  layers, and are refused.

Source: Lieberum et al. 2024, "Gemma Scope", arXiv:2408.05147.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlxterp.errors import SAEFormatError
from mlxterp.sae.formats.weight_files import Arrays, Overrides, check, read_arrays, required
from mlxterp.sae.sae import SAE, JumpRelu

WEIGHTS = "params.npz"
WEIGHTS_2, CONFIG_2 = "params.safetensors", "config.json"

_NAMES_2 = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"}
_LAYER = re.compile(r"model\.(?:language_model\.)?layers\.(\d+)\.(.+)")
_PLACES_2 = {
    "output": "L{}.resid_post",
    "self_attn.o_proj.input": "L{}.z",
    "post_attention_layernorm.output": "L{}.attn_out",
    "post_feedforward_layernorm.output": "L{}.mlp_out",
    "pre_feedforward_layernorm.output": "model.layers.{}.pre_feedforward_layernorm",
}
"""What its modules are called here: Gemma 3 adds to the stream what leaves the norm after attention or
MLP."""


class Facts(NamedTuple):
    """What a config of Gemma Scope 2 says: model and hook points, None where it does not, or not in names
    known here."""

    model: str | None
    reads: str | None
    writes: str | None


def to_sae(file: Path, overrides: Overrides) -> SAE:
    """The SAE in this `.npz` file; it names neither model nor hook point, so `overrides` must."""
    loaded: Any = mx.load(str(file))
    return _to_sae(dict(loaded), overrides, file, "Gemma Scope")


def is_version_2(folder: Path) -> bool:
    """Whether a directory holds an SAE or transcoder of Gemma Scope 2."""
    return (folder / CONFIG_2).is_file() and (folder / WEIGHTS_2).is_file() and bool(_config(folder))


def facts(folder: Path) -> Facts:
    """What the config in this directory says of its model and hook points."""
    config = _config(folder)
    model = str(config.get("model_name") or "").rpartition("/")[2].replace("-v3", "-3").removesuffix("-pt")
    reads, writes = (_place(config.get(f"hf_hook_point_{which}")) for which in ("in", "out"))
    return Facts(model or None, reads, None if writes == reads else writes)


def to_sae_2(folder: Path, overrides: Overrides) -> SAE:
    """The SAE or transcoder in this directory of Gemma Scope 2."""
    config, own, file = _config(folder), facts(folder), folder / WEIGHTS_2
    arrays = {_NAMES_2.get(name, name): array for name, array in read_arrays(file).items()}
    architecture = str(config.get("architecture", "jump_relu"))
    if architecture != "jump_relu" or config.get("type") in ("crosscoder", "clt"):
        raise SAEFormatError(
            f"{folder}: architecture {architecture!r}, type {config.get('type')!r}. Read are "
            "jump_relu SAEs and transcoders of one layer."
        )
    known = Overrides(
        overrides.model or own.model,
        overrides.hook_point or own.reads,
        overrides.hook_point_out or own.writes,
    )
    return _to_sae(arrays, known, file, "Gemma Scope 2", config)


def _to_sae(
    arrays: Arrays, overrides: Overrides, file: Path, version: str, config: dict[str, Any] | None = None
) -> SAE:
    if "W_enc" not in arrays or arrays["W_enc"].ndim != 2:
        several = " Several layers at once are not read." if "W_enc" in arrays else ""
        raise SAEFormatError(
            f"{file}: arrays {sorted(arrays)}. {version}'s are W_enc, b_enc, W_dec, b_dec, threshold."
            f"{several}"
        )
    d_in, d_sae = arrays["W_enc"].shape
    d_out = arrays["W_dec"].shape[1] if "W_dec" in arrays and arrays["W_dec"].ndim == 2 else d_in
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
        "threshold": (d_sae,),
    }
    needed = list(shapes)
    if (config or {}).get("affine_connection"):
        needed.append("W_skip")
    check(arrays, needed, shapes | {"W_skip": (d_in, d_out)}, file)
    return SAE(
        W_enc=arrays["W_enc"],
        b_enc=arrays["b_enc"],
        W_dec=arrays["W_dec"],
        b_dec=arrays["b_dec"],
        activation=JumpRelu(arrays["threshold"]),
        hook_point=required(overrides.hook_point, "hook_point", file),
        hook_point_out=overrides.hook_point_out,
        W_skip=arrays.get("W_skip"),
        model=str(overrides.model or "unknown"),
        metadata={"format": version} | ({} if config is None else {"config": config}),
    )


def _config(folder: Path) -> dict[str, Any]:
    """The config of Gemma Scope 2 in a directory; empty for one of something else, as of a model."""
    try:
        config = json.loads((folder / CONFIG_2).read_text(encoding="utf-8"))
    except ValueError as problem:
        raise SAEFormatError(f"{folder / CONFIG_2} is not JSON: {problem}. Get the file again.") from problem
    return config if isinstance(config, dict) and "hf_hook_point_in" in config else {}


def _place(module: Any) -> str | None:
    """`model.layers.9.output` → `L9.resid_post`; None for others."""
    found = _LAYER.fullmatch(str(module))
    return _PLACES_2[found[2]].format(found[1]) if found and found[2] in _PLACES_2 else None
