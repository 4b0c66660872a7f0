"""Texts, windows or tokens that have or lack what a label says, decided from the label alone, with the
feature's activation in each: what `sensitivity_test` tests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlxterp.auto_interp.evidence.token_view import (
    Bools,
    Indices,
    TokenView,
    view_of_store,
)
from mlxterp.auto_interp.label import FeatureLabel
from mlxterp.auto_interp.rules.phrases import quoted
from mlxterp.auto_interp.rules.rules import AllOf, Rule
from mlxterp.sae.feature_store.store import FeatureStore

NO_READER = "no reader"
"""The source of the classes of a label in words that is tested without a language model."""

_MOST = 200  # items of a class


@dataclass(frozen=True, eq=False)
class Items:
    """The feature's activation where the label's concept is, and where it is not.

    Attributes:
        positive, negative: [n] the strongest activation in each item.
        unit: what an item is: "text", "window" or "token".
        source: what decided the classes.
        name: an item as a text, positives counted first, for examples of errors.
        store: whose tokens they are.
        places: [n] the token at which each positive is strongest, −1 where the feature does not fire.
        removed: texts left out because the label was made from part of them.
        coverage: the share of what was looked at that is positive or negative; the rest was left undecided.
    """

    positive: NDArray[np.float64]
    negative: NDArray[np.float64]
    unit: str
    source: str
    name: Callable[[int], str]
    store: FeatureStore
    places: Indices
    removed: int = 0
    coverage: float = 1.0


@dataclass(frozen=True)
class SensitivityOptions:
    """How a label is tested; the fields are as in `sensitivity_test`."""

    tau: float | None
    n_min: int
    causal: bool
    controls: int
    seed: int


@dataclass(frozen=True, eq=False)
class FreshTexts:
    """The documents of a store that one feature's label is tested on.

    Attributes:
        fresh: [n_documents] False for those that are left out.
        random: the source of draws.
    """

    store: FeatureStore
    feature_id: int
    fresh: Bools
    random: np.random.Generator

    @cached_property
    def activation(self) -> NDArray[np.float32]:
        """[n] the feature's activation at every token."""
        return self.store.activations_of(self.feature_id)

    @property
    def removed(self) -> int:
        return int((~self.fresh).sum())

    def strongest(self, spans: Sequence[slice]) -> tuple[NDArray[np.float64], Indices]:
        """([n], [n]) the largest activation of each span, and the token that has it, −1 where all are 0."""
        values = np.array([self.activation[span].max(initial=0.0) for span in spans], dtype=np.float64)
        places = np.full(len(spans), -1, dtype=np.int64)
        for i in np.flatnonzero(values > 0).tolist():
            places[i] = spans[i].start + int(self.activation[spans[i]].argmax())
        return values, places


def fresh_documents(store: FeatureStore, label: FeatureLabel) -> Bools:
    """[n_documents] False where a window that the label was made from occurs."""
    seen = {window.text for window in label.evidence}
    return np.array([not any(each in text for each in seen) for text in store.document_texts], dtype=bool)


def by_list(texts: FreshTexts, n_positive: int, name: Callable[[int], str]) -> Items:
    """Texts whose classes were given: the first `n_positive` documents of the store, and the others."""
    spans = [texts.store.document_span(i) for i in range(texts.store.n_documents)]
    values, places = texts.strongest(spans)
    positive, negative = values[:n_positive], values[n_positive:]
    return Items(positive, negative, "text", "the lists given", name, texts.store, places[:n_positive])


def by_rule(texts: FreshTexts, rule: Rule) -> Items:
    """Tokens where a rule holds, and tokens where it does not, half of them near misses."""
    store, random = texts.store, texts.random
    view = view_of_store(store)
    index = np.flatnonzero(store.counted & texts.fresh[store.document])
    holds = rule.holds(view, index)
    positive = random.permutation(index[holds])[:_MOST]
    near = random.permutation(near_misses(rule, view, index, holds))[: _MOST // 2]
    others = np.setdiff1d(index[~holds], near)
    negative = np.concatenate([near, random.permutation(others)[: _MOST - len(near)]])
    activation = texts.activation.astype(np.float64)
    every = np.concatenate([positive, negative])
    return Items(
        activation[positive],
        activation[negative],
        "token",
        "the label's rule",
        lambda i: around(store, int(every[i])),
        store,
        np.where(activation[positive] > 0, positive, -1),
        texts.removed,
    )


def without_reader(texts: FreshTexts) -> Items:
    """No items: the label is in words, and nothing here reads it."""
    none = np.zeros(0)
    return Items(
        none, none, "token", NO_READER, str, texts.store, np.zeros(0, np.int64), texts.removed, coverage=0.0
    )


def near_misses(rule: Rule, view: TokenView, index: Indices, holds: Bools) -> Indices:
    """Tokens that fail a rule by one condition; for a rule of one condition, tokens beside a positive."""
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


def around(store: FeatureStore, at: int) -> str:
    """A token between marks, with the tokens around it."""
    span = store.window(at, 4, 2)
    before, own, after = slice(span.start, at), slice(at, at + 1), slice(at + 1, span.stop)
    return quoted(f"{_text(store, before)}«{_text(store, own)}»{_text(store, after)}")
