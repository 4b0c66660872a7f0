"""From an interval to supported, refuted, ruled out or inconclusive: the comparisons, and nothing else.

Lives here: what is compared with what. Does not live here: where the interval comes from (`decisions.py`),
which other checks come first (`mlxterp.autointerpret.keep_rule`). Plain Python, so that a rule can be read
and tested without numpy. Every comparison is written so that NaN fails it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

N_MIN = 16
PLACEBOS_MIN = 6

NOT_RULED_OUT = "not ruled out"

Outcome = Literal["supported", "refuted", "ruled_out", "inconclusive"]
Direction = Literal["increase", "decrease", "either", "none"]
Sign = Literal[1, -1]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An effect with its interval, and what it is held against.

    Attributes:
        effect, low, high: R in its own sign, and the ends of its interval.
        sesoi: the smallest effect of interest S.
        direction: of the effect: "increase" (R > 0), "decrease", "either", or "none" (the claim is that there
            is none).
        bar: what |R| must exceed; None if too few placebos were measured.
        slices: the effect in each slice; None for a slice without a cluster or without a gap.
    """

    effect: float
    low: float
    high: float
    sesoi: float
    direction: Direction = "increase"
    bar: float | None = None
    slices: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether all of its numbers are finite."""
        also = [each for each in (self.bar, *self.slices.values()) if each is not None]
        return all(math.isfinite(x) for x in (self.effect, self.low, self.high, self.sesoi, *also))


def outcome_of(e: Comparison) -> Outcome:
    """supported: the lower end exceeds S/2, R ≥ S, |R| exceeds the bar and R > 0 in every slice, all in the
    predicted direction. refuted: its mirror image. ruled_out: both ends inside ±S. With direction "none",
    ruling out supports the claim and an effect on either side refutes it; with "either", an effect on either
    side supports it.
    """
    up, down, inside = not shortfalls(e, 1), not shortfalls(e, -1), is_inside(e)
    if e.direction == "none":
        return "supported" if inside else "refuted" if up or down else "inconclusive"
    if up or down:
        as_predicted = e.direction == "either" or (up if e.direction == "increase" else down)
        return "supported" if as_predicted else "refuted"
    return "ruled_out" if inside else "inconclusive"


def is_inside(e: Comparison) -> bool:
    """Whether both ends are inside ±S: two one-sided tests."""
    return -e.sesoi < e.low and e.high < e.sesoi


def shortfalls(e: Comparison, sign: Sign) -> tuple[str, ...]:
    """What keeps the effect from being established on this side, each as `word: why`; empty when nothing
    does."""
    end, half = (e.low if sign > 0 else -e.high), e.sesoi / 2
    missing = []
    if not end > half:
        missing.append(f"interval: [{e.low:.3g}, {e.high:.3g}] is not beyond {sign * half:g}")
    if not sign * e.effect >= e.sesoi:
        missing.append(f"estimate: {e.effect:.3g} does not reach {sign * e.sesoi:g}")
    if e.bar is None:
        missing.append(f"placebo: fewer than {PLACEBOS_MIN} were measured")
    elif not abs(e.effect) > e.bar:
        missing.append(f"placebo: other sites reach {e.bar:.3g}")
    for name, part in e.slices.items():
        if part is None:
            missing.append(f"slice: {name} has none of these clusters")
        elif not sign * part > 0:
            missing.append(f"slice: the sign does not hold in {name}")
    return tuple(missing)


def missing(e: Comparison) -> tuple[str, ...]:
    """What kept an inconclusive effect from a verdict, each as `word: why`: of the side that it is nearest
    to, and of ruling it out; where no effect was predicted, of ruling it out alone.
    """
    if e.direction == "none":
        return (f"interval: [{e.low:.3g}, {e.high:.3g}] is not inside ±{e.sesoi:g}",)
    sign: Sign = 1 if e.effect >= 0 else -1
    if e.effect == 0 and e.direction == "decrease":
        sign = -1
    return (*shortfalls(e, sign), f"{NOT_RULED_OUT}: [{e.low:.3g}, {e.high:.3g}] is not inside ±{e.sesoi:g}")


def told(e: Comparison) -> tuple[str, ...]:
    """What a researcher is told that an inconclusive claim lacks, while claims may still be judged on the
    same clusters: "placebo" or "slice" where there is none to compare with, else "interval".

    Nothing of it depends on the effect. Whether it was the estimate that fell short, or the interval, is one
    bit for each claim about the same clusters, and heads chosen by these bits made up to 148 false findings
    of their unions (`mlxterp.selftest.adversaries`); `missing` says all of it once the clusters are opened.
    """
    absent = [word for word, is_absent in _absent(e).items() if is_absent]
    return tuple(absent) or ("interval",)


def _absent(e: Comparison) -> dict[str, bool]:
    return {
        "placebo": e.bar is None and e.direction != "none",
        "slice": any(part is None for part in e.slices.values()),
    }
