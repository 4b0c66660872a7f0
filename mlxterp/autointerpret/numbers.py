"""The numbers inside a plain result: how many are finite, and whether two results hold the same ones.

Does not live here: what follows from it (`keep_rule.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mlxterp.autointerpret.encoding import NONFINITE

NOT_MEASURED = frozenset({"measured_on", "labels", "duration_seconds", "seconds"})
"""Keys whose numbers describe the measurement and are not its outcome."""

MIN_VECTOR = 3
"""Fewer numbers than this may agree by chance: two accuracies of 1.0 make no experiment a copy."""


class Counted(NamedTuple):
    """How many numbers a result holds, and how many of them are NaN or infinite."""

    total: int
    nonfinite: int


def count(result: Any) -> Counted:
    """Counts the numbers of a plain result, including the strings that stand for non-finite ones."""
    every = list(numbers(result))
    return Counted(len(every), sum(isinstance(number, str) for number in every))


def vector_digest(result: Any) -> str | None:
    """SHA-256 of a result's numbers in their order, whatever their names; None below `MIN_VECTOR` of them."""
    every = list(numbers(result))
    if len(every) < MIN_VECTOR:
        return None
    return hashlib.sha256(repr([n if isinstance(n, str) else float(n) for n in every]).encode()).hexdigest()


def numbers(value: Any) -> Iterator[int | float | str]:
    """The outcome's numbers, depth first, non-finite ones as their strings; no booleans, no other texts."""
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)) or (isinstance(value, str) and value in NONFINITE):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name not in NOT_MEASURED:
                yield from numbers(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from numbers(item)
