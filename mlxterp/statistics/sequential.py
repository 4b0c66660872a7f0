"""Online control of the false discovery rate (LORD++): the significance level of each claim of an
investigation, given the verdicts on earlier ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlxterp.errors import StatisticsError

FDR = 0.05
"""The expected share of false findings among the findings of a night."""

INITIAL_WEALTH = 0.025
LEVEL_CAP = 0.005
"""No claim is judged at a more generous level, however many findings came before."""


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
