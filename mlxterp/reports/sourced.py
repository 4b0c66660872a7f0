"""Numbers and quotations of a page together with where they stand, so that a reader can look each one up.

A number of a report comes from a line of results.jsonl, which is named by its id, and a place in that line,
written as a JSON pointer (RFC 6901): `/result/held_out/0009/effect`. Some come from the run's own account
(`spent`) or its configuration (`config`). In HTML they are attributes of the element that shows the number:

    data-entry, data-field    one value of one line; with several ids, the value of each of these lines
    data-source, data-field   one value of the account or the configuration
    data-how                  what is done with several values: "count", "sum of sizes", "mean", "mean bits"
    value                     the number before it was rounded for reading

Lives here: these values and their HTML. Does not live here: which numbers a page shows (`evidence.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from markupsafe import Markup

from mlxterp.text import clip, number, typeset, visible

How: TypeAlias = Literal["", "count", "sum of sizes", "mean", "mean bits"]
_PLAIN_ID = re.compile(r"[\w.-]{1,40}")
_NO_SOURCE: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sourced:
    """A number, or a text in the researcher's words, and where it stands.

    Attributes:
        text: as the page shows it.
        value: before rounding; None for a quotation, which is found in its field as it is.
        entries: ids of lines; empty if it comes from `source`.
        source: "spent" or "config"; "" if it comes from lines.
        field: a JSON pointer into the line or the source.
        how: what is done with the values of several lines.
    """

    text: str
    value: float | int | None = None
    entries: tuple[str, ...] = _NO_SOURCE
    source: str = ""
    field: str = ""
    how: How = ""

    def __str__(self) -> str:
        return self.text

    @property
    def attributes(self) -> Markup:
        """Its source as attributes of an element."""
        kept = [("data-entry", " ".join(self.entries)), ("data-source", self.source)]
        kept += [("data-field", self.field), ("data-how", self.how)]
        return Markup(" ").join(Markup('{}="{}"').format(n, visible(v)) for n, v in kept if v)

    def __html__(self) -> Markup:
        shown = visible(self.text)
        if self.value is None:
            return Markup("<span {}>{}</span>").format(self.attributes, shown)
        where = clip(visible(f"{', '.join(self.entries) or self.source}: {self.field or self.how}"), 200)
        element = Markup('<data value="{}" {} title="{}">{}</data>')
        return element.format(repr(self.value), self.attributes, where, shown)


@dataclass(frozen=True)
class Reference:
    """The id of a line, which leads to where the page shows it."""

    id: str

    def __str__(self) -> str:
        return self.id

    def __html__(self) -> Markup:
        shown = plain_id(self.id)
        return Markup('<a class="id" href="#experiment-{}">{}</a>').format(shown, shown)


@dataclass(frozen=True)
class Name:
    """The name of a part of the model; digits in it are no numbers."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __html__(self) -> Markup:
        return Markup('<span class="name">{}</span>').format(visible(self.text))


Part: TypeAlias = "str | Sourced | Reference | Name"


@dataclass(frozen=True)
class Sentence:
    """Words of ours with numbers, quotations and references among them. Words of ours hold no digit."""

    parts: tuple[Part, ...] = ()

    def __str__(self) -> str:
        return "".join(str(part) for part in self.parts)

    def __bool__(self) -> bool:
        return any(str(part) for part in self.parts)

    def __html__(self) -> Markup:
        return Markup("").join(visible(part) if isinstance(part, str) else part for part in self.parts)

    def __add__(self, more: Sentence) -> Sentence:
        return Sentence((*self.parts, *more.parts))


NOTHING = Sentence()


def sentence(*parts: Part | Sentence) -> Sentence:
    """A sentence of these parts, one after the other."""
    found: list[Part] = []
    for part in parts:
        found += part.parts if isinstance(part, Sentence) else (part,)
    return Sentence(tuple(found))


def joined(parts: Iterable[Part | Sentence], between: str = ", ") -> Sentence:
    """The parts with `between` in between."""
    found = Sentence()
    for part in parts:
        found = sentence(found, between, part) if found.parts else sentence(part)
    return found


def plain_id(experiment_id: str) -> str:
    """The id if it may stand in an address and a command, else "unnumbered"."""
    return experiment_id if _PLAIN_ID.fullmatch(experiment_id) else "unnumbered"


def pointer(*keys: str | int) -> str:
    """A JSON pointer of these keys."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def from_line(entry_id: str, *keys: str | int, value: float, text: str | None = None) -> Sourced:
    """A number at these keys of a line."""
    shown = typeset(value) if text is None else text
    return Sourced(shown, value=value, entries=(entry_id,), field=pointer(*keys))


def quoted(entry_id: str, *keys: str | int, text: str) -> Sourced:
    """A text, or the beginning of one, as it stands at these keys of a line."""
    return Sourced(text, entries=(entry_id,), field=pointer(*keys))


def counted(entry_ids: Sequence[str]) -> Sourced:
    """How many lines there are of a kind, with their ids."""
    return Sourced(
        number(len(entry_ids)), value=len(entry_ids), entries=tuple(map(plain_id, entry_ids)), how="count"
    )


def given(source: str, *keys: str | int, value: Any, text: str) -> Sourced:
    """A number of the account or the configuration, or a text of it if `value` is None."""
    return Sourced(text, value=value, source=source, field=pointer(*keys))
