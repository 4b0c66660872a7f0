"""Claude behind the official SDK, as a `Completer`: many calls at once, retried, within a budget.

Covers: a limit on calls under way, waiting for a service that is away, one deadline for a whole answer, money
put aside before each call, instructions marked for the service's cache. Does not cover: tools and talks (the
researcher of `mlxterp_agent`), keeping replies (`reply_cache.py`), answers in bulk (`batches.py`).
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from mlxterp.errors import DeprecatedModel, LlmAway, LlmRejected, LlmUnavailable, PromptNotCached
from mlxterp.llm.completer import Reply, Request
from mlxterp.llm.prices import DEFAULT_MODEL, Tokens, deprecation, price_of
from mlxterp.llm.spending_limit import SpendingLimit

if TYPE_CHECKING:
    import anthropic
    import httpx2
    from pydantic import BaseModel

    from mlxterp.llm.faults import TransientError

KEY_ENV = "ANTHROPIC_API_KEY"

CONNECT_SECONDS = 15.0
CALL_SECONDS = 300.0
"""For one whole answer. The SDK's own timeout is per read: a body that drips never meets it."""

ATTEMPTS = 6
PATIENCE = 300.0
"""Seconds of waiting for one question, all its retries together."""

LONGEST_WAIT = 60.0

SLACK = 2_000
"""Tokens that the service may add to a request: roles, words around the schema."""

Pause = Callable[[float], Awaitable[None]]
T = TypeVar("T")

_random_wait = wait_random_exponential(multiplier=1, max=LONGEST_WAIT)


@dataclass(frozen=True, repr=False, kw_only=True)
class Service:
    """One model of the service, and how patient to be with it. Never shows its key."""

    model: str
    key: str
    base_url: str | None
    attempts: int
    patience: float
    call_seconds: float
    pause: Pause
    transport: httpx2.AsyncBaseTransport | None

    @property
    def where(self) -> str:
        return "the service" if self.base_url is None else self.base_url

    def client(self) -> anthropic.AsyncAnthropic:
        """A client for the running event loop, without retries of its own."""
        import anthropic
        import httpx2

        # Said already, by us, with the name of the successor.
        warnings.filterwarnings("ignore", message="The model .* is deprecated", category=DeprecationWarning)
        timeout = httpx2.Timeout(self.call_seconds, connect=CONNECT_SECONDS)
        http = (
            anthropic.DefaultAsyncHttpxClient(timeout=timeout)
            if self.transport is None
            else anthropic.DefaultAsyncHttpxClient(timeout=timeout, transport=self.transport)
        )
        return anthropic.AsyncAnthropic(
            api_key=self.key, base_url=self.base_url, max_retries=0, timeout=timeout, http_client=http
        )

    def params(self, request: Request) -> dict[str, Any]:
        """What `messages.create` is given, and each entry of a batch."""
        output: dict[str, Any] = {"format": {"type": "json_schema", "schema": _sent(request.schema)}}
        if request.effort is not None:
            output["effort"] = request.effort
        return {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "system": [{"type": "text", "text": request.system, "cache_control": {"type": "ephemeral"}}],
            "messages": [{"role": "user", "content": request.user}],
            "output_config": output,
        }

    def worst(self, request: Request) -> float:
        """The most that one answer can cost, in dollars."""
        return price_of(self.model).at_most(request.size + SLACK, request.max_tokens)

    def heard(self, message: Any, *, discount: float = 1.0) -> Reply:
        """A message of the SDK as a reply. The SDK does not check what the service sent; here it is.

        Raises:
            TransientError: it is no message.
        """
        from mlxterp.llm.faults import TransientError

        if isinstance(message, str):
            raise TransientError("something else than the service answered, with a page of text", paid=False)
        try:
            # Thinking comes first and is no part of the answer.
            text = "".join(block.text for block in message.content if block.type == "text")
            tokens = Tokens.of(message.usage.model_dump(mode="json", warnings="none"))
            reason = str(message.stop_reason)
        except (AttributeError, TypeError, ValueError) as problem:
            words = f"the answer makes no sense ({type(problem).__name__}: {problem})"
            raise TransientError(words, paid=True) from problem
        priced = price_of(self.model)
        return Reply(text, reason, tokens, priced.usd(tokens) * discount, estimated=priced.estimated)

    async def call_with_timeout(self, call: Awaitable[T]) -> T:
        """What a call of the SDK gives, within `call_seconds`.

        Raises:
            TransientError, LlmRejected: what its fault means.
        """
        import anthropic
        import httpx2

        from mlxterp.llm.faults import meaning

        try:
            return await asyncio.wait_for(call, self.call_seconds)
        except (anthropic.APIError, httpx2.TransportError, asyncio.TimeoutError, ValueError) as problem:
            what = meaning(problem, model=self.model, key=self.key)
            # A service may repeat the key in its words; then they are not shown, not even as the cause.
            raise what from (None if self.key in str(problem) else problem)

    async def call_with_retries(self, call: Callable[[], Awaitable[T]]) -> T:
        """What a call gives at last, waiting out faults that pass.

        Raises:
            LlmAway: it was tried so often, or waited for so long, in vain.
        """
        from mlxterp.llm.faults import TransientError

        def no_more(state: RetryCallState) -> bool:
            waited = state.idle_for + state.upcoming_sleep
            return state.attempt_number >= self.attempts or waited > self.patience

        async def once() -> T:  # tenacity awaits a function only if it is declared so
            return await call()

        tries = AsyncRetrying(
            retry=retry_if_exception_type(TransientError),
            wait=_wait,
            stop=no_more,
            sleep=self.pause,
            reraise=True,
        )
        try:
            return await tries(once)
        except TransientError as problem:
            number = tries.statistics.get("attempt_number", 1)
            raise LlmAway(
                f"{self.model} was asked {number} times and gave no answer: {problem}. "
                "Replies so far are kept where there is a cache: run again later."
            ) from problem.__cause__


def service(
    model: str,
    *,
    api_key: str | None,
    base_url: str | None,
    attempts: int,
    patience: float,
    call_seconds: float,
    pause: Pause,
    transport: httpx2.AsyncBaseTransport | None,
) -> Service:
    """A service that can be asked: with a key, and the SDK at hand. Warns of a deprecated model.

    Raises:
        LlmUnavailable: no key, or no anthropic package.
    """
    try:
        import anthropic  # noqa: F401
    except ImportError as problem:
        raise LlmUnavailable(
            "labels by Claude were asked for; the anthropic package is not installed. "
            "Install it with `pip install anthropic`, or label offline with llm=None."
        ) from problem
    key = api_key or os.environ.get(KEY_ENV, "")
    if not key:
        raise LlmUnavailable(
            f"{model} was asked for; there is no API key. Set {KEY_ENV}, hand in api_key=, "
            "or label offline with llm=None."
        )
    old = deprecation(model)
    if old is not None:
        warnings.warn(DeprecatedModel(old), stacklevel=3)
    return Service(
        model=model,
        key=key,
        base_url=base_url,
        attempts=attempts,
        patience=patience,
        call_seconds=call_seconds,
        pause=pause,
        transport=transport,
    )


@cache
def _sent(schema: type[BaseModel]) -> dict[str, Any]:
    """The schema as the service takes it: what it does not know of JSON schema stands in descriptions."""
    import anthropic

    return anthropic.transform_schema(schema)


def _wait(state: RetryCallState) -> float:
    assert state.outcome is not None
    asked: TransientError | Any = state.outcome.exception()
    return _random_wait(state) if asked.wait is None else float(asked.wait)


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
        self.purse = SpendingLimit(max_usd)
        self._max_concurrency = max_concurrency
        self._open: _Open | None = None
        self._prefixes: defaultdict[int, _Prefix] = defaultdict(_Prefix)

    def __repr__(self) -> str:
        return f"AnthropicCompleter({self.model!r}, max_usd={self.purse.max_usd})"

    async def complete(self, request: Request) -> Reply:
        """One whole answer. See the class for what it raises."""
        here = self._here()
        async with here.places:
            return await self._service.call_with_retries(lambda: self._once(here.client, request))

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
        from mlxterp.llm.faults import TransientError

        worst = self._service.worst(request)
        cost = worst  # of a call that is cancelled, or whose reply is lost on its way
        await self.purse.hold(worst)
        prefix = self._prefixes[hash(request.system)]
        could_read = prefix.answered > 0
        try:
            call = client.messages.create(**self._service.params(request))
            reply = self._service.heard(await self._service.call_with_timeout(call))
            cost = reply.usd
        except LlmRejected:
            cost = 0.0
            raise
        except TransientError as problem:
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
