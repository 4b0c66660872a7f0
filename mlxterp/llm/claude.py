"""Claude behind the official SDK, as a `Completer`: many calls at once, retried, within a budget.

Covers: a limit on calls under way, waiting for a service that is away, one deadline for a whole answer, money
put aside before each call, instructions marked for the service's cache. Does not cover: tools and talks (the
researcher of `mlxterp_agent`), keeping replies (`reply_cache.py`), what is asked.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from mlxterp.errors import DeprecatedModel, LlmAway, LlmRejected, LlmUnavailable, PromptNotCached
from mlxterp.llm.completer import Reply, Request
from mlxterp.llm.prices import DEFAULT_MODEL, Tokens, deprecation, price_of
from mlxterp.llm.purse import Purse

if TYPE_CHECKING:
    import anthropic
    import httpx2

    from mlxterp.llm.faults import Away

KEY_ENV = "ANTHROPIC_API_KEY"

CONNECT_SECONDS = 15.0
CALL_SECONDS = 300.0
"""For one whole answer. The SDK's own timeout is per read: a body that drips never meets it."""

ATTEMPTS = 6
PATIENCE = 300.0
"""Seconds of waiting for one question, all its retries together."""

LONGEST_WAIT = 60.0

_SLACK = 2_000
"""Tokens that the service may add to a request: roles, words around the schema."""

_UNREAD = 5
"""Calls that could have read their instructions from the cache and did not, after which it is said."""


@dataclass
class Spent:
    """What the calls of one completer came to; retries are not counted, what they cost is."""

    calls: int = 0
    tokens: Tokens = field(default_factory=Tokens)


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
        spent: what its calls came to.

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
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        _need_sdk()
        key = api_key or os.environ.get(KEY_ENV, "")
        if not key:
            raise LlmUnavailable(
                f"{model} was asked for; there is no API key. Set {KEY_ENV}, hand in api_key=, "
                "or label offline with llm=None."
            )
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency={max_concurrency}; it takes at least 1 call at a time.")
        old = deprecation(model)
        if old is not None:
            warnings.warn(DeprecatedModel(old), stacklevel=2)
        self.model = model
        self.spent = Spent()
        self.purse = Purse(max_usd)
        self._key = key
        self._base_url = base_url
        self._max_concurrency = max_concurrency
        self._attempts = attempts
        self._patience = patience
        self._call_seconds = call_seconds
        self._pause = pause
        self._transport = transport
        self._priced = price_of(model)
        self._open: _Open | None = None
        self._prefixes: defaultdict[int, _Prefix] = defaultdict(_Prefix)

    def __repr__(self) -> str:
        return f"AnthropicCompleter({self.model!r}, max_usd={self.purse.max_usd})"

    async def complete(self, request: Request) -> Reply:
        """One whole answer. See the class for what it raises."""
        from mlxterp.llm.faults import Away

        here = self._here()
        tries = AsyncRetrying(
            retry=retry_if_exception_type(Away),
            wait=_wait,
            stop=self._no_more,
            sleep=self._pause,
            reraise=True,
        )
        async with here.places:
            try:
                reply: Reply = await tries(self._once, here.client, request)
            except Away as problem:
                number = tries.statistics.get("attempt_number", 1)
                raise LlmAway(
                    f"{self.model} was asked {number} times and gave no answer: {problem}. "
                    "Replies so far are kept where there is a cache: run again later."
                ) from problem.__cause__
        return reply

    async def close(self) -> None:
        """Closes the connections of this event loop."""
        opened, self._open = self._open, None
        if opened is not None:
            await opened.client.close()

    def _here(self) -> _Open:
        loop = asyncio.get_running_loop()
        if self._open is None or self._open.loop is not loop:
            self.purse.enter_loop()
            self._open = _Open(loop, self._client(), asyncio.Semaphore(self._max_concurrency))
        return self._open

    def _client(self) -> anthropic.AsyncAnthropic:
        import anthropic
        import httpx2

        # Said already, by us, with the name of the successor.
        warnings.filterwarnings("ignore", message="The model .* is deprecated", category=DeprecationWarning)
        timeout = httpx2.Timeout(self._call_seconds, connect=CONNECT_SECONDS)
        http = (
            anthropic.DefaultAsyncHttpxClient(timeout=timeout)
            if self._transport is None
            else anthropic.DefaultAsyncHttpxClient(timeout=timeout, transport=self._transport)
        )
        return anthropic.AsyncAnthropic(
            api_key=self._key, base_url=self._base_url, max_retries=0, timeout=timeout, http_client=http
        )

    def _no_more(self, state: RetryCallState) -> bool:
        return (
            state.attempt_number >= self._attempts or state.idle_for + state.upcoming_sleep > self._patience
        )

    async def _once(self, client: anthropic.AsyncAnthropic, request: Request) -> Reply:
        import anthropic
        import httpx2

        from mlxterp.llm.faults import Away, meaning

        worst = self._priced.at_most(request.size + _SLACK, request.max_tokens)
        cost = worst  # of a call that is cancelled, or whose reply is lost on its way
        await self.purse.hold(worst)
        prefix = self._prefixes[hash(request.system)]
        could_read = prefix.answered > 0
        try:
            message = await asyncio.wait_for(self._ask(client, request), self._call_seconds)
            reply = self._heard(message)
            cost = reply.usd
        except (anthropic.APIError, httpx2.TransportError, asyncio.TimeoutError, ValueError) as problem:
            what = meaning(problem, model=self.model, key=self._key)
            if isinstance(what, LlmRejected) or not what.paid:
                cost = 0.0
            # A service may repeat the key in its words; then they are not shown, not even as the cause.
            raise what from (None if self._key in str(problem) else problem)
        except Away as problem:
            cost = worst if problem.paid else 0.0
            raise
        finally:
            self.purse.settle(worst, cost)
        self._count(reply, prefix, could_read=could_read)
        return reply

    async def _ask(self, client: anthropic.AsyncAnthropic, request: Request) -> Any:
        import anthropic

        output: Any = {
            "format": {"type": "json_schema", "schema": anthropic.transform_schema(request.schema)}
        }
        if request.effort is not None:
            output["effort"] = request.effort
        return await client.messages.create(
            model=self.model,
            max_tokens=request.max_tokens,
            system=[{"type": "text", "text": request.system, "cache_control": {"type": "ephemeral"}}],
            messages=[{"role": "user", "content": request.user}],
            output_config=output,
        )

    def _heard(self, message: Any) -> Reply:
        """A message of the SDK as a reply. The SDK does not check what the service sent; here it is."""
        from mlxterp.llm.faults import Away

        if isinstance(message, str):
            raise Away("something else than the service answered, with a page of text", paid=False)
        try:
            # Thinking comes first and is no part of the answer.
            text = "".join(block.text for block in message.content if block.type == "text")
            tokens = Tokens.of(message.usage.model_dump(mode="json", warnings="none"))
            reason = str(message.stop_reason)
        except (AttributeError, TypeError, ValueError) as problem:
            raise Away(
                f"the answer makes no sense ({type(problem).__name__}: {problem})", paid=True
            ) from problem
        return Reply(text, reason, tokens, self._priced.usd(tokens), estimated=self._priced.estimated)

    def _count(self, reply: Reply, prefix: _Prefix, *, could_read: bool) -> None:
        self.spent.calls += 1
        self.spent.tokens = Tokens(*(a + b for a, b in zip(self.spent.tokens, reply.tokens, strict=True)))
        prefix.answered += 1
        prefix.was_read |= reply.tokens.cache_read > 0
        prefix.paid_in_full += could_read
        if prefix.paid_in_full == _UNREAD and not prefix.was_read:
            warnings.warn(
                PromptNotCached(
                    f"{self.model} was sent the same instructions {prefix.answered} times and read none of "
                    "them from its cache. They may be shorter than the model's minimum, or "
                    f"{self._where} keeps no cache; the replies are the same, and cost more."
                ),
                stacklevel=2,
            )

    @property
    def _where(self) -> str:
        return "the service" if self._base_url is None else self._base_url


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


_random_wait = wait_random_exponential(multiplier=1, max=LONGEST_WAIT)


def _wait(state: RetryCallState) -> float:
    assert state.outcome is not None
    asked: Away | Any = state.outcome.exception()
    return _random_wait(state) if asked.wait is None else float(asked.wait)


def _need_sdk() -> None:
    try:
        import anthropic  # noqa: F401
    except ImportError as problem:
        raise LlmUnavailable(
            "labels by Claude were asked for; the anthropic package is not installed. "
            "Install it with `pip install anthropic`, or label offline with llm=None."
        ) from problem
