"""What the readers of SAE files share: arrays with their shapes and values checked, configs, overrides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp.errors import SAEFormatError

CONFIG = "cfg.json"
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

Arrays = dict[str, mx.array]


@dataclass(frozen=True)
class Overrides:
    """Facts that a caller gives; they override those in the file."""

    model: str | None = None
    hook_point: str | None = None
    hook_point_out: str | None = None


def check(arrays: Arrays, needed: list[str], shapes: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """Raises SAEFormatError for missing arrays, wrong shapes, and values that are no numbers.

    An infinite threshold is a feature that never fires; every other value must be finite.
    """
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
    for name in (name for name in shapes if name in arrays):
        array = arrays[name].astype(mx.float32)
        bad = mx.isnan(array) if "threshold" in name else ~mx.isfinite(array)
        if count := int(bad.sum()):
            raise SAEFormatError(
                f"{file}: {name} holds {count:,} values of {array.size:,} that are NaN or infinite, so no "
                "activation computed from it means anything. Get the file again, or train the SAE anew."
            )


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except json.JSONDecodeError as problem:
        raise SAEFormatError(f"{folder / CONFIG} is not JSON: {problem}. Get the file again.") from problem
    if not isinstance(config, dict):
        raise SAEFormatError(f"{folder / CONFIG} holds a {type(config).__name__}, not an object.")
    return config


def read_arrays(file: Path) -> Arrays:
    """The arrays of a safetensors file; those in float64, which MLX does not read, as float32.

    SAELens writes the threshold of a batchtopk training in float64.
    """
    header, start = _header(file)
    if any(entry["dtype"] == "F64" for entry in header.values()):
        return {name: _array(file, entry, start) for name, entry in header.items()}
    loaded: Any = mx.load(str(file))
    mx.eval(loaded)
    return dict(loaded)


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Each array's dtype, shape and offsets by its name, and where the data begin."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        text = opened.read(size) if 8 + size <= file.stat().st_size else b""
    try:
        header = json.loads(text)
    except ValueError as problem:
        raise SAEFormatError(
            f"{file} is not a safetensors file, or is cut short. Get the file again."
        ) from problem
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    ends = 8 + size + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if file.stat().st_size < ends:
        raise SAEFormatError(
            f"{file} has {file.stat().st_size:,} bytes of {ends:,}: it is cut short. Get the file again."
        )
    return entries, 8 + size


def _array(file: Path, entry: Mapping[str, Any], start: int) -> mx.array:
    if entry["dtype"] not in _DTYPES:
        raise SAEFormatError(
            f"{file}: an array in {entry['dtype']}. Read are {', '.join(_DTYPES)}. Save it in float32."
        )
    low, high = entry["data_offsets"]
    kind = np.dtype(_DTYPES[entry["dtype"]])
    values = np.fromfile(file, kind, (high - low) // kind.itemsize, offset=start + low).reshape(
        entry["shape"]
    )
    if entry["dtype"] == "BF16":
        return mx.array(values).view(mx.bfloat16)
    return mx.array(values.astype(np.float32))


def required(value: str | None, name: str, file: Path) -> str:
    if value is None:
        raise SAEFormatError(
            f"{file} names no {name.replace('_', ' ')} that is known here. Give {name}= to load_sae, as in "
            "'L15.resid_post'."
        )
    return value
