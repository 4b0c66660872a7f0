"""Executable rules: the claim of a label as a predicate over tokens.

A rule holds at a token or does not, by the token's text, the three before it, the one after it, its
position in the row, and the words of its document (`evidence/token_view.py`):

    TokenIn, Begins, Ends, Class     of a token's text
    At(offset, one of these)         the token itself (0), one before it (-1 to -3), the one after it (+1)
    Position(first, last)            where in the row
    Topic(words, at_least)           how many of these words the document has
    AllOf, AnyOf                     of other rules

`words()` says it as a label of a few words (`phrases.py`), `words(full=True)` with every token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

import numpy as np

from mlxterp.auto_interp.evidence.token_view import (
    CLASSES,
    SPACED,
    Bools,
    Indices,
    TokenView,
    fold,
)
from mlxterp.auto_interp.rules.phrases import LISTED, SPELLED_OUT, phrase, quoted
from mlxterp.errors import LabelingError


@dataclass(frozen=True)
class TokenIn:
    """The token is one of these: exactly, or if `folded`, whatever its letter case and spaces."""

    tokens: tuple[str, ...]
    folded: bool = True

    def mask(self, view: TokenView) -> Bools:
        result = np.zeros(len(view.strings), dtype=bool)
        for token in self.tokens:
            if self.folded:
                result[view.number_of.get(fold(token), [])] = True
            elif token in view.exact_number_of:
                result[view.exact_number_of[token]] = True
        return result

    @property
    def named(self) -> bool:
        """Whether a few words say which tokens these are: they are few, or mostly of one or two classes."""
        return len(self.tokens) <= SPELLED_OUT or phrase(self.tokens) is not None

    def words(self, *, full: bool = False) -> str:
        what, n = "word" if self.folded else "token", len(self.tokens)
        found = None if full or n <= LISTED else phrase(self.tokens)
        if found is not None:
            return found
        most = n if full or n <= SPELLED_OUT else 3
        shown = ", ".join(quoted(fold(token) if self.folded else token) for token in self.tokens[:most])
        if n > most:
            return f"{n} unlike {what}s such as {shown}"
        return f"{what}{'s' if n > 1 else ''} {shown}"

    @property
    def size(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Begins:
    """The token begins with these letters and is longer; letter case and spaces aside."""

    letters: str

    def mask(self, view: TokenView) -> Bools:
        return np.array(
            [t.startswith(self.letters) and len(t) > len(self.letters) for t in view.folded], dtype=bool
        )

    def words(self, *, full: bool = False) -> str:  # noqa: ARG002
        return f"words beginning in {self.letters}-"

    size: ClassVar[int] = 2


@dataclass(frozen=True)
class Ends:
    """The token ends with these letters and is longer; letter case and spaces aside."""

    letters: str

    def mask(self, view: TokenView) -> Bools:
        return np.array(
            [t.endswith(self.letters) and len(t) > len(self.letters) for t in view.folded], dtype=bool
        )

    def words(self, *, full: bool = False) -> str:  # noqa: ARG002
        return f"words ending in -{self.letters}"

    size: ClassVar[int] = 2


@dataclass(frozen=True)
class Class:
    """The token is of one of `CLASSES`."""

    name: str

    def mask(self, view: TokenView) -> Bools:
        test = CLASSES[self.name][0]
        texts = view.strings if self.name in SPACED else tuple(text.strip() for text in view.strings)
        return np.array([test(text) for text in texts], dtype=bool)

    def words(self, *, full: bool = False) -> str:  # noqa: ARG002
        return CLASSES[self.name][1]

    size: ClassVar[int] = 3


Atom: TypeAlias = TokenIn | Begins | Ends | Class


@dataclass(frozen=True)
class At:
    """A condition on the token at this offset: 0 itself, -1 the one before."""

    offset: int
    atom: Atom

    def holds(self, view: TokenView, index: Indices) -> Bools:
        return self.of_words(
            view, view.word[index] if self.offset == 0 else view.neighbour(index, self.offset)
        )

    def of_words(self, view: TokenView, words: Indices) -> Bools:
        """The same, given the word at the distance for each token; -1 where the row has none."""
        # There are as many sets of tokens as features, so their masks are not cached.
        atom = self.atom
        mask = atom.mask(view) if isinstance(atom, TokenIn) else view.mask(atom, lambda: atom.mask(view))
        there: Bools = np.append(mask, False)[words]
        return there

    def words(self, *, full: bool = False) -> str:
        words = self.atom.words(full=full)
        if self.offset == 0:
            return words
        if self.offset > 0:
            return f"before {words}"
        return f"after {words}" if self.offset == -1 else f"{-self.offset} tokens after {words}"

    @property
    def size(self) -> int:
        return self.atom.size


@dataclass(frozen=True)
class Position:
    """The token stands at positions `first` to `last` of its row, counted from 0, both included."""

    first: int
    last: int

    def holds(self, view: TokenView, index: Indices) -> Bools:
        at = view.position[index]
        return (at >= self.first) & (at <= self.last)

    def words(self, *, full: bool = False) -> str:  # noqa: ARG002
        if self.first == self.last:
            return f"position {self.first} of the text"
        if self.first <= 1:
            return f"the first {self.last + 1} tokens of the text"
        return f"positions {self.first} to {self.last} of the text"

    size: ClassVar[int] = 2


@dataclass(frozen=True)
class Topic:
    """The document has at least this many of these words."""

    topic: tuple[str, ...]
    at_least: int = 1

    def holds(self, view: TokenView, index: Indices) -> Bools:
        return view.mask(self, lambda: self._documents(view))[view.document[index]]

    def _documents(self, view: TokenView) -> Bools:
        topic = frozenset(self.topic)
        return np.array([len(topic & own) >= self.at_least for own in view.words_of_documents], dtype=bool)

    def words(self, *, full: bool = False) -> str:
        return f"topic: {', '.join(self.topic if full else self.topic[:4])}"

    @property
    def size(self) -> int:
        return len(self.topic)


@dataclass(frozen=True)
class AllOf:
    """Every one of these rules holds."""

    rules: tuple[Rule, ...]

    def holds(self, view: TokenView, index: Indices) -> Bools:
        every: Bools = np.logical_and.reduce([rule.holds(view, index) for rule in self.rules])
        return every

    def words(self, *, full: bool = False) -> str:
        first, *others = sorted(self.rules, key=_reading_order)
        return " ".join([first.words(full=full), *(_joined(rule, full=full) for rule in others)])

    @property
    def size(self) -> int:
        return sum(rule.size for rule in self.rules)


@dataclass(frozen=True)
class AnyOf:
    """At least one of these rules holds."""

    rules: tuple[Rule, ...]

    def holds(self, view: TokenView, index: Indices) -> Bools:
        some: Bools = np.logical_or.reduce([rule.holds(view, index) for rule in self.rules])
        return some

    def words(self, *, full: bool = False) -> str:
        before = [rule.offset for rule in self.rules if isinstance(rule, At) and rule.offset < 0]
        if not full and len(before) == len(self.rules) and len(set(before)) > 1:
            nearest = max((rule for rule in self.rules if isinstance(rule, At)), key=lambda rule: rule.offset)
            return f"up to {-min(before)} tokens after {nearest.atom.words()}"
        return ", or ".join(rule.words(full=full) for rule in self.rules)

    @property
    def size(self) -> int:
        return sum(rule.size for rule in self.rules)


Rule: TypeAlias = At | Position | Topic | AllOf | AnyOf


def _reading_order(rule: Rule) -> int:
    return abs(rule.offset) if isinstance(rule, At) else 9


def _joined(rule: Rule, *, full: bool) -> str:
    words = rule.words(full=full)
    if isinstance(rule, Position):
        return f"at {words}"
    return f"in texts of {words}" if isinstance(rule, Topic) else words


def is_named(rule: Rule) -> bool:
    """Whether `rule.words()` says in a few words where the rule holds: none of its parts is a long set of
    tokens that have nothing in common."""
    if isinstance(rule, AllOf | AnyOf):
        return all(is_named(each) for each in rule.rules)
    return not isinstance(rule, At) or not isinstance(rule.atom, TokenIn) or rule.atom.named


_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (TokenIn, Begins, Ends, Class, At, Position, Topic, AllOf, AnyOf)
}


def rule_to_dict(rule: Rule | Atom) -> dict[str, Any]:
    """The rule as plain values: {"rule": "At", "offset": 0, "atom": {...}}."""
    plain: dict[str, Any] = {"rule": type(rule).__name__}
    for name, value in ((each.name, getattr(rule, each.name)) for each in fields(rule)):
        if type(value) in _KINDS.values():
            plain[name] = rule_to_dict(value)
        elif isinstance(value, tuple):
            plain[name] = [item if isinstance(item, str) else rule_to_dict(item) for item in value]
        else:
            plain[name] = value
    return plain


def rule_from_dict(data: Mapping[str, Any]) -> Rule:
    """The inverse of `rule_to_dict`.

    Raises:
        LabelingError: it is no rule; the message names the kinds of rules.
    """
    made = _made(data)
    if isinstance(made, TokenIn | Begins | Ends | Class):
        raise LabelingError(f"{data!r} is a condition on one token and no rule by itself. Put it in an At.")
    rule: Rule = made
    return rule


def _made(data: Any) -> Any:
    kind = _KINDS.get(data.get("rule", "")) if isinstance(data, Mapping) else None
    if kind is None or set(data) - {"rule"} - {each.name for each in fields(kind)}:
        raise LabelingError(
            f"{data!r} is no rule. Kinds of rules are {', '.join(_KINDS)}, with their fields."
        )
    if kind is Class and data.get("name") not in CLASSES:
        raise LabelingError(
            f"There is no class of tokens {data.get('name')!r}. There are: {', '.join(CLASSES)}."
        )
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name == "rule":
            continue
        if isinstance(value, Mapping):
            values[name] = _made(value)
        elif isinstance(value, list | tuple):
            values[name] = tuple(item if isinstance(item, str) else _made(item) for item in value)
        else:
            values[name] = value
    return kind(**values)
