"""The words of a label as a test of texts, where no rule and no reader says what it means: a weak proxy.

Lives here: the content words of a label, and windows of a corpus that have them. Does not live here: the test
itself (`sensitivity.py`).
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from mlxterp.auto_interp.evidence.token_view import Bools, fold
from mlxterp.sae.feature_store.store import FeatureStore

WINDOW = 32
NEAR = 0.5
"""Tokens whose embeddings have at least this cosine with one of a label's words count as that word."""

_WORD = re.compile(r"[^\W\d_]{2,}|\d+")
_EMPTY = frozenset(
    re.findall(
        r"\w+",
        """
the and or of in on at to for with from by as is are be was were it its that this which who whose
token tokens word words phrase phrases text texts sentence sentences context contexts topic position
before after following preceding beginning ending related references mentions instances use used
such other like about any all some an not
""",
    )
)
_ENDINGS = ("ingly", "edly", "ing", "ies", "ied", "ers", "est", "ed", "es", "er", "ly", "s", "e")


def content_words(label: str) -> tuple[str, ...]:
    """The words of a label that say what it is about, in lower case, without endings."""
    words = (word.casefold() for word in _WORD.findall(label))
    return tuple(dict.fromkeys(stem(word) for word in words if word not in _EMPTY))


def stem(word: str) -> str:
    """A word without a common English ending, if three letters or more are left."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def windows_by_words(
    store: FeatureStore, label: str, fresh: Bools, embedding: NDArray[np.float32] | None
) -> list[tuple[slice, bool]]:
    """Windows of the documents that are `fresh`, and whether each has a word of the label.

    A window has a word if one of its words has the same stem, or one of its tokens is near, by the model's
    own embedding of the store's `token_ids` (unit rows), to a token that is a word of the label.
    """
    wanted = frozenset(content_words(label))
    near = _near(store, wanted, embedding)
    found: list[tuple[slice, bool]] = []
    for document in np.flatnonzero(fresh):
        span = store.document_span(int(document))
        for start in range(span.start, span.stop, WINDOW):
            window = slice(start, min(start + WINDOW, span.stop))
            if not store.counted[window].any():
                continue
            text = "".join(store.str_tokens(window.start, window.stop)).casefold()
            has = bool(near[store.word[window]].any()) or any(stem(w) in wanted for w in _WORD.findall(text))
            found.append((window, has))
    return found


def _near(store: FeatureStore, wanted: frozenset[str], embedding: NDArray[np.float32] | None) -> Bools:
    """[words of the store] which tokens are, or are near, a word of the label."""
    own = np.array([stem(fold(text)) in wanted for text in store.strings], dtype=bool)
    if embedding is None or not own.any():
        return own
    near: Bools = own | ((embedding @ embedding[own].T).max(axis=1) >= NEAR)
    return near
