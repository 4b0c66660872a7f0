"""Blocks joined to a store, and stored as files beside it until then, so that a build that was killed goes
on.

The folder of an unfinished build is named after what the store is made of, so blocks of other texts,
another SAE or other options are never read. Each file is written beside and renamed. Two processes that
build the same store share the folder: either's block is the same bit for bit. The first to finish removes
it; the other then stores no more blocks, and finds the store finished.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

from mlxterp._files import write_atomically
from mlxterp._version import __version__
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import TextTokens
from mlxterp.sae.feature_store.jobs import BLOCK_BATCHES, Block, Pass
from mlxterp.sae.feature_store.store import FeatureStore

_DIGITS = 4
"""Digits of the norm limit: few enough that the order of float32 additions does not change it."""


def joined(
    done: Sequence[Block], d_sae: int, how: Pass, facts: dict[str, Any], model: InterpretableModel
) -> FeatureStore:
    """The store of all blocks, in order; `facts` gain the norm limit and the number of tokens beyond it."""
    tokens = np.concatenate([block.tokens for block in done])
    lengths = np.concatenate([block.lengths for block in done])
    document = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    begins = np.cumsum(lengths) - lengths
    before = np.cumsum([0, *(len(block.tokens) for block in done)])
    place = np.concatenate([b.token_index + offset for b, offset in zip(done, before[:-1], strict=True)])
    counted, norm = (np.concatenate([getattr(block, name) for block in done]) for name in ("counted", "norm"))
    limit = _norm_limit(norm[counted], how.outlier)
    usual = norm <= limit
    kept = usual[place]
    place = place[kept]
    per_token = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(tokens)))])
    feature = np.concatenate([block.feature for block in done])[kept]
    value = np.concatenate([block.activation for block in done])[kept]
    by_feature: csc_array = csr_array((value, feature, per_token), shape=(len(tokens), d_sae)).tocsc()
    token_ids = np.unique(tokens)
    return FeatureStore(
        tokens=tokens.astype(np.uint32),
        document=document,
        position=(np.arange(len(tokens)) - np.repeat(begins, lengths)).astype(np.int32),
        counted=counted & usual,
        indptr=by_feature.indptr.astype(np.int64),
        token_index=by_feature.indices.astype(np.uint32),
        activation=by_feature.data.astype(np.float32),
        token_ids=token_ids.astype(np.uint32),
        strings=_strings(model, tokens, token_ids, begins),
        context=how.context,
        facts=facts
        | {
            "norm_limit": limit if np.isfinite(limit) else None,
            "norm_outliers": int((counted & ~usual).sum()),
        },
        forwards=sum(block.forwards for block in done),
    )


def _norm_limit(norms: NDArray[np.float32], outlier: float) -> float:
    """The norm above which a token is left out, from all tokens of the corpus, whatever the batches and their
    order. Infinite where half of the activations are zero: the median then says nothing."""
    median = float(np.median(norms)) if len(norms) else 0.0
    return float(f"{outlier * median:.{_DIGITS}g}") if median > 0 else np.inf


def _strings(
    model: InterpretableModel,
    tokens: NDArray[np.int64],
    token_ids: NDArray[np.int64],
    begins: NDArray[np.int64],
) -> tuple[str, ...]:
    """The text of each id, decoded behind a token that it follows somewhere, if there is one: some decoders
    drop the space that begins a text."""
    if model.tokenizer is None:
        return tuple(f"<{token}>" for token in token_ids)
    split = TextTokens(model.tokenizer).split
    inner = np.ones(len(tokens), dtype=bool)
    inner[begins] = False
    places = np.flatnonzero(inner)
    _, first = np.unique(tokens[places], return_index=True)
    behind = {int(tokens[places[i]]): int(tokens[places[i] - 1]) for i in first}
    return tuple(
        split([behind[token], token])[1] if token in behind else split([token])[0]
        for token in token_ids.tolist()
    )


_KINDS = {
    "tokens": np.uint32,
    "lengths": np.int64,
    "counted": np.bool_,
    "norm": np.float32,
    "token_index": np.uint32,
    "feature": np.uint32,
    "activation": np.float32,
}
"""The arrays of a block on disk: 12 bytes an activation."""


@dataclass(frozen=True)
class Unfinished:
    """The finished blocks of one store at one path."""

    folder: Path

    @staticmethod
    def at(path: Path, facts: Mapping[str, Any]) -> Unfinished:
        """The unfinished build of the store of these facts; its folder is made if there is none."""
        made_of = json.dumps([dict(facts), __version__, BLOCK_BATCHES, list(_KINDS)], sort_keys=True)
        digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
        folder = path.with_name(f"{_prefix(path)}{digest}")
        folder.mkdir(parents=True, exist_ok=True)
        return Unfinished(folder)

    def read(self, documents: range) -> Block | None:
        """The stored block of these documents; None if it has to be computed."""
        try:
            content = self._file(documents).read_bytes()
        except FileNotFoundError:
            return None
        size = hashlib.sha256().digest_size
        digest, data = content[:size], content[size:]
        if hashlib.sha256(data).digest() != digest:
            return None  # damaged: it is computed again
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            arrays = {name: found[name] for name in _KINDS}
        for name in ("tokens", "token_index", "feature"):
            arrays[name] = arrays[name].astype(np.int64)
        return Block(**arrays, forwards=0)

    def write(self, documents: range, block: Block) -> None:
        """Writes a block in one step; does nothing if another process has finished and removed the folder."""
        file = io.BytesIO()
        np.savez(file, **{name: getattr(block, name).astype(kind) for name, kind in _KINDS.items()})
        data = file.getvalue()
        with contextlib.suppress(FileNotFoundError):
            write_atomically(self._file(documents), hashlib.sha256(data).digest() + data)

    def new_folder(self) -> Path:
        """An empty folder of this process's own, to write the finished store to."""
        made = self.folder / f"ready-{uuid.uuid4().hex[:8]}"
        made.mkdir(parents=True)
        return made

    def remove_if_empty(self) -> None:
        """Removes the folder of a build that failed before its first block."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _file(self, documents: range) -> Path:
        return self.folder / f"{documents.start}-{documents.stop}.block"


def discard(path: Path) -> None:
    """Removes the folders of unfinished builds beside a finished store, of this content or another."""
    for folder in path.parent.glob(f"{glob.escape(_prefix(path))}*"):
        shutil.rmtree(folder, ignore_errors=True)  # another process that writes there removes it too


def _prefix(path: Path) -> str:
    return f".{path.name}.unfinished-"
