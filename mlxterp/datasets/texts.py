"""Texts that need no download: an excerpt of Jane Austen's novels, and the documentation in Python's standard
library. Any list of strings is a larger corpus."""

from __future__ import annotations

import ast
import gzip
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from mlxterp.errors import TooLittleData

_FILE = "austen.txt.gz"


def sample_texts(n: int | None = None) -> list[str]:
    """Documents of one or a few paragraphs, from the openings of six novels by Jane Austen.

    60 words or more each; 190 kB of prose in all, 42,000 tokens of SmolLM2; in the public domain. For
    examples, tests and first looks: one author and one century are no sample of English.

    Args:
        n: how many, evenly spread over the novels; None is all of them.

    Raises:
        TooLittleData: more than there are.
    """
    texts = gzip.decompress((files("mlxterp") / "datasets" / _FILE).read_bytes()).decode("utf-8")
    return _spread(texts.strip().split("\n\n"), n)


def documentation_texts(n: int | None = None) -> list[str]:
    """Technical prose: the documentation in Python's standard library, in documents of 60 words or more.

    Docstrings of modules, classes and functions, some 100,000 words, read from the source files of the Python
    that runs; another version has other texts. The SAE that ships was not trained on them (`sample_texts` is
    of the novels that it was trained on), so they tell how it does on another kind of text.

    Args:
        n: how many, evenly spread over the modules; None is all of them.

    Raises:
        TooLittleData: more than there are, or this Python is installed without its source files.
    """
    documents = _documentation()
    if not documents:
        raise TooLittleData(
            "This Python's standard library is installed without its source files, so there is no "
            "documentation to read. Bring your own list of strings."
        )
    return _spread(documents, n)


_WORDS_OF_A_DOCUMENT = 60


@cache
def _documentation() -> tuple[str, ...]:
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = sorted(path for path in library.glob("*.py") if not path.name.startswith("_"))
    return tuple(document for path in modules for document in _documentation_of(path))


def _documentation_of(path: Path) -> Iterator[str]:
    """The docstrings of one module in their order, joined to documents."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # of another version of Python
        return
    waiting: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            waiting.append(ast.get_docstring(node) or "")
            if sum(len(each.split()) for each in waiting) >= _WORDS_OF_A_DOCUMENT:
                yield "\n\n".join(each for each in waiting if each)
                waiting = []


def _spread(documents: Sequence[str], n: int | None) -> list[str]:
    """All documents, or n of them evenly spread."""
    if n is None:
        return list(documents)
    if not 1 <= n <= len(documents):
        raise TooLittleData(
            f"{n} texts were asked for; there are {len(documents)}. Choose 1 to {len(documents)}, or "
            "bring your own list of strings."
        )
    return [documents[i * len(documents) // n] for i in range(n)]
