"""Online control of the false discovery rate (LORD++): the significance level of each claim of an
investigation, given the verdicts on earlier ones; and what a claim pays that those verdicts may have chosen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mlxterp.errors import StatisticsError

FDR = 0.05
"""The expected share of false findings among the findings of a night."""

INITIAL_WEALTH = 0.025
LEVEL_CAP = 0.005
"""No claim is judged at a more generous level, however many findings came before."""


LEAST_LEVEL = 1e-30
"""A claim that pays for more is judged at this level, and not found."""


def spending(j: int) -> float:
    """γ(j) = 0.07720838 · ln max(j, 2) / (j · exp √ln j): the share of wealth spent on the j-th claim after a
    finding.

    They add up to 0.98, slowly: half of the wealth is left after 200,000 claims.
    """
    return 0.07720838 * math.log(max(j, 2)) / (j * math.exp(math.sqrt(math.log(j))))


def level(
    t: int,
    discoveries: Sequence[int] = (),
    *,
    fdr: float = FDR,
    initial: float = INITIAL_WEALTH,
    cap: float = LEVEL_CAP,
) -> float:
    """The level of the t-th judged claim (t from 1), after discoveries at the claims `discoveries` (LORD++).

    A discovery is a claim that was supported or refuted; ruled-out and inconclusive ones earn nothing. Only
    those before t count.

    Raises:
        StatisticsError: t below 1, or discoveries that do not ascend from 1.

    Source: Ramdas et al. 2017, "Online control of the false discovery rate with decaying memory"; the γ are
    of Javanmard and Montanari 2018. Deviation: the cap.
    """
    if t < 1 or any(i < 1 for i in discoveries) or list(discoveries) != sorted(set(discoveries)):
        raise StatisticsError(
            f"claim {t} after discoveries at {list(discoveries)}. Claims are numbered from 1, and "
            "discoveries ascend."
        )
    before = [i for i in discoveries if i < t]
    spent = initial * spending(t)
    if before:
        spent += (fdr - initial) * spending(t - before[0])
    spent += sum(fdr * spending(t - i) for i in before[1:])
    return min(cap, spent)


@dataclass(frozen=True)
class JudgedClaim:
    """A claim that was judged: where, what its researcher was told, and whether that is a discovery."""

    sites: frozenset[str]
    told: str
    discovery: bool


def level_after(judged: Sequence[JudgedClaim], sites: Collection[str]) -> float:
    """The level of a claim about these sites that is measured on the same clusters as those judged before.

    A verdict on a site tells something of the clusters, and a set may be made of what it told: in worlds
    where effects add up, the heads that were left open together show an effect that is not there. So a claim
    pays for the verdicts on all claims that share a site with it: its level is halved for each bit, which is
    −log2 of the share that such verdicts have among all so far. Where all were alike, they told nothing. A
    discovery lends no wealth to claims that share a site with it, and earns none where it shares one with an
    earlier discovery.

    Source: a verdict chosen among k equally likely ones inflates the error of what it selects at most k times
    (Dwork et al. 2015, "Generalization in adaptive data analysis and holdout reuse"). Deviation: how likely a
    verdict is, is estimated by how frequent it is.
    """
    own = frozenset(sites)
    found: list[frozenset[str]] = []
    earned: list[int] = []
    for number, each in enumerate(judged, 1):
        if each.discovery:
            if own.isdisjoint(each.sites) and all(each.sites.isdisjoint(before) for before in found):
                earned.append(number)
            found.append(each.sites)
    frequent = Counter(each.told for each in judged)
    bits = sum(
        math.log2(len(judged) / frequent[each.told]) for each in judged if not own.isdisjoint(each.sites)
    )
    return max(LEAST_LEVEL, level(len(judged) + 1, earned) * 2.0**-bits)
