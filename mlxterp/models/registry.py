"""From a name to a module with its tokenizer: bundled models, GGUF files, directories, hub ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxterp._files import user_path
from mlxterp.errors import ModelNotFound
from mlxterp.models import precision

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model as it came, with what is known of its origin."""

    name: str
    module: nn.Module
    tokenizer: Any
    facts: Mapping[str, Any] = field(default_factory=dict)


def add_adapter(loaded: Loaded, directory: str | Path) -> Loaded:
    """Wraps the layers of a model with the adapter that mlx-lm wrote into `directory`; changes the module.

    LoRA or DoRA: `adapter_config.json` and `adapters.safetensors`, read by mlx-lm's own loader.

    Raises:
        ModelNotFound: there is no such adapter, or it does not fit this model.
    """
    from mlx_lm.tuner.utils import load_adapters

    folder = user_path(directory)
    lacking = [n for n in ("adapter_config.json", "adapters.safetensors") if not (folder / n).is_file()]
    if lacking:
        raise ModelNotFound(
            f"adapter_path={str(directory)!r}: there is no {lacking[0]} in this directory. Give the "
            "directory that `mlx_lm.lora` wrote, with adapter_config.json and adapters.safetensors."
        )
    try:
        # The weights are loaded without a check, so an adapter of another model would change nothing, or the
        # shapes of layers with the same names, which a run of one token shows.
        module = load_adapters(loaded.module, str(folder))
        mx.eval(module(mx.array([[0]])))
        stored: Any = mx.load(str(folder / "adapters.safetensors"))
        here = {path: array.shape for path, array in tree_flatten(module.parameters())}
        unfit = [name for name, value in stored.items() if here.get(name) != value.shape]
        problem = f"the model has no {unfit[0]} of shape {stored[unfit[0]].shape}" if unfit else ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotFound(
            f"adapter_path={str(directory)!r}: mlx-lm cannot load it into {loaded.name}: "
            f"{_first_line(error)}. Use an adapter that was trained on this model."
        ) from error
    if problem:
        raise ModelNotFound(
            f"adapter_path={str(directory)!r} does not fit {loaded.name}: {problem}. Use an adapter that was "
            "trained on this model."
        )
    module.eval()  # no dropout
    return replace(loaded, module=module, facts={**loaded.facts, "adapter": folder.name})


def load(name: str, *, quantized: bool, progress: Progress | None, convert: bool = True) -> Loaded:
    """Loads `name`: a bundled model, a GGUF file, a directory in mlx-lm's format, or a Hugging Face hub id.

    Without `quantized`, what mlx-lm loads is made float32 where MLX has no GPU (`precision.py`), unless
    `convert` is False because the caller chooses a type.

    Raises:
        ModelNotFound: saying what was tried, and what needs no download.
    """
    from mlxterp.models import bundled

    path = user_path(name)
    if name in bundled.NAMES:
        return _bundled(name, bundled.load(name, quantized=quantized, progress=progress))
    if path.suffix == ".gguf":
        return _bundled(name, bundled.load_gguf(path, quantized=quantized, progress=progress))
    convert = convert and not quantized and precision.computes_on_cpu()
    if path.is_dir():
        needed = "A directory needs config.json, weights (*.safetensors) and a tokenizer"
        return _with_mlx_lm(name, str(path), f"the directory {path}", needed, progress, convert=convert)
    if name.count("/") == 1 and not name.startswith(("/", ".", "~")):
        needed = "A hub id needs access to huggingface.co, or a copy in its cache"
        return _with_mlx_lm(
            name, name, f"the Hugging Face hub id {name!r}", needed, progress, convert=convert
        )
    raise ModelNotFound(
        f"{name!r} is no bundled model ({', '.join(bundled.NAMES)}), no file or directory here, and no hub "
        "id ('owner/name'). 'toy-induction' needs no download."
    )


def _bundled(name: str, found: tuple[nn.Module, Any, Mapping[str, Any]]) -> Loaded:
    return Loaded(name, *found)


def _with_mlx_lm(
    name: str, where: str, what: str, needed: str, progress: Progress | None, *, convert: bool
) -> Loaded:
    # mlx_lm takes more than a second to import, most of it for tokenizers; bundled models do without.
    import mlx_lm

    if progress:
        progress(f"Loading {what} with mlx-lm")
    try:
        module, tokenizer, *_ = mlx_lm.load(where, lazy=True)  # so that the size is known first
    except (OSError, ValueError) as error:  # the hub's own errors are OSErrors
        raise ModelNotFound(
            f"{name!r}: tried {what} with mlx-lm, which said: {_first_line(error)}. {needed}. "
            "'toy-induction' needs no download."
        ) from error
    stored = precision.storage(module).says
    if convert and precision.to_float32(module, name, progress):
        return Loaded(name, module, tokenizer, {"weights": f"float32, stored in {stored}"})
    return Loaded(name, module, tokenizer, {"weights": stored})


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
