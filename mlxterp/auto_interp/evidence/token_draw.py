"""Tokens to fit a rule on, and others to test it on: as many where a feature fires as where it does not.

Lives here: how they are drawn. Does not live here: windows for a reader (`evidence.py`), rules.
"""

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

    Some of the latter are hard negatives: for each token where the feature fires, with probability one half
    another occurrence of the same token is looked at, and with one quarter another one behind the same token;
    those at which it does not fire are taken. A feature that fires on every " of" has none of the first kind;
    one that fires on " of" behind " because" gets nearly half of its negatives so. The others are any tokens;
    of these more are taken if `anywhere` says so. Of near-identical surroundings one is taken.
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
    same = _others(corpus, positive, every, half, random, offset=0, share=0.5)
    behind = _others(corpus, positive, every, half, random, offset=-1, share=0.25)
    hard = np.union1d(same, behind)
    counted = corpus.counted(half)
    wanted = max(len(positive) - len(hard), anywhere or 0)
    # Twice as many and then as wanted: some are places where the feature fires.
    others = counted[random.integers(0, len(counted), size=2 * wanted + 16)] if len(counted) else counted
    others = others[~_among(others, every)][:wanted]
    index = np.concatenate([positive, hard, others])
    marks = np.arange(len(index)) < len(positive)
    activation = np.zeros(len(index), dtype=np.float32)
    activation[: len(positive)] = fires.activation[own]
    return Draw(index, marks, activation, len(hard))


def _others(
    corpus: Corpus,
    positive: Indices,
    every: Indices,
    half: Half,
    random: np.random.Generator,
    *,
    offset: int,
    share: float,
) -> Indices:
    """Tokens at which the feature is silent, with the same token at a distance as some at which it fires."""
    chosen = corpus.view.neighbour(positive, offset)[random.random(len(positive)) < share]
    chosen = chosen[chosen >= 0]
    words = corpus.by_word(half, offset)
    begin, end = words.begins[chosen], words.begins[chosen + 1]
    others = words.index[begin + (random.random(len(chosen)) * (end - begin)).astype(np.int64)]
    return np.unique(others[~_among(others, every)])


def _among(index: Indices, ascending: Indices) -> Bools:
    """Which of these are in an ascending array."""
    if not len(ascending):
        return np.zeros(len(index), dtype=bool)
    at = np.minimum(np.searchsorted(ascending, index), len(ascending) - 1)
    found: Bools = ascending[at] == index
    return found
