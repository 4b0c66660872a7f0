"""The way to Anthropic's service: client, the parameters of a request, a message as a reply, faults, waiting.

Lives here: everything that one call at a time (`client.py`) and whole batches (`batches.py`) share. Does not
live here: what a fault means (`faults.py`), money (`spending_limit.py`).
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from mlxterp.errors import DeprecatedModel, LlmAway, LlmUnavailable
from mlxterp.llm.completer import Reply, Request
from mlxterp.llm.prices import Tokens, deprecation, price_of

if TYPE_CHECKING:
    import anthropic
    import httpx2
    from pydantic import BaseModel

    from mlxterp.llm.faults import Away

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
            Away: it is no message.
        """
        from mlxterp.llm.faults import Away

        if isinstance(message, str):
            raise Away("something else than the service answered, with a page of text", paid=False)
        try:
            # Thinking comes first and is no part of the answer.
            text = "".join(block.text for block in message.content if block.type == "text")
            tokens = Tokens.of(message.usage.model_dump(mode="json", warnings="none"))
            reason = str(message.stop_reason)
        except (AttributeError, TypeError, ValueError) as problem:
            words = f"the answer makes no sense ({type(problem).__name__}: {problem})"
            raise Away(words, paid=True) from problem
        priced = price_of(self.model)
        return Reply(text, reason, tokens, priced.usd(tokens) * discount, estimated=priced.estimated)

    async def faithfully(self, call: Awaitable[T]) -> T:
        """What a call of the SDK gives, within `call_seconds`.

        Raises:
            Away, LlmRejected: what its fault means.
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

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """What a call gives at last, waiting out faults that pass.

        Raises:
            LlmAway: it was tried so often, or waited for so long, in vain.
        """
        from mlxterp.llm.faults import Away

        def no_more(state: RetryCallState) -> bool:
            waited = state.idle_for + state.upcoming_sleep
            return state.attempt_number >= self.attempts or waited > self.patience

        async def once() -> T:  # tenacity awaits a function only if it is declared so
            return await call()

        tries = AsyncRetrying(
            retry=retry_if_exception_type(Away), wait=_wait, stop=no_more, sleep=self.pause, reraise=True
        )
        try:
            return await tries(once)
        except Away as problem:
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
    asked: Away | Any = state.outcome.exception()
    return _random_wait(state) if asked.wait is None else float(asked.wait)
