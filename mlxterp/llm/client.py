"""Claude behind the official SDK, as a `Completer`: many calls at once, retried, within a budget.

Covers: a limit on calls under way, waiting for a service that is away, one deadline for a whole answer, money
put aside before each call, instructions marked for the service's cache. Does not cover: tools and talks (the
researcher of `mlxterp_agent`), keeping replies (`reply_cache.py`), answers in bulk (`batches.py`).
"""

from __future__ import annotations

import asyncio
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlxterp.errors import LlmRejected, PromptNotCached
from mlxterp.llm.completer import Reply, Request
from mlxterp.llm.prices import DEFAULT_MODEL, Tokens
from mlxterp.llm.service import ATTEMPTS, CALL_SECONDS, PATIENCE, Pause, service
from mlxterp.llm.spending_limit import Purse

if TYPE_CHECKING:
    import anthropic
    import httpx2

_UNREAD = 5
"""Calls that could have read their instructions from the cache and did not, after which it is said."""


@dataclass
class Spent:
    """What the calls of one completer came to; retries are not counted, what they cost is."""

    calls: int = 0
    tokens: Tokens = field(default_factory=Tokens)

    def add(self, tokens: Tokens) -> None:
        """Counts one answer."""
        self.calls += 1
        self.tokens = Tokens(*(a + b for a, b in zip(self.tokens, tokens, strict=True)))


class AnthropicCompleter:
    """Asks one Claude model, up to `max_concurrency` questions at once.

    Args:
        model: its name; a deprecated one is used as asked, with a warning that names the successor.
        api_key: by default ANTHROPIC_API_KEY. It is never written anywhere: cache, log or error.
        base_url: of another service that speaks the Messages API; else ANTHROPIC_BASE_URL or Anthropic's.
        max_usd: never spend more; priced from `prices.py` by the service's own counts, worst case first.
        attempts, patience: tries per question, and seconds of waiting for all of them.
        call_seconds: from the first byte of a request to the last of its answer.
        pause: waits so many seconds; tests hand in one that does not.
        transport: of the HTTP client; tests hand in one that fails as told.

    Attributes:
        spent: what its calls came to; `purse.spent` in dollars.

    Raises:
        LlmUnavailable: no key, or no anthropic package.

    `complete` raises LlmRejected at once for what no retry mends (400, 401, 402, 403, 404, 413, 422), LlmAway
    when the service stayed away, LlmBudgetReached before a call that could pass `max_usd`.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        max_usd: float | None = None,
        max_concurrency: int = 8,
        attempts: int = ATTEMPTS,
        patience: float = PATIENCE,
        call_seconds: float = CALL_SECONDS,
        pause: Pause = asyncio.sleep,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency={max_concurrency}; it takes at least 1 call at a time.")
        self._service = service(
            model,
            api_key=api_key,
            base_url=base_url,
            attempts=attempts,
            patience=patience,
            call_seconds=call_seconds,
            pause=pause,
            transport=transport,
        )
        self.model = model
        self.spent = Spent()
        self.purse = Purse(max_usd)
        self._max_concurrency = max_concurrency
        self._open: _Open | None = None
        self._prefixes: defaultdict[int, _Prefix] = defaultdict(_Prefix)

    def __repr__(self) -> str:
        return f"AnthropicCompleter({self.model!r}, max_usd={self.purse.max_usd})"

    async def complete(self, request: Request) -> Reply:
        """One whole answer. See the class for what it raises."""
        here = self._here()
        async with here.places:
            return await self._service.patiently(lambda: self._once(here.client, request))

    async def close(self) -> None:
        """Closes the connections of this event loop."""
        opened, self._open = self._open, None
        if opened is not None:
            await opened.client.close()

    def _here(self) -> _Open:
        loop = asyncio.get_running_loop()
        if self._open is None or self._open.loop is not loop:
            self.purse.enter_loop()
            self._open = _Open(loop, self._service.client(), asyncio.Semaphore(self._max_concurrency))
        return self._open

    async def _once(self, client: anthropic.AsyncAnthropic, request: Request) -> Reply:
        from mlxterp.llm.faults import Away

        worst = self._service.worst(request)
        cost = worst  # of a call that is cancelled, or whose reply is lost on its way
        await self.purse.hold(worst)
        prefix = self._prefixes[hash(request.system)]
        could_read = prefix.answered > 0
        try:
            call = client.messages.create(**self._service.params(request))
            reply = self._service.heard(await self._service.faithfully(call))
            cost = reply.usd
        except LlmRejected:
            cost = 0.0
            raise
        except Away as problem:
            cost = worst if problem.paid else 0.0
            raise
        finally:
            self.purse.settle(worst, cost)
        self.spent.add(reply.tokens)
        self._watch(reply, prefix, could_read=could_read)
        return reply

    def _watch(self, reply: Reply, prefix: _Prefix, *, could_read: bool) -> None:
        prefix.answered += 1
        prefix.was_read |= reply.tokens.cache_read > 0
        prefix.paid_in_full += could_read
        if prefix.paid_in_full == _UNREAD and not prefix.was_read:
            warnings.warn(
                PromptNotCached(
                    f"{self.model} was sent the same instructions {prefix.answered} times and read none of "
                    "them from its cache. They may be shorter than the model's minimum, or "
                    f"{self._service.where} keeps no cache; the replies are the same, and cost more."
                ),
                stacklevel=2,
            )


@dataclass
class _Prefix:
    """What became of one set of instructions."""

    answered: int = 0
    paid_in_full: int = 0
    was_read: bool = False


@dataclass(frozen=True)
class _Open:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    client: anthropic.AsyncAnthropic
    places: asyncio.Semaphore
