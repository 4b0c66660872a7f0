"""Blocks of a store that is being built, kept as files beside it, so that a build that was killed goes on.

Lives here: the folder of an unfinished build and what is in it. Does not live here: making a block
(`jobs.py`), joining blocks and finishing the store (`store.py`).

The folder is named after what the store is made of, so blocks of other texts, another SAE or other options
are never read. Each file is written beside and renamed. Two processes that build the same store share the
folder: either's block is the same bit for bit. The one that is done first removes it; the other then keeps
nothing more, and finds the store finished.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxterp._files import write_atomically
from mlxterp._version import __version__
from mlxterp.sae.feature_store.jobs import BLOCK_BATCHES, Block

_KINDS = {
    "tokens": np.uint32,
    "lengths": np.int64,
    "counted": np.bool_,
    "norm": np.float32,
    "token_index": np.uint32,
    "feature": np.uint32,
    "activation": np.float32,
}
"""What a block is on disk: 12 bytes an activation."""


@dataclass(frozen=True)
class Unfinished:
    """The finished blocks of one store at one path."""

    folder: Path

    @staticmethod
    def at(path: Path, facts: Mapping[str, Any]) -> Unfinished:
        """What there is of the store of these facts; its folder is made if there is none."""
        made_of = json.dumps([dict(facts), __version__, BLOCK_BATCHES, list(_KINDS)], sort_keys=True)
        digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
        folder = path.with_name(f"{_prefix(path)}{digest}")
        folder.mkdir(parents=True, exist_ok=True)
        return Unfinished(folder)

    def read(self, documents: range) -> Block | None:
        """The block of these documents as it was kept, without forwards; None if it has to be made."""
        try:
            said, data = _split(self._file(documents).read_bytes())
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).digest() != said:
            return None  # damaged: it is made again
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            arrays = {name: found[name] for name in _KINDS}
        for name in ("tokens", "token_index", "feature"):
            arrays[name] = arrays[name].astype(np.int64)
        return Block(**arrays, forwards=0)

    def keep(self, documents: range, block: Block) -> None:
        """Writes a block, in one step; nothing if the folder is gone, because another process finished."""
        file = io.BytesIO()
        np.savez(file, **{name: getattr(block, name).astype(kind) for name, kind in _KINDS.items()})
        data = file.getvalue()
        try:
            write_atomically(self._file(documents), hashlib.sha256(data).digest() + data)
        except FileNotFoundError:
            return

    def ready(self) -> Path:
        """An empty folder of this process's own, to write the finished store to."""
        made = self.folder / f"ready-{uuid.uuid4().hex[:8]}"
        made.mkdir(parents=True)
        return made

    def forget_if_empty(self) -> None:
        """Removes the folder of a build that failed before its first block."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _file(self, documents: range) -> Path:
        return self.folder / f"{documents.start}-{documents.stop}.block"


def discard(path: Path) -> None:
    """Removes what unfinished builds have left beside a finished store, of this content or another."""
    for folder in path.parent.glob(f"{glob.escape(_prefix(path))}*"):
        shutil.rmtree(folder, ignore_errors=True)  # another process may be writing there: it cleans up too


def _split(data: bytes) -> tuple[bytes, bytes]:
    """A block's file: the SHA-256 of its arrays, and these."""
    size = hashlib.sha256().digest_size
    return data[:size], data[size:]


def _prefix(path: Path) -> str:
    return f".{path.name}.unfinished-"
