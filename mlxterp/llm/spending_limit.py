"""A limit in dollars that concurrent calls cannot break: each puts aside its worst case before it is sent."""

from __future__ import annotations

import asyncio

from mlxterp.errors import LlmBudgetReached


class SpendingLimit:
    """What was spent, what calls under way could still cost, and the limit on both.

    A call that does not fit now waits while others are under way, as most cost less than they put aside.

    Attributes:
        spent: dollars, settled. A reply that was lost on its way counts as what was put aside for it.
    """

    def __init__(self, max_usd: float | None) -> None:
        self.max_usd = max_usd
        self.spent = 0.0
        self._held: list[float] = []
        self._freed: asyncio.Event | None = None

    def enter_loop(self) -> None:
        """Waiting belongs to one event loop: to be called in each before the first `hold`."""
        self._freed = asyncio.Event()

    async def hold(self, usd: float) -> None:
        """Puts `usd` aside.

        Raises:
            LlmBudgetReached: it does not fit, and nothing is under way that could make room.
        """
        assert self._freed is not None, "enter_loop comes first"
        while not self.try_hold(usd):
            if not self._held:
                raise self.empty(usd)
            self._freed.clear()
            await self._freed.wait()

    def try_hold(self, usd: float) -> bool:
        """Puts `usd` aside if it fits now."""
        if self.max_usd is not None and self.spent + sum(self._held) + usd > self.max_usd:
            return False
        self._held.append(usd)
        return True

    def settle(self, held: float, cost: float) -> None:
        """Takes back what was put aside and counts what was spent."""
        self._held.remove(held)
        self.spent += cost
        if self._freed is not None:
            self._freed.set()

    def empty(self, usd: float) -> LlmBudgetReached:
        """That `usd` does not fit, in words."""
        return LlmBudgetReached(
            f"max_usd={self.max_usd:g} was given; ${self.spent:.4f} are spent, and the next call could cost "
            f"${usd:.4f}. Kept replies are not paid again: raise max_usd and run again."
        )
