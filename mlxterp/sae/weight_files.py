"""What readers of SAE files share: arrays with their shapes checked, configs, and what a file must say.

Lives here: no format. Does not live here: what arrays mean (`saelens.py`, `formats.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxterp.errors import SAEFormatError

CONFIG = "cfg.json"

Arrays = dict[str, mx.array]


def check(arrays: Arrays, needed: list[str], shapes: Mapping[str, tuple[int, ...]], file: Path) -> None:
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


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except json.JSONDecodeError as problem:
        raise SAEFormatError(f"{folder / CONFIG} is not JSON: {problem}. Get the file again.") from problem
    if not isinstance(config, dict):
        raise SAEFormatError(f"{folder / CONFIG} holds a {type(config).__name__}, not an object.")
    return config


def read_arrays(file: Path) -> Arrays:
    loaded: Any = mx.load(str(file))
    mx.eval(loaded)
    return dict(loaded)


def required(value: str | None, name: str, file: Path) -> str:
    if value is None:
        raise SAEFormatError(
            f"{file} does not say where it reads or writes in our words. Give {name}= to load_sae, as in "
            "'L15.resid_post'."
        )
    return value
