"""The strongest of many sites: which are established for all sites at once, and what they are on other pairs.

Lives here: the values and sentences that kinds of results with many sites share. Does not live here: the
inference (`mlxterp.statistics`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlxterp.results.views import Component, Interval, Table
from mlxterp.statistics.multiple import NEGLIGIBLE
from mlxterp.text import number

SEARCHED = "the same pairs that the search used: the strongest are too large on average"


@dataclass(frozen=True, kw_only=True)
class MeasuredAgain:
    """One of the strongest sites of a search on some of the pairs, measured on the others.

    Attributes:
        label: of the component.
        searched: its effect on the pairs that chose it: too large on average.
        effect: its effect on the other pairs.
        ci: an interval around `effect`; the intervals of all that were measured again hold together.
    """

    label: str
    searched: float
    effect: float
    ci: Interval


def established(components: Iterable[Component], size: float = NEGLIGIBLE) -> list[Component]:
    """Those whose interval lies beyond `size` in the direction of their effect, strongest first; none without
    intervals."""
    beyond = [c for c in components if c.ci is not None and (c.ci[0] > size or c.ci[1] < -size)]
    return sorted(beyond, key=lambda c: -abs(c.effect))


def established_text(found: Sequence[Component], sites: int, most: int = 10) -> str:
    """Which of all sites searched are established, as a sentence."""
    at_once = f"with intervals that hold for all {sites:,} sites searched at once"
    if not found:
        return f"No site is established: none is beyond {NEGLIGIBLE:g} {at_once}."
    named = ", ".join(c.label for c in found[:most])
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f"Established, beyond {NEGLIGIBLE:g} {at_once}: {named}{more}."


def pairs_text(n: int) -> str:
    """`1 pair`, `8 pairs`."""
    return f"{n} pair{'s' * (n != 1)}"


def measured_again_text(
    again: Sequence[MeasuredAgain], chosen_on: int, others: int, *, measured: str = "measured"
) -> str:
    """What the strongest sites of some pairs are on the others, as a sentence; empty without any."""
    if not again:
        return ""
    each = "; ".join(
        f"{one.label} {number(one.effect)} ({number(one.ci[0])} to {number(one.ci[1])}; "
        f"{number(one.searched)} where it was chosen)"
        for one in again
    )
    on = f"{measured} on {others} other {_plural(others)}"
    return f"The strongest on {pairs_text(chosen_on)}, {on}: {each}."


def measured_again_table(again: Sequence[MeasuredAgain], chosen_on: int, others: int) -> Table:
    """The same as a table."""
    return Table(
        title="The strongest sites on other pairs",
        columns=("component", "on other pairs", "from", "to", "where it was chosen"),
        rows=tuple((one.label, one.effect, *one.ci, one.searched) for one in again),
        caption=(
            f"Chosen on {pairs_text(chosen_on)} and measured on {others} other {_plural(others)}; the "
            "intervals hold together. An effect is too large on average where it was chosen."
        ),
    )


def _plural(n: int) -> str:
    return "pair" if n == 1 else "pairs"
