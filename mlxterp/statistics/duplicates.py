"""Whether two results hold the same numbers: reordered, rounded, re-seeded or padded copies are found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

KEPT = 40
FEWEST = 8
TOLERANCE = 0.0051
"""Relative: rounding to three digits moves a number by up to 0.5 %."""

SHARE = 0.9


def fingerprint(numbers: Iterable[float]) -> tuple[float, ...]:
    """The 40 numbers of largest magnitude, distinct to three digits, ascending; without 0, whole numbers and
    what is not finite (counts, accuracies of 1 and honest zeros agree between any two runs)."""
    telling = {
        float(f"{float(each):.3g}"): float(each)
        for each in numbers
        if math.isfinite(each) and not _is_whole(each)
    }
    return tuple(sorted(sorted(telling.values(), key=abs, reverse=True)[:KEPT]))


def same_numbers(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two fingerprints are of the same measurement: both have at least 8 numbers, and at least 90 %
    of the longer one agree within 0.51 % with one of the other, each used once."""
    if min(len(one), len(other)) < FEWEST:
        return False
    agree, i, j = 0, 0, 0
    while i < len(one) and j < len(other):
        if abs(one[i] - other[j]) <= TOLERANCE * max(abs(one[i]), abs(other[j])):
            agree, i, j = agree + 1, i + 1, j + 1
        elif one[i] < other[j]:
            i += 1
        else:
            j += 1
    return agree >= SHARE * max(len(one), len(other))


def _is_whole(number: float) -> bool:
    return float(number).is_integer()
