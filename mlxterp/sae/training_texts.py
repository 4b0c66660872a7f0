"""Which texts an SAE was trained on, as a sample of hashes that is saved with it.

An evaluation on texts of the training says how well the SAE remembers them, not how well it does on others.
A training records its passages of 13 words here (`record`); `seen_in_training` says which share of the
passages of other texts is among them. Paragraphs may be cut and joined differently, and letter case, spaces
and punctuation do not count.

Source: Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv:2005.14165, appendix C: overlap of
13-grams tells whether a test text was in the training. The sample of hashes is FracMinHash (Irber et al.
2022, doi:10.1101/2022.01.11.475838).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxterp.errors import SAEError

Hashes: TypeAlias = NDArray[np.uint64]

WORDS = 13
"""Words of a passage; a shorter text is one passage."""

MOST_KEPT = 40_000
"""Passages that are kept of a training at most: 160 kB, and of more one in 2, 4, 8 …"""

KEY = "passages"
"""Where a training's record stands in the facts of its texts."""

_WORD = re.compile(r"\w+")


def record(texts: Sequence[str]) -> dict[str, Any]:
    """The record of the texts of a training, as plain values for the SAE's metadata.

    Costs about a second for a million words.
    """
    passages = np.unique(_passages(texts))
    one_in = 1
    while (passages % one_in == 0).sum() > MOST_KEPT:
        one_in *= 2
    kept = np.unique((passages[passages % one_in == 0] >> np.uint64(32)).astype("<u4"))
    return {"words": WORDS, "one_in": one_in, "hashes": base64.b64encode(kept.tobytes()).decode()}


def seen_in_training(metadata: Mapping[str, Any], texts: Sequence[str]) -> float | None:
    """The share of the passages of `texts` that the SAE with this metadata was trained on, 0 to 1.

    None where the metadata has no record of the training's texts, as of SAEs from other tools, and where no
    passage of `texts` is in the sample: fewer than some hundred words may have none.

    An estimate from the sample; a passage that was not trained on is taken for one with a probability of
    1e-5 or less.

    Raises:
        SAEError: a record that is none of this format.
    """
    own = _record_of(metadata)
    if own is None:
        return None
    try:
        one_in, words = int(own["one_in"]), int(own["words"])
        kept = np.frombuffer(base64.b64decode(own["hashes"], validate=True), dtype="<u4")
    except (KeyError, TypeError, ValueError) as problem:
        raise SAEError(
            f"The record of the SAE's training texts cannot be read ({problem}). Remove {KEY!r} from the "
            "metadata, or load the file that was saved."
        ) from problem
    passages = _passages(texts, words)
    sample = (passages[passages % one_in == 0] >> np.uint64(32)).astype("<u4")
    return float(np.isin(sample, kept).mean()) if len(sample) else None


def _record_of(metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    at: Any = metadata
    for name in ("training", "source", KEY):
        at = at.get(name) if isinstance(at, Mapping) else None
    return at if isinstance(at, Mapping) else None


def _passages(texts: Sequence[str], words: int = WORDS) -> Hashes:
    """A 64-bit hash of every run of so many words in each text."""
    number: dict[str, int] = {}
    found = []
    for text in texts:
        spoken = [number.setdefault(word, len(number)) for word in _WORD.findall(text.casefold())]
        if spoken:
            found.append(np.array(spoken, dtype=np.int64))
    if not found:
        return np.zeros(0, dtype=np.uint64)
    of_word = np.array(
        [int.from_bytes(hashlib.blake2b(w.encode(), digest_size=8).digest(), "little") for w in number],
        dtype=np.uint64,
    )
    return np.concatenate([_runs(of_word[spoken], words) for spoken in found])


def _runs(of_word: Hashes, words: int) -> Hashes:
    """[max(1, n − words + 1)] one hash of each run of consecutive words."""
    size = min(words, len(of_word))
    result = np.zeros(len(of_word) - size + 1, dtype=np.uint64)
    for i in range(size):
        result = (result ^ of_word[i : i + len(result)]) * np.uint64(0x9E3779B97F4A7C15)
        result ^= result >> np.uint64(29)
    return result
