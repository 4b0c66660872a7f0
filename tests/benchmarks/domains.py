"""Texts of five kinds, to see what of an SAE and its labels holds on another kind of text.

    novels      Jane Austen, documents that the SAE that ships never saw
    brown       edited American English of 1961, documents that it never saw
    code        source files of Python's standard library without their docstrings
    docstrings  documentation in Python's standard library (`mlxterp.datasets.documentation_texts`)
    licences    licences of installed packages and of the system, each wording once

The first two are the kinds it was trained on; the others are not. What is installed differs between
machines, and so do the last three.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

from mlxterp.datasets import documentation_texts
from tests.benchmarks.corpora import austen
from tests.benchmarks.sae_smollm2 import documents

TRAINED_ON = ("novels", "brown")
OTHERS = ("code", "docstrings", "licences")
WORDS = 32_000
"""Words of a kind: about 40,000 tokens."""

_DOCUMENT = 220  # words
_DOCSTRING = re.compile(r'[rbuRBU]*("""|\'\'\').*?\1', re.DOTALL)
_WORD = re.compile(r"\w+")


@cache
def texts(kind: str) -> tuple[str, ...]:
    """Documents of a kind in a fixed random order, `WORDS` words in all.

    Raises:
        KeyError: there is no such kind.
    """
    make = {
        "novels": lambda: _unseen(austen()),
        "brown": lambda: _unseen_brown(),
        "code": _code,
        "docstrings": documentation_texts,
        "licences": _licences,
    }[kind]
    every = list(make())
    chosen, words = [], 0
    for i in np.random.default_rng(0).permutation(len(every)):
        if words >= WORDS:
            break
        chosen.append(every[i])
        words += len(every[i].split())
    return tuple(chosen)


def _held_out() -> set[str]:
    return set(documents()[1])


def _unseen(every: Iterable[str]) -> list[str]:
    held = _held_out()
    return [text for text in every if text in held]


def _unseen_brown() -> list[str]:
    novels = set(austen())
    return [text for text in documents()[1] if text not in novels]


def _code() -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in library.glob("*.py") if path.stat().st_size > 2_000)
    sources = (path.read_text(encoding="utf-8", errors="replace") for path in files)
    return [part for source in sources for part in _parts(_DOCSTRING.sub("", source))]


def _licences() -> list[str]:
    places = [Path(sysconfig.get_paths()["purelib"]), Path("/usr/share/common-licenses")]
    files = sorted(
        path
        for place in places
        for path in place.rglob("*")
        if path.is_file() and re.search(r"licen[cs]e|copying|notice|^[AGLMBC][A-Z]+-[\d.]+$", path.name, re.I)
        if path.suffix not in {".py", ".pyc", ".json"} and path.stat().st_size < 200_000
    )
    seen: set[str] = set()
    kept = []
    for path in files:
        for paragraph in re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace")):
            bare = " ".join(_WORD.findall(paragraph.casefold()))
            if len(bare.split()) >= 12 and bare not in seen:
                seen.add(bare)
                kept.append(re.sub(r"\s+", " ", paragraph).strip())
    return _joined(kept)


def _parts(content: str) -> list[str]:
    return _joined(re.split(r"\n\s*\n", content), "\n\n")


def _joined(paragraphs: Iterable[str], between: str = " ") -> list[str]:
    found: list[str] = []
    waiting: list[str] = []
    for paragraph in paragraphs:
        waiting.append(paragraph)
        if sum(len(each.split()) for each in waiting) >= _DOCUMENT:
            found.append(between.join(waiting))
            waiting = []
    return found
