"""The cost of calls: each reserves its worst case before it is sent, and is charged by its outcome.

`charge_call` alone decides what a call is charged. What is reserved and charged is counted in memory with a
limit in dollars (`SpendingLimit`, for labels), or in the journal of a supervised investigation
(`mlxterp_agent`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from mlxterp.errors import LlmBudgetReached, LlmRejected
from mlxterp.llm.faults import TransientError
from mlxterp.llm.prices import Tokens

T = TypeVar("T")


class Cost(NamedTuple):
    """The worst or the actual cost of a call.

    Attributes:
        usage: the service's own count; None where there is no answer.
        lost: why an answer that may have been paid for did not arrive; "" if it did.
    """

    usd: float
    tokens: int = 0
    usage: Tokens | None = None
    lost: str = ""


async def charge_call(
    call: Callable[[], Awaitable[T]],
    *,
    worst: Cost,
    cost_of: Callable[[T], Cost],
    settle: Callable[[Cost], None],
) -> T:
    """The answer of a call for which `worst` is reserved; `settle` gets its final cost.

    An answer costs what `cost_of` says; a refused call costs nothing. A reply that was lost on its way, or
    cancelled before it arrived, may have been paid for and costs what was reserved.
    """
    cost = worst._replace(lost="given up")
    try:
        answer = await call()
        cost = cost_of(answer)
        return answer
    except LlmRejected:
        cost = Cost(0.0)
        raise
    except TransientError as problem:
        cost = worst._replace(lost=str(problem)) if problem.paid else Cost(0.0)
        raise
    finally:
        settle(cost)


class SpendingLimit:
    """A limit in dollars that concurrent calls cannot break.

    A call that does not fit now waits while others are open, as most cost less than they reserve.

    Attributes:
        spent: dollars, settled. A reply that was lost on its way counts as what was reserved for it.
    """

    def __init__(self, max_usd: float | None) -> None:
        self.max_usd = max_usd
        self.spent = 0.0
        self._held: list[float] = []
        self._waiting: list[asyncio.Future[None]] = []

    async def hold(self, worst: Cost) -> None:
        """Reserves `worst.usd`.

        Raises:
            LlmBudgetReached: it does not fit, and no open call could make room.
        """
        while not self.try_hold(worst):
            if not self._held:
                raise self.exceeded(worst)
            freed = asyncio.get_running_loop().create_future()
            self._waiting.append(freed)
            await freed

    def try_hold(self, worst: Cost) -> bool:
        """Reserves `worst.usd` if it fits now."""
        if self.max_usd is not None and self.spent + sum(self._held) + worst.usd > self.max_usd:
            return False
        self._held.append(worst.usd)
        return True

    def settle(self, worst: Cost, cost: Cost) -> None:
        self._held.remove(worst.usd)
        self.spent += cost.usd
        waiting, self._waiting = self._waiting, []
        for freed in waiting:
            if not freed.done():
                freed.set_result(None)

    def exceeded(self, worst: Cost) -> LlmBudgetReached:
        """The error for a call that does not fit."""
        return LlmBudgetReached(
            f"max_usd={self.max_usd:g} was given; ${self.spent:.4f} are spent, and the next call could cost "
            f"${worst.usd:.4f}. Replies in the cache are not paid again: raise max_usd and run again."
        )
