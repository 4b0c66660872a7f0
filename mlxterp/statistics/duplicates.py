"""Whether two results hold the same numbers: reordered, rounded, re-seeded or padded copies are found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

KEPT = 40
FEWEST = 8
FEWEST_IN_ORDER = 3
"""Fewer numbers than this can agree by chance: two accuracies of 1.0 do not make an experiment a copy."""

TOLERANCE = 0.0051
"""Relative: rounding to three digits moves a number by up to 0.5 %."""

SHARE = 0.9
SAME = 1e-9
"""Relative: what numbers that were computed twice, or jittered to look new, differ by at most."""


@dataclass(frozen=True)
class ResultNumbers:
    """The numbers of one result, as `is_copy` compares them.

    Attributes:
        in_order: all of them.
        telling: their `fingerprint`.
    """

    in_order: tuple[float, ...]
    telling: tuple[float, ...]


def result_numbers(numbers: Iterable[float]) -> ResultNumbers:
    """What is compared of a result with these numbers, in their order; NaN and infinities included."""
    in_order = tuple(float(each) for each in numbers)
    return ResultNumbers(in_order, fingerprint(in_order))


LANDMARKS = 5
_STEP = math.log1p(2 * TOLERANCE)
_NEGATIVE = 1_000_000  # far beyond the step of any float


def landmarks(numbers: ResultNumbers) -> tuple[int, ...]:
    """Whole numbers by which copies are found among many results: two copies share one of them, or two that
    differ by 1.

    They stand for the five telling numbers of largest magnitude and their signs, in steps of a percent. At
    most four of forty may differ in a copy, so one of five agrees.
    """
    largest = sorted(numbers.telling, key=abs, reverse=True)[:LANDMARKS]
    steps = (math.floor(math.log(abs(each)) / _STEP) for each in largest)
    return tuple(step if each > 0 else step + _NEGATIVE for step, each in zip(steps, largest, strict=True))


def is_copy(one: ResultNumbers, other: ResultNumbers) -> bool:
    """Whether two results hold the same measurement.

    With at least 8 telling numbers each, in any order and to three digits (`same_numbers`). Shorter results
    are copies if they are the same in order, are at least three numbers, and one of these is not whole: two
    honest zeros are no copy, and neither are effects of 0 and 1 at different sites.
    """
    if same_numbers(one.telling, other.telling):
        return True
    if len(one.in_order) != len(other.in_order) or len(one.in_order) < FEWEST_IN_ORDER or not one.telling:
        return False
    return all(_same(a, b) for a, b in zip(one.in_order, other.in_order, strict=True))


def _same(a: float, b: float) -> bool:
    return a == b or (a != a and b != b) or math.isclose(a, b, rel_tol=SAME)


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
