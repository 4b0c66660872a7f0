"""Features whose meaning is known, planted in an SAE on `toy-induction`, whose weights are written by hand.

After block 0 the stream holds, in subspaces of its own, the word at a position, the word before it, and the
position (`mlxterp/models/toy_circuit.py`). So an encoder row can fire on exactly one word, a set of words, a
word behind a word, or a position: `plants()` says which. `with_nulls` adds as many features that mean
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from scipy.sparse import csc_array, hstack

from mlxterp.core.model import InterpretableModel
from mlxterp.models.toy_circuit import (
    D_MODEL,
    MODULI,
    POS,
    PREV,
    TOK,
    WORDS,
)
from mlxterp.sae.feature_store.build import store_from_arrays
from mlxterp.sae.feature_store.store import FeatureStore
from mlxterp.sae.sae import SAE, Relu

SUCCESSORS = 3


@dataclass(frozen=True)
class Plant:
    """One feature: on which words, behind which word, or at which position it fires."""

    kind: str
    words: tuple[str, ...] = ()
    after: str = ""
    position: int = -1

    @property
    def row(self) -> tuple[np.ndarray, float]:
        """Its encoder row and bias."""
        row = np.zeros(D_MODEL, dtype=np.float32)
        if self.kind == "position":
            begins = np.cumsum([0, *MODULI[:-1]])
            for begin, modulus in zip(begins, MODULI, strict=True):
                row[POS.start + begin + self.position % modulus] = 1
            return row, -3.5
        for word in self.words:
            row[TOK.start + WORDS.index(word)] = 1
        if self.after:
            row[PREV.start + WORDS.index(self.after)] = 1
            return row, -1.5
        return row, -0.5

    def fires(self, words: list[str], position: int) -> bool:
        """Whether it fires at this position of a text."""
        if self.kind == "position":
            return position == self.position
        here = words[position] in self.words
        return here and (not self.after or (position > 0 and words[position - 1] == self.after))


def successors() -> dict[str, list[str]]:
    """The words that may follow each word in `texts`."""
    n = len(WORDS)
    return {word: [WORDS[(i * 7 + 3 * j + 1) % n] for j in range(SUCCESSORS)] for i, word in enumerate(WORDS)}


def plants() -> list[Plant]:
    """226 features: 40 of one word, 60 of sets, 8 of beginnings, 100 of pairs, 18 of positions."""
    random = np.random.default_rng(1)
    found = [Plant("unigram", (word,)) for word in WORDS]
    for _ in range(60):
        size = int(random.integers(2, 7))
        found.append(Plant("set", tuple(str(word) for word in random.choice(WORDS, size, replace=False))))
    for letters in ("st", "sn", "co", "ho", "b", "c", "r", "l"):
        found.append(Plant("affix", tuple(word for word in WORDS if word.startswith(letters))))
    pairs = [(word, follower) for word, followers in successors().items() for follower in followers]
    for i in random.permutation(len(pairs))[:100]:
        found.append(Plant("bigram", (pairs[i][1],), after=pairs[i][0]))
    found += [Plant("position", position=position) for position in range(1, 19)]
    return found


def texts(n: int, *, seed: int = 0, length: int = 60) -> list[str]:
    """Random walks over words, of about `length` words each."""
    random, follow = np.random.default_rng([seed, 2]), successors()
    found = []
    for _ in range(n):
        walk = [str(random.choice(WORDS))]
        for _ in range(int(random.integers(length // 2, length * 3 // 2)) - 1):
            walk.append(str(random.choice(WORDS if random.random() < 0.3 else follow[walk[-1]])))
        found.append(" ".join(walk))
    return found


def planted_sae(chosen: list[Plant] | None = None, *, scale: float = 1.0) -> SAE:
    """The plants as an SAE at L0.resid_post, all of it times `scale`, its decoder divided by it."""
    rows = [plant.row for plant in (plants() if chosen is None else chosen)]
    W = np.stack([row for row, _ in rows])
    return SAE(
        W_enc=mx.array(W.T * scale),
        b_enc=mx.array(np.array([bias for _, bias in rows], dtype=np.float32) * scale),
        W_dec=mx.array(W / scale),
        b_dec=mx.zeros(D_MODEL),
        activation=Relu(),
        hook_point="L0.resid_post",
        model="toy-induction",
    )


def toy() -> InterpretableModel:
    return InterpretableModel("toy-induction", verify=False)


def activations(store: FeatureStore) -> csc_array:
    """[n_tokens, d_sae] as the store holds it."""
    shape = (store.n_tokens, store.d_sae)
    return csc_array((store.activation, store.token_index.astype(np.int64), store.indptr), shape=shape)


def with_nulls(store: FeatureStore, *, seed: int = 0) -> FeatureStore:
    """The store with each feature a second time, its activations dealt to other tokens at random."""
    random = np.random.default_rng([seed, 3])
    own = activations(store)
    counted = np.flatnonzero(store.counted)
    places = [random.choice(counted, size=int(k), replace=False) for k in store.counts]
    nulls = csc_array((store.activation, np.concatenate(places), store.indptr), shape=own.shape)
    return rebuilt(store, hstack([own, nulls], format="csc"))


def rebuilt(store: FeatureStore, values: csc_array) -> FeatureStore:
    """The same corpus with other activations."""
    return store_from_arrays(
        store.tokens,
        store.document,
        values,
        dict(zip(store.token_ids.tolist(), store.strings, strict=True)),
        context=store.context,
        counted=store.counted,
    )
