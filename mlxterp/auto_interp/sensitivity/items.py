"""Texts, windows or tokens that have or lack what a label says, decided from the label alone.

Lives here: the items of `sensitivity_test`, with the feature's activation in each. Does not live here: the
test on them (`sensitivity.py`), the words of a label (`items.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxterp.auto_interp.evidence.token_view import (
    Bools,
    Indices,
    TokenView,
    fold,
    view_of_store,
)
from mlxterp.auto_interp.label import FeatureLabel
from mlxterp.auto_interp.rules.rules import AllOf, Rule, quoted
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


_MOST = 200  # items of a class


@dataclass(frozen=True, eq=False)
class Items:
    """What the test is made of: the feature's activation where the label's concept is, and where it is not.

    Attributes:
        positive, negative: [n] the strongest activation in each item.
        unit: what an item is: "text", "window" or "token".
        source: who decided, in words.
        name: of an item, positives counted first, to be shown as an example of an error.
        store: whose tokens they are.
        places: [n] the token at which each positive is strongest, −1 where the feature is silent.
        removed: texts left out because the labeler has seen part of them.
    """

    positive: NDArray[np.float64]
    negative: NDArray[np.float64]
    unit: str
    source: str
    name: Callable[[int], str]
    store: FeatureStore
    places: Indices
    removed: int = 0


def dense(store: FeatureStore, feature_id: int) -> NDArray[np.float32]:
    """[n] the feature's activation at every token."""
    result = np.zeros(store.n_tokens, dtype=np.float32)
    fires = store.feature(feature_id)
    result[fires.token_index] = fires.activation
    return result


def by_list(store: FeatureStore, feature_id: int, n_positive: int, name: Callable[[int], str]) -> Items:
    """Texts whose classes were given: the first `n_positive` documents of the store, and the others."""
    activation = dense(store, feature_id)
    spans = [store.document_span(i) for i in range(store.n_documents)]
    strongest = np.array([activation[span].max(initial=0.0) for span in spans], dtype=np.float64)
    places = _strongest(activation, spans[:n_positive])
    return Items(
        strongest[:n_positive], strongest[n_positive:], "text", "the lists given", name, store, places
    )


def _strongest(activation: NDArray[np.float32], spans: Sequence[slice]) -> Indices:
    """The token of each span with the largest activation, −1 where all are 0."""
    found = np.full(len(spans), -1, dtype=np.int64)
    for i, span in enumerate(spans):
        if activation[span].max(initial=0.0) > 0:
            found[i] = span.start + int(activation[span].argmax())
    return found


def unseen(store: FeatureStore, label: FeatureLabel) -> Bools:
    """[n_documents] False where a window that the label was made from occurs."""
    seen = {window.text for window in label.evidence}
    return np.array([not any(each in text for each in seen) for text in store.document_texts], dtype=bool)


def by_rule(
    store: FeatureStore,
    feature_id: int,
    rule: Rule,
    fresh: Bools,
    random: np.random.Generator,
    removed: int = 0,
) -> Items:
    """Tokens where a rule holds, and tokens where it does not, half of them near misses."""
    view = view_of_store(store)
    index = np.flatnonzero(store.counted & fresh[store.document])
    holds = rule.holds(view, index)
    positive = random.permutation(index[holds])[:_MOST]
    near = random.permutation(near_misses(rule, view, index, holds))[: _MOST // 2]
    others = np.setdiff1d(index[~holds], near)
    negative = np.concatenate([near, random.permutation(others)[: _MOST - len(near)]])
    activation = dense(store, feature_id).astype(np.float64)
    every = np.concatenate([positive, negative])
    return Items(
        activation[positive],
        activation[negative],
        "token",
        "the label's rule",
        lambda i: _around(store, int(every[i])),
        store,
        np.where(activation[positive] > 0, positive, -1),
        removed,
    )


def by_words(
    store: FeatureStore,
    feature_id: int,
    label: str,
    fresh: Bools,
    embedding: NDArray[np.float32] | None,
    random: np.random.Generator,
    removed: int = 0,
) -> Items:
    """Windows that have a word of the label, and windows that have none."""
    windows = windows_by_words(store, label, fresh, embedding)
    activation = dense(store, feature_id)
    strongest = np.array([activation[span].max() for span, _ in windows], dtype=np.float64)
    has = np.array([found for _, found in windows], dtype=bool)
    yes, no = (random.permutation(np.flatnonzero(each))[:_MOST] for each in (has, ~has))
    every = np.concatenate([yes, no])
    source = "the label's words (a lexical proxy)"
    return Items(
        strongest[yes],
        strongest[no],
        "window",
        source,
        lambda i: quoted(_text(store, windows[every[i]][0])),
        store,
        _strongest(activation, [windows[i][0] for i in yes]),
        removed,
    )


def near_misses(rule: Rule, view: TokenView, index: Indices, holds: Bools) -> Indices:
    """Tokens where a rule fails by one condition; for a rule of one condition, tokens beside a positive."""
    if isinstance(rule, AllOf):
        parts = np.stack([each.holds(view, index) for each in rule.rules])
        but_one: Indices = index[parts.sum(axis=0) == len(rule.rules) - 1]
        return but_one
    beside = np.zeros(len(view.word) + 2, dtype=bool)
    beside[index[holds]] = True
    beside[index[holds] + 2] = True
    missed: Indices = index[beside[index + 1] & ~holds]
    return missed


def _text(store: FeatureStore, span: slice) -> str:
    return "".join(store.str_tokens(span.start, span.stop))


def _around(store: FeatureStore, at: int) -> str:
    """A token with those around it, itself between marks."""
    span = store.window(at, 4, 2)
    before, own, after = slice(span.start, at), slice(at, at + 1), slice(at + 1, span.stop)
    return quoted(f"{_text(store, before)}«{_text(store, own)}»{_text(store, after)}")
