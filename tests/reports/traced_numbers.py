"""Walks a report of an investigation: every number on it, and the value in the log that it was read from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

from mlxterp.reports.evidence import leaves, mean_bits
from mlxterp.text import visible

EXEMPT_TAGS = {
    "time": "dates",
    "code": "commands, paths and digests",
    "footer": "when and by which version the page was made",
    "style": "no text",
    "title": "the question, which the page shows with its source",
}
EXEMPT_CLASSES = {
    "id": "ids of lines",
    "name": "names of models, sites, machines and versions",
}
_VOID = {"meta", "link", "br", "hr", "input", "img"}


@dataclass(frozen=True)
class Element:
    tag: str
    attrs: dict[str, str]


@dataclass
class Number:
    """A piece of text with a digit, the elements that it stands in, and the text of the sourced one."""

    text: str
    within: tuple[Element, ...]

    def __str__(self):
        return f"{self.text!r} in {'/'.join(each.tag for each in self.within[-4:])}"


@dataclass
class Walker(HTMLParser):
    """The texts with digits of a page, and of each element with a source the whole text."""

    numbers: list[Number] = field(default_factory=list)
    sourced: list[tuple[Element, list[str]]] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    def __post_init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        if tag in _VOID:
            return
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.ids.add(element.attrs.get("id", ""))
        self.open.append(element)
        self.texts.append([])
        if "data-field" in element.attrs or "data-how" in element.attrs:
            self.sourced.append((element, self.texts[-1]))

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag in _VOID:
            return
        assert self.open[-1].tag == tag
        self.open.pop()
        text = self.texts.pop()
        if self.texts:
            self.texts[-1] += text

    def handle_data(self, data):
        if self.texts:
            self.texts[-1].append(data)
        if re.search(r"\d", data):
            self.numbers.append(Number(data.strip(), tuple(self.open)))


@dataclass(frozen=True)
class Records:
    """What the numbers of a report may come from: lines by id, and named accounts."""

    lines: dict[str, dict]
    accounts: dict[str, object]

    def at(self, element, entry_id=None):
        keys = [k.replace("~1", "/").replace("~0", "~") for k in element.attrs["data-field"].split("/")[1:]]
        source = element.attrs.get("data-source")
        found = self.accounts[source] if source else self.lines[entry_id]
        for key in keys:
            found = found[int(key)] if isinstance(found, list) else found[key]
        return found


def walked(html):
    walker = Walker()
    walker.feed(html)
    walker.close()
    return walker


def untraced(html, records):
    """Every number of the page without a source, and every one that is not what its source says."""
    walker = walked(html)
    problems = [f"no source: {number}" for number in walker.numbers if not _has_source(number)]
    for element, texts in walker.sourced:
        problem = _problem(element, "".join(texts), records)
        if problem:
            problems.append(problem)
    return problems


def _has_source(number):
    return any(
        each.tag in EXEMPT_TAGS
        or set(each.attrs.get("class", "").split()) & set(EXEMPT_CLASSES)
        or {"data-field", "data-how", "data-list"} & set(each.attrs)
        for each in number.within
    )


def _problem(element, text, records):
    """What is wrong with a number or a quotation; None if it is what its source says."""
    how, ids = element.attrs.get("data-how", ""), element.attrs.get("data-entry", "").split()
    unknown = [name for name in ids if name not in records.lines]
    if unknown:
        return f"{text!r} is of {unknown}, which is no line"
    if how:
        return _aggregate_problem(element, text, ids, how, records)
    try:
        found = records.at(element, *ids)
    except (KeyError, IndexError, TypeError) as error:
        return f"{text!r} is of {element.attrs}, and there is no such field: {error!r}"
    if element.tag in ("div", "table"):  # what an analysis draws of this field
        return None
    value = element.attrs.get("value")
    if value is not None and float(value) != float(found):
        return f"{text!r} has the value {value}, and its field holds {found}"
    return None if _reads(text, found) else f"{text!r} is of {element.attrs}, which holds {found!r}"


def _aggregate_problem(element, text, ids, how, records):
    if how == "count":
        found = len(set(ids))
    elif how == "sum of sizes":
        found = sum(leaves(records.at(element, name)) for name in ids)
    else:
        chances = [records.at(element, name)[records.lines[name]["record"]["verdict"]] for name in ids]
        found = sum(chances) / len(chances) if how == "mean" else mean_bits(chances)
    same = math.isclose(float(element.attrs["value"]), found, rel_tol=1e-12)
    return None if same and _reads(text, found) else f"{text!r} is the {how} of {ids}, which is {found}"


def _reads(text, found):
    """Whether a text is this value as a reader sees it: a number rounded, or the beginning of a text."""
    if isinstance(found, str):
        said = " ".join(text.split()).removesuffix("…").strip()
        return said in " ".join(visible(found).replace("_", " ").split()) or said in " ".join(
            visible(found).split()
        )
    shown = re.fullmatch(r"\$?(−?[\d,]+(?:\.\d+)?(?:e[-−]?\d+)?)( ?%)?", text)
    if shown is None:  # a duration: its parts in seconds
        units = {"h": 3600, "min": 60, "s": 1}
        parts = re.findall(r"([\d.]+) (h|min|s)\b", text)
        seconds = sum(float(n) * units[unit] for n, unit in parts)
        hours = found if abs(seconds - found) <= 60 else found * 3600
        return bool(parts) and abs(seconds - hours) <= max(0.5, 60 if "h" in text else 1)
    digits = shown[1].replace("−", "-").replace(",", "")
    value = float(digits) / (100 if shown[2] else 1)
    mantissa = digits.partition("e")[0]
    decimals = len(mantissa.partition(".")[2]) + (2 if shown[2] else 0)
    power = int(digits.partition("e")[2] or 0)
    return abs(value - found) <= 0.5000001 * 10.0 ** (power - decimals)
