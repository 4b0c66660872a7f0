"""Tokens to fit a rule on, and others to test it on: as many where a feature fires as where it does not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxterp.auto_interp.evidence.corpus import Corpus, Half
from mlxterp.auto_interp.evidence.token_view import Bools, Indices


@dataclass(frozen=True, eq=False)
class Draw:
    """Token indices: first those at which the feature fires.

    Attributes:
        index: [k] tokens.
        fires: [k] whether the feature fires there.
        activation: [k] how strongly, 0 where it does not.
        n_hard: how many hard negatives follow the positives.
    """

    index: Indices
    fires: Bools
    activation: NDArray[np.float32]
    n_hard: int

    @property
    def weights(self) -> NDArray[np.float64]:
        """[k] what each token adds to the balanced accuracy of a rule that holds there, beyond one half.

        However many were drawn anywhere, they weigh as much as there are positives without a hard negative.
        """
        n = int(self.fires.sum())
        others = len(self.fires) - n - self.n_hard
        result = np.full(len(self.fires), 0.5 / max(n, 1))
        result[n : n + self.n_hard] *= -1.0
        result[n + self.n_hard :] *= -(n - self.n_hard) / max(others, 1)
        return result


def draw(corpus: Corpus, feature_id: int, half: Half, *, most: int, anywhere: int | None = None) -> Draw:
    """At most `most` tokens of a half at which a feature fires, and as many at which it does not.

    Some of the latter are hard negatives: for each token where the feature fires, another occurrence of the
    same token is a candidate with probability one half, and another token behind the same one with a quarter;
    those at which it does not fire are taken. A feature that fires on every " of" has none of the first kind;
    of one that fires on " of" behind " because" nearly half of the negatives are such. The others are any
    tokens, at least `anywhere` of them. Of near-identical surroundings one is taken.
    """
    store, random = corpus.store, corpus.random(feature_id, 3 if half == "train" else 4)
    fires = store.feature(feature_id)
    own = np.flatnonzero(corpus.token_in_train[fires.token_index] == (half == "train"))
    if len(own) > 2 * most:
        own = np.sort(random.choice(own, size=2 * most, replace=False))
    every = fires.token_index.astype(np.int64)
    _, first = np.unique(corpus.surroundings[every[own]], return_index=True)
    own = own[np.sort(first)]
    if len(own) > most:
        own = np.sort(random.choice(own, size=most, replace=False))
    positive = every[own]
    hard = _hard_negatives(corpus, half, positive, every, random)
    counted = corpus.counted(half)
    n_others = max(len(positive) - len(hard), anywhere or 0)
    # Twice as many are drawn: at some of them the feature fires.
    others = counted[random.integers(0, len(counted), size=2 * n_others + 16)] if len(counted) else counted
    others = others[~_among(others, every)][:n_others]
    index = np.concatenate([positive, hard, others])
    marks = np.arange(len(index)) < len(positive)
    activation = np.zeros(len(index), dtype=np.float32)
    activation[: len(positive)] = fires.activation[own]
    return Draw(index, marks, activation, len(hard))


def _hard_negatives(
    corpus: Corpus, half: Half, positive: Indices, every: Indices, random: np.random.Generator
) -> Indices:
    """Tokens that are, or follow, the same token as some of `positive`, and are not among `every` that
    fires."""
    found = np.zeros(0, dtype=np.int64)
    for offset, share in ((0, 0.5), (-1, 0.25)):
        chosen = corpus.view.neighbour(positive, offset)[random.random(len(positive)) < share]
        chosen = chosen[chosen >= 0]
        words = corpus.by_word(half, offset)
        begin, end = words.begins[chosen], words.begins[chosen + 1]
        others = words.index[begin + (random.random(len(chosen)) * (end - begin)).astype(np.int64)]
        found = np.union1d(found, others[~_among(others, every)])
    return found


def _among(index: Indices, ascending: Indices) -> Bools:
    """Which of these are in an ascending array."""
    if not len(ascending):
        return np.zeros(len(index), dtype=bool)
    at = np.minimum(np.searchsorted(ascending, index), len(ascending) - 1)
    found: Bools = ascending[at] == index
    return found
