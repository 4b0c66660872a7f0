"""Simple rules that may tell where a feature fires: the first half of the offline labeler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxterp.auto_interp.evidence.corpus import Corpus
from mlxterp.auto_interp.evidence.token_draw import Draw
from mlxterp.auto_interp.evidence.token_view import CLASSES, Bools, Indices
from mlxterp.auto_interp.rules.rules import (
    At,
    Begins,
    Class,
    Ends,
    Position,
    Rule,
    TokenIn,
    Topic,
)

OFFSETS = (0, -1, 1, -2, -3)
_MOST_TOKENS = 64
_MOST_AROUND = 32
_MOST_TOPIC = 12


class DocumentWords(NamedTuple):
    """Words by name, in how many documents of the training half each is, and the numbers of each document's
    words."""

    words: tuple[str, ...]
    documents: NDArray[np.float64]
    of_document: list[NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Background:
    """What the features of a corpus share: how common each token of the training half is, and its classes.

    Attributes:
        corpus: the store, split.
    """

    corpus: Corpus

    @cached_property
    def n(self) -> int:
        """Counted tokens of the training half."""
        return len(self.corpus.counted("train"))

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """[words] how often each token is counted in the training half."""
        return np.diff(self.corpus.by_word("train").begins)

    @cached_property
    def folded(self) -> Indices:
        """[words] the number of each token's folded text."""
        numbers: dict[str, int] = {}
        return np.array(
            [numbers.setdefault(text, len(numbers)) for text in self.corpus.view.folded], np.int64
        )

    @cached_property
    def folded_counts(self) -> NDArray[np.int64]:
        return np.bincount(self.folded, weights=self.counts).astype(np.int64)

    @cached_property
    def some_folded(self) -> Indices:
        """For each folded text, its most common token."""
        order = np.lexsort((self.counts, self.folded))
        last = np.append(np.flatnonzero(np.diff(self.folded[order])), len(order) - 1)
        commonest: Indices = order[last]
        return commonest

    @cached_property
    def classes(self) -> Bools:
        """[words + 1, classes]; the last row, for no token, is False."""
        view = self.corpus.view
        masks = [Class(name).mask(view) for name in CLASSES]
        return np.concatenate([np.stack(masks, axis=1), np.zeros((1, len(CLASSES)), dtype=bool)])

    def parts(self, of: Callable[[str, int], str], k: int) -> tuple[Indices, list[str]]:
        """[words] a number for each token's part of k letters, -1 where it is not longer; the parts."""
        key = (of.__name__, k)
        if key not in self._parts:
            numbers: dict[str, int] = {}
            found = [
                numbers.setdefault(of(text, k), len(numbers)) if len(text) > k and text[0].isalpha() else -1
                for text in self.corpus.view.folded
            ]
            self._parts[key] = (np.array(found, np.int64), list(numbers))
        return self._parts[key]

    @cached_property
    def _parts(self) -> dict[tuple[str, int], tuple[Indices, list[str]]]:
        return {}

    @cached_property
    def document_words(self) -> DocumentWords:
        """The words that are in 3 documents of the training half or more."""
        counts: dict[str, int] = {}
        documents = self.corpus.view.words_of_documents
        for words, inside in zip(documents, self.corpus.in_train, strict=True):
            if inside:
                for word in words:
                    counts[word] = counts.get(word, 0) + 1
        known = sorted(word for word, count in counts.items() if count >= 3)
        number = {word: i for i, word in enumerate(known)}
        return DocumentWords(
            tuple(known),
            np.array([counts[word] for word in known], dtype=np.float64),
            [np.array([number[w] for w in words if w in number], dtype=np.int64) for words in documents],
        )


def simple_rules(background: Background, feature_id: int, drawn: Draw) -> Iterator[tuple[Rule, Bools]]:
    """Candidates of one condition each, with where they hold in what was drawn."""
    view = background.corpus.view
    around = {offset: view.neighbour(drawn.index, offset) for offset in OFFSETS}
    for offset, words in around.items():
        if offset == 0:
            sets = _own_tokens(background, feature_id)
        else:
            sets = _tokens_around(background, words, drawn.fires, near=abs(offset) == 1)
        for tokens in sets:
            rule = At(offset, tokens)
            yield rule, rule.of_words(view, words)
    for offset in OFFSETS[:3]:
        held = background.classes[around[offset]]
        common = held[drawn.fires].mean(axis=0) >= 0.3
        for i in np.flatnonzero(common):
            yield At(offset, Class(list(CLASSES)[i])), held[:, i]
    yield from _affixes(background, around[0], drawn.fires)
    for run in _positions(view.position[drawn.index], drawn.fires, background.corpus.store.context):
        yield run, run.holds(view, drawn.index)


def _own_tokens(background: Background, feature_id: int) -> Iterator[TokenIn]:
    """Tokens that gain more true positives than they cost in false ones, exactly and folded.

    For each token, h of its c occurrences fire. Taking it in adds h true positives of n. Of the n false ones
    that could be, hard negatives make up about h/2 · (1 − h/c) (`token_draw.py`), and of those drawn anywhere
    it adds its share of all occurrences without firing. h/c is pulled towards the feature's density, so that
    a token that was seen once proves little.
    """
    corpus, store = background.corpus, background.corpus.store
    index = store.feature(feature_id).token_index
    index = index[corpus.token_in_train[index]]
    words, hits = np.unique(store.word[index], return_counts=True)
    strings = store.strings
    kept = _gainful(hits, background.counts[words], background.n)
    yield TokenIn(tuple(strings[words[i]] for i in kept), folded=False)
    alike, number = np.unique(background.folded[words], return_inverse=True)
    together = np.bincount(number, weights=hits)
    kept = _gainful(together, background.folded_counts[alike], background.n)
    yield TokenIn(tuple(_bare(strings[background.some_folded[alike[i]]]) for i in kept))


def _bare(text: str) -> str:
    """A token without the spaces around it; white space itself stays."""
    return text.strip() or text


def _gainful(hits: NDArray[np.generic], counts: NDArray[np.int64], n_tokens: int) -> Indices:
    fires = np.asarray(hits, dtype=np.float64)
    n = float(fires.sum())
    precision = (fires + 0.5 * n / n_tokens) / (np.maximum(counts, fires) + 0.5)
    hard = fires / 2 * (1 - precision)
    anywhere = (n - hard.sum()) / max(n_tokens - n, 1.0) * fires * (1 / precision - 1)
    gain = fires - hard - anywhere
    order = np.argsort(-gain, kind="stable")[:_MOST_TOKENS]
    kept: Indices = order[gain[order] >= max(0.75, 0.001 * n)]
    return kept


def _tokens_around(background: Background, words: Indices, fires: Bools, *, near: bool) -> Iterator[TokenIn]:
    """Neighbours that are more common where the feature fires than elsewhere; folded too if `near`."""
    strings, n = background.corpus.store.strings, max(int(fires.sum()), 1)
    there = words >= 0
    for folded in (False, True) if near else (False,):
        names = background.folded[words] if folded else words
        counts = background.folded_counts if folded else background.counts
        found, number = np.unique(names[there], return_inverse=True)
        inside = np.bincount(number, weights=fires[there], minlength=len(found))
        outside = np.bincount(number, weights=~fires[there], minlength=len(found))
        usual = (outside + 8 * counts[found] / max(background.n, 1)) / (len(fires) - n + 8)
        gain = inside / n - usual
        order = np.argsort(-gain, kind="stable")[:_MOST_AROUND]
        order = order[(gain[order] * n >= 1.5) & (gain[order] >= 0.01)]
        if len(order):
            some = found[order] if not folded else background.some_folded[found[order]]
            yield TokenIn(tuple(_bare(strings[i]) if folded else strings[i] for i in some), folded)


def _first_letters(text: str, k: int) -> str:
    return text[:k]


def _last_letters(text: str, k: int) -> str:
    return text[-k:]


def _affixes(background: Background, words: Indices, fires: Bools) -> Iterator[tuple[Rule, Bools]]:
    for of, kind, lengths in ((_last_letters, Ends, (4, 3, 2, 1)), (_first_letters, Begins, (4, 3, 2))):
        for k in lengths:
            number, parts = background.parts(of, k)
            own = number[words]
            inside = np.bincount(own[fires & (own >= 0)], minlength=1)
            best = int(inside.argmax())
            if inside[best] >= 0.3 * fires.sum():
                yield At(0, kind(parts[best])), own == best


def _positions(position: Indices, fires: Bools, context: int) -> Iterator[Position]:
    """The position that gains most, and the run of positions that does."""
    size = max(context, int(position.max(initial=0)) + 1)
    inside = np.bincount(position[fires], minlength=size) / max(fires.sum(), 1)
    outside = np.bincount(position[~fires], minlength=size) / max((~fires).sum(), 1)
    gain = inside - outside
    best = int(gain.argmax())
    yield Position(best, best)
    total = np.concatenate([[0.0], np.cumsum(gain)])
    lowest = np.minimum.accumulate(total[:-1])
    last = int((total[1:] - lowest).argmax())
    first = int(total[: last + 1].argmin())
    if (first, last) != (best, best):
        yield Position(first if first > 1 else 0, last)


def topics(background: Background, drawn: Draw) -> Iterator[Topic]:
    """Words that the documents where a feature fires have in common, by their log odds with a prior.

    Source: Monroe, Colaresi and Quinn 2008, "Fightin' Words": log odds against the other documents, their
    counts smoothed by how common a word is at all, in units of their standard deviation.
    """
    view = background.corpus.view
    own = np.unique(view.document[drawn.index[drawn.fires]])
    if len(own) < 3:
        return
    every, inside = int(background.corpus.in_train.sum()), len(own)
    words_of = background.document_words
    counts = np.bincount(
        np.concatenate([words_of.of_document[i] for i in own]), minlength=len(words_of.words)
    )
    known = np.flatnonzero(counts)
    a, both = counts[known].astype(np.float64), words_of.documents[known]
    b = np.maximum(both - a, 0.0)
    prior = both / every
    odds = np.log((a + prior) / (inside - a + 1)) - np.log((b + prior) / (every - inside - b + 1))
    z = odds / np.sqrt(1 / (a + prior) + 1 / (b + prior))
    # The words are sorted by name, and so are equal ones here.
    order = np.argsort(-z, kind="stable")[:_MOST_TOPIC]
    words = tuple(words_of.words[known[i]] for i in order if z[i] > 1.5)
    for n in sorted({min(3, len(words)), min(6, len(words)), len(words)} - {0}):
        for at_least in (1, 2):
            if at_least <= n:
                yield Topic(words[:n], at_least)
