"""`Corpus`: a feature store whose documents are split into a training and a test half.

Documents are split by a hash of their tokens before anything is sampled, so a text that occurs twice is on
one side.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlxterp.auto_interp.evidence.token_view import Indices, TokenView, view_of_store
from mlxterp.sae.feature_store.store import FeatureStore

Half = Literal["train", "test"]
_NEAR = 5  # windows are alike if the peak and this many tokens on either side are the same, letter case aside


@dataclass(frozen=True, eq=False)
class ByWord:
    """Tokens by their text: those of `strings[w]` are `index[begins[w] : begins[w + 1]]`, ascending."""

    index: Indices
    begins: Indices


@dataclass(frozen=True, eq=False)
class Corpus:
    """A store with its documents split in two.

    Args:
        store: what fires where.
        seed: of the split and of every draw. A feature's windows depend on the seed and its own number only,
            not on the other features asked for.
    """

    store: FeatureStore
    seed: int = 0
    _memory: dict[str, Indices] = field(default_factory=dict, repr=False)
    _sorted: dict[tuple[str, int], ByWord] = field(default_factory=dict, repr=False)

    @cached_property
    def in_train(self) -> NDArray[np.bool_]:
        """[n_documents] True for the training half, by a hash of each document's tokens and the seed."""
        store = self.store
        starts = np.searchsorted(store.document, np.arange(store.n_documents + 1))
        halves = np.zeros(store.n_documents, dtype=bool)
        for i in range(store.n_documents):
            seen = hashlib.sha256(str(self.seed).encode())
            seen.update(np.ascontiguousarray(store.tokens[starts[i] : starts[i + 1]]).tobytes())
            halves[i] = seen.digest()[0] < 128
        return halves

    @cached_property
    def token_in_train(self) -> NDArray[np.bool_]:
        """[n] the half of each token."""
        return self.in_train[self.store.document]

    def random(self, feature_id: int, what: int) -> np.random.Generator:
        """The source of one feature's draws of one kind."""
        return np.random.default_rng([self.seed, feature_id, what])

    def counted(self, half: Half) -> Indices:
        """The counted tokens of a half, ascending."""
        if half not in self._memory:
            inside = self.token_in_train if half == "train" else ~self.token_in_train
            self._memory[half] = np.flatnonzero(self.store.counted & inside)
        return self._memory[half]

    def by_word(self, half: Half, offset: int = 0) -> ByWord:
        """The counted tokens of a half, sorted by which token they are, or which one is at a distance."""
        if (half, offset) not in self._sorted:
            own = self.counted(half)
            words = self.view.neighbour(own, offset)
            order = np.argsort(words, kind="stable")
            begins = np.searchsorted(words[order], np.arange(len(self.store.strings) + 1))
            self._sorted[half, offset] = ByWord(own[order], begins)
        return self._sorted[half, offset]

    @cached_property
    def view(self) -> TokenView:
        """The corpus as rules see it."""
        return view_of_store(self.store)

    @cached_property
    def _folded(self) -> Indices:
        """[n] each token as a number, the same for tokens that differ in letter case only."""
        _, number = np.unique([text.casefold() for text in self.store.strings], return_inverse=True)
        return number.astype(np.int64)[self.store.word] if len(self.store.strings) else np.zeros(0, np.int64)

    @cached_property
    def surroundings(self) -> NDArray[np.uint64]:
        """[n] a hash of each token and its neighbours within the row: equal for near-identical windows."""
        store, n = self.store, self.store.n_tokens
        result = np.zeros(n, dtype=np.uint64)
        at = np.arange(n)
        for offset in range(-_NEAR, _NEAR + 1):
            near = at + offset
            inside = (near >= store.row_start) & (near < store.row_stop)
            token = np.where(inside, self._folded[np.clip(near, 0, max(n - 1, 0))] + 1, 0).astype(np.uint64)
            result = (result ^ token) * np.uint64(0x9E3779B97F4A7C15)
            result ^= result >> np.uint64(29)
        return result
