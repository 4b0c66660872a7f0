"""`TokenView`: a sequence of tokens as rules see it, and the kinds of tokens there are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from mlxterp.sae.feature_store.store import FeatureStore

Bools: TypeAlias = NDArray[np.bool_]
Indices: TypeAlias = NDArray[np.int64]


def _like(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text, re.DOTALL) is not None


CLASSES: dict[str, tuple[Callable[[str], bool], str]] = {
    # name -> (test, words for a label). The test gets the token without spaces; for `SPACED`, with them.
    "digits": (_like(r"[0-9]+"), "digits"),
    "capitalised": (
        lambda text: len(text) > 1 and text[0].isupper() and text[1:].islower(),
        "capitalised words",
    ),
    "all_caps": (lambda text: len(text) > 1 and text.isupper(), "words in capitals"),
    "one_capital": (lambda text: len(text) == 1 and text.isupper(), "single capitals"),
    "lower_word": (lambda text: text.isalpha() and text.islower(), "lower-case words"),
    "punctuation": (_like(r"[^\w\s]+"), "punctuation"),
    "sentence_end": (_like(r"[.!?]+[\"'”’)]*"), "ends of sentences"),
    "comma": (_like(r"[,;:]+"), "commas, colons, semicolons"),
    "quote": (_like(r"[\"'“”‘’`]+"), "quotation marks"),
    "bracket": (_like(r"[()\[\]{}<>]+"), "brackets"),
    "operator": (_like(r"[=+*/<>&|^%$#@~_\\-]+"), "operators and signs of code"),
    "non_latin": (lambda text: any(each.isalpha() and each > "ɏ" for each in text), "non-Latin characters"),
    "newline": (_like(r"\s*\n\s*"), "line breaks"),
    "blank": (_like(r"[^\S\n]+"), "white space"),
    "word_begin": (_like(r" [^\W\d_]\S*"), "beginnings of words"),
    "word_inside": (_like(r"[^\W\d_]\S*"), "continuations of words"),
}
"""Kinds of tokens."""

SPACED = ("newline", "blank", "word_begin", "word_inside")  # these depend on spaces
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, eq=False)
class TokenView:
    """A sequence of tokens as rules see it.

    Attributes:
        word: [n] each token as an index into `strings`.
        strings: the texts of tokens.
        row_start, row_stop: [n] the bounds of each token's row.
        position: [n] in the row.
        document: [n] ascending.
    """

    word: Indices
    strings: tuple[str, ...]
    row_start: Indices
    row_stop: Indices
    position: Indices
    document: NDArray[np.int32]
    _memory: dict[Any, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def folded(self) -> tuple[str, ...]:
        """The texts in lower case without the spaces around them; white space itself stays."""
        return tuple(fold(text) for text in self.strings)

    @cached_property
    def number_of(self) -> dict[str, list[int]]:
        """From a folded text to the indices of its spellings in `strings`."""
        found: dict[str, list[int]] = {}
        for i, text in enumerate(self.folded):
            found.setdefault(text, []).append(i)
        return found

    @cached_property
    def exact_number_of(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self.strings)}

    def mask(self, key: Any, compute: Callable[[], Bools]) -> Bools:
        """[len(strings)], whether a condition holds for each text; computed once per `key`."""
        if key not in self._memory:
            self._memory[key] = compute()
        kept: Bools = self._memory[key]
        return kept

    def neighbour(self, index: Indices, offset: int) -> Indices:
        """[k] the words at this distance, -1 where the row has none."""
        at = index + offset
        inside = (at >= self.row_start[index]) & (at < self.row_stop[index])
        return np.where(inside, self.word[np.where(inside, at, index)], -1)

    @cached_property
    def words_of_documents(self) -> list[frozenset[str]]:
        """The words of three letters or more of each document, in lower case."""
        documents = int(self.document[-1]) + 1 if len(self.word) else 0
        bounds: list[int] = np.searchsorted(self.document, np.arange(documents + 1)).tolist()
        texts = ("".join(self.strings[i] for i in self.word[a:b]) for a, b in pairwise(bounds))
        return [frozenset(_WORD.findall(text.casefold())) for text in texts]


def view_of_store(store: FeatureStore) -> TokenView:
    """All tokens of a store; made once for each store."""
    if store not in _views:
        _views[store] = TokenView(
            word=store.word,
            strings=store.strings,
            row_start=store.row_start,
            row_stop=store.row_stop,
            position=np.arange(store.n_tokens) - store.row_start,
            document=store.document,
        )
    return _views[store]


_views: WeakKeyDictionary[FeatureStore, TokenView] = WeakKeyDictionary()


def view_of_texts(texts: Sequence[Sequence[str]]) -> TokenView:
    """Documents given as the texts of their tokens, each one row."""
    lengths = [len(text) for text in texts]
    flat = [token for text in texts for token in text]
    number = {text: i for i, text in enumerate(dict.fromkeys(flat))}
    starts = np.repeat(np.cumsum([0, *lengths])[:-1], lengths)
    return TokenView(
        word=np.array([number[text] for text in flat], dtype=np.int64),
        strings=tuple(number),
        row_start=starts,
        row_stop=starts + np.repeat(lengths, lengths),
        position=np.arange(len(flat)) - starts,
        document=np.repeat(np.arange(len(texts), dtype=np.int32), lengths),
    )


def fold(text: str) -> str:
    """A token's text in lower case without the spaces around it; white space itself stays."""
    return text.strip().casefold() or text
