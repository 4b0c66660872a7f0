"""`FeatureStore`: which feature fires at which token of a corpus, as numpy arrays on disk or in memory.

`build.py` makes one. Nothing here needs mlx.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxterp._files import replace_directory
from mlxterp.errors import StoreError

FORMAT = "mlxterp-feature-store/1"
_FACTS = "store.json"
_ARRAYS = {
    "tokens": np.uint32,
    "document": np.int32,
    "position": np.int32,
    "counted": np.bool_,
    "indptr": np.int64,
    "token_index": np.uint32,
    "activation": np.float32,
    "token_ids": np.uint32,
}


class Firing(NamedTuple):
    """Where one feature fires: token indices in ascending order, and its activation at each, > 0."""

    token_index: NDArray[np.uint32]
    activation: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """The activations of all features of one SAE on one corpus, by feature.

    A corpus is a sequence of n tokens, document after document. A model sees a document in rows of at most
    `context` tokens, each begun anew, so `position` mod `context` is the position that it saw.

    Attributes:
        tokens: [n] token ids.
        document: [n] which document a token is of, ascending from 0.
        position: [n] where in its document.
        counted: [n] False for tokens that are no evidence: the first of each row, special tokens, outliers
            of the norm (`build_store`). No feature has an activation there.
        indptr: [d_sae + 1]; feature f owns `token_index[indptr[f]:indptr[f + 1]]`.
        token_index: [k] where features fire, ascending for each feature.
        activation: [k] > 0.
        token_ids, strings: the ids that occur, ascending, and the text of each.
        context: tokens of a row.
        facts: what the store was made of, plain values: digests of model, SAE and texts, hook point, the norm
            above which tokens were left out and how many these are.
        forwards: calls of the model that it took; 0 when it was read from disk.
        path: where it is on disk, if it is.
    """

    tokens: NDArray[np.uint32]
    document: NDArray[np.int32]
    position: NDArray[np.int32]
    counted: NDArray[np.bool_]
    indptr: NDArray[np.int64]
    token_index: NDArray[np.uint32]
    activation: NDArray[np.float32]
    token_ids: NDArray[np.uint32]
    strings: tuple[str, ...]
    context: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    forwards: int = 0
    path: Path | None = None

    def __post_init__(self) -> None:
        n = len(self.tokens)
        lengths = {name: len(getattr(self, name)) for name in ("document", "position", "counted")}
        if any(length != n for length in lengths.values()) or len(self.token_index) != len(self.activation):
            raise StoreError(
                f"A store of {n} tokens with {lengths} and {len(self.token_index)} activations at "
                f"{len(self.activation)} places. Each token has a document, a position and a mark; each "
                "activation a place."
            )
        if len(self.token_ids) != len(self.strings):
            raise StoreError(
                f"A store with {len(self.token_ids)} token ids and {len(self.strings)} texts of them. "
                "Give one text for each id."
            )

    def __repr__(self) -> str:
        return (
            f"FeatureStore({self.d_sae} features, {self.n_tokens} tokens of {self.n_documents} documents, "
            f"{len(self.token_index)} activations)"
        )

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def d_sae(self) -> int:
        """How many features the SAE has."""
        return len(self.indptr) - 1

    @property
    def n_documents(self) -> int:
        return int(self.document[-1]) + 1 if len(self.document) else 0

    @cached_property
    def n_counted(self) -> int:
        """How many tokens may be evidence."""
        return int(self.counted.sum())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every array and of the norm above which tokens are left out; hex. Reads all of it."""
        seen = hashlib.sha256(f"{self.context} {self.facts.get('norm_limit')}".encode())
        for name in _ARRAYS:
            array = np.ascontiguousarray(getattr(self, name))
            seen.update(f"{name} {array.shape}".encode())
            seen.update(array.data)
        return seen.hexdigest()

    def feature(self, feature_id: int) -> Firing:
        """Where feature `feature_id` fires, and how strongly. Costs nothing.

        Raises:
            StoreError: there is no such feature.
        """
        if not 0 <= feature_id < self.d_sae:
            raise StoreError(
                f"There is no feature {feature_id}: the SAE has {self.d_sae}, 0 to {self.d_sae - 1}."
            )
        own = slice(int(self.indptr[feature_id]), int(self.indptr[feature_id + 1]))
        return Firing(self.token_index[own], self.activation[own])

    def activations_of(self, feature_id: int) -> NDArray[np.float32]:
        """[n] the activation of feature `feature_id` at every token, 0 where it does not fire."""
        fires = self.feature(feature_id)
        result = np.zeros(self.n_tokens, dtype=np.float32)
        result[fires.token_index] = fires.activation
        return result

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """[d_sae] at how many tokens each feature fires."""
        return np.diff(self.indptr)

    @cached_property
    def density(self) -> NDArray[np.float64]:
        """[d_sae] the share of counted tokens at which each feature fires."""
        return self.counts / max(self.n_counted, 1)

    @cached_property
    def max_activation(self) -> NDArray[np.float32]:
        """[d_sae] the largest activation of each feature, 0 for one that never fires."""
        return _by_feature(np.maximum, self.activation, self.indptr).astype(np.float32)

    @cached_property
    def mean_activation(self) -> NDArray[np.float32]:
        """[d_sae] the mean over the tokens where a feature fires, 0 for one that never fires."""
        total = _by_feature(np.add, self.activation.astype(np.float64), self.indptr)
        return (total / np.maximum(self.counts, 1)).astype(np.float32)

    @cached_property
    def row_start(self) -> NDArray[np.int64]:
        """[n] the index of the first token of each token's row."""
        return np.arange(self.n_tokens) - self.position % self.context

    @cached_property
    def row_stop(self) -> NDArray[np.int64]:
        """[n] the index behind the last token of each token's row."""
        starts = np.flatnonzero(self.position % self.context == 0)
        stops = np.append(starts[1:], self.n_tokens)
        return np.repeat(stops, stops - starts)

    @cached_property
    def word(self) -> NDArray[np.int64]:
        """[n] each token as an index into `token_ids` and `strings`."""
        return np.searchsorted(self.token_ids, self.tokens)

    @cached_property
    def _texts(self) -> NDArray[np.object_]:
        """`strings` as an array, for indexing."""
        texts = np.empty(len(self.strings), dtype=object)
        texts[:] = self.strings
        return texts

    def str_token(self, token_id: int) -> str:
        """The text of a token id that occurs in the corpus.

        Raises:
            StoreError: it does not occur.
        """
        at = int(np.searchsorted(self.token_ids, token_id))
        if at == len(self.token_ids) or self.token_ids[at] != token_id:
            raise StoreError(
                f"Token {token_id} does not occur in this corpus, so its text is not stored. "
                "Use model.to_str_tokens."
            )
        return self.strings[at]

    def str_tokens(self, start: int, stop: int) -> tuple[str, ...]:
        """The texts of tokens `start` to `stop`."""
        return tuple(self._texts[self.word[start:stop]].tolist())

    @cached_property
    def document_texts(self) -> tuple[str, ...]:
        """[n_documents] the tokens of each document, joined."""
        bounds = np.searchsorted(self.document, np.arange(self.n_documents + 1)).tolist()
        return tuple("".join(self.str_tokens(a, b)) for a, b in pairwise(bounds))

    def window(self, token_index: int, before: int, after: int) -> slice:
        """At most `before` tokens before one and `after` behind it, all of its row."""
        return slice(
            max(int(token_index) - before, int(self.row_start[token_index])),
            min(int(token_index) + after + 1, int(self.row_stop[token_index])),
        )

    def document_span(self, document: int) -> slice:
        """The tokens of one document."""
        start, stop = np.searchsorted(self.document, [document, document + 1])
        return slice(int(start), int(stop))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes a directory of .npy files and `store.json`, replacing a store that is there, in one step.

        Raises:
            StoreError: something else than a store is there.
        """
        there = Path(path)
        if there.exists() and not (there / _FACTS).is_file():
            raise StoreError(
                f"{there} exists and is no feature store. Give the path of a store, or a new one."
            )
        there.parent.mkdir(parents=True, exist_ok=True)
        beside = there.with_name(f".{there.name}.{uuid.uuid4().hex[:8]}")
        beside.mkdir()
        try:
            self.write(beside)
            replace_directory(there, beside)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return there

    def write(self, folder: Path) -> None:
        """Writes the files of a store into a folder, which `save` and `build_store` then move to its path."""
        for name, kind in _ARRAYS.items():
            np.save(folder / f"{name}.npy", np.ascontiguousarray(getattr(self, name), dtype=kind))
        facts = {
            "format": FORMAT,
            "context": self.context,
            "facts": dict(self.facts),
            "strings": list(self.strings),
        }
        (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def load_store(path: str | os.PathLike[str]) -> FeatureStore:
    """A store that `FeatureStore.save` wrote; its arrays stay on disk until they are read.

    Raises:
        StoreError: there is none, or it was written by another version.
    """
    there = Path(path)
    if not (there / _FACTS).is_file():
        raise StoreError(f"There is no feature store at {there}. Make one with build_store(..., path=).")
    facts = json.loads((there / _FACTS).read_text(encoding="utf-8"))
    if facts.get("format") != FORMAT:
        raise StoreError(
            f"{there} is of format {facts.get('format')!r}; this version reads {FORMAT!r}. Build it again."
        )
    arrays = {name: np.load(there / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
    return FeatureStore(
        **arrays, strings=tuple(facts["strings"]), context=facts["context"], facts=facts["facts"], path=there
    )


def _by_feature(reduce: np.ufunc, values: NDArray[Any], indptr: NDArray[np.int64]) -> NDArray[Any]:
    """[d_sae] one reduction per feature, 0 where it has no values."""
    result = np.zeros(len(indptr) - 1, dtype=values.dtype)
    alive = np.flatnonzero(np.diff(indptr))
    if len(alive):
        result[alive] = reduce.reduceat(values, indptr[alive])
    return result
