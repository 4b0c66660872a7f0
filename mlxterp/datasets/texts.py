"""Texts that need no download: an excerpt of Jane Austen's novels. Any list of strings is a larger corpus."""

from __future__ import annotations

import gzip
from importlib.resources import files

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
    documents = texts.strip().split("\n\n")
    if n is None:
        return documents
    if not 1 <= n <= len(documents):
        raise TooLittleData(
            f"{n} texts were asked for; the sample holds {len(documents)}. Choose 1 to {len(documents)}, or "
            "bring your own list of strings."
        )
    return [documents[i * len(documents) // n] for i in range(n)]
