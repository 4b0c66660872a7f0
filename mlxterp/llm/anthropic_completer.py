"""Claude as a `Completer`: many questions at once, each one call, within a limit in dollars.

Also contains the conversion of requests and replies to and from messages, which batches share.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from mlxterp.errors import DeprecatedModel, PromptNotCached
from mlxterp.llm.client import (
    ATTEMPTS,
    CALL_SECONDS,
    PATIENCE,
    SLACK,
    CallPolicy,
    MessagesClient,
    Pause,
    foreign_answer,
)
from mlxterp.llm.completer import Reply, Request
from mlxterp.llm.faults import TransientError
from mlxterp.llm.prices import DEFAULT_MODEL, Tokens, Usage, deprecation, price_of
from mlxterp.llm.spending_limit import Cost, SpendingLimit, charge_call
from mlxterp.llm.sync import PerLoop

if TYPE_CHECKING:
    import httpx2
    from pydantic import BaseModel

_UNREAD = 5
"""Calls that could have read their instructions from the cache and did not, before a warning."""


class AnthropicCompleter:
    """Asks one Claude model, up to `max_concurrency` questions at once.

    Args:
        model: its name; a deprecated one is used as asked, with a warning that names the successor.
        api_key: by default ANTHROPIC_API_KEY. It is never written anywhere: cache, log or error.
        base_url: of another service with the Messages API; by default ANTHROPIC_BASE_URL or Anthropic's.
        max_usd: never spend more; priced from `prices.py` by the service's own counts, worst case first.
        attempts, patience: tries per question, and seconds of waiting for all of them.
        call_seconds: from the first byte of a request to the last of its answer.
        pause: waits the given seconds; tests pass one that does not.
        transport: of the HTTP client; tests pass one that fails.

    Attributes:
        usage: totals of its answers.
        spending: dollars spent, and their limit.

    Raises:
        LlmUnavailable: no key, or no anthropic package.

    `complete` raises LlmRejected at once for what no retry changes (400, 401, 402, 403, 404, 413, 422),
    LlmAway when no try was answered, LlmBudgetReached before a call that could exceed `max_usd`.
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
        policy = CallPolicy(attempts=attempts, patience=patience, call_seconds=call_seconds, pause=pause)
        self._client = MessagesClient(
            model, api_key=api_key, base_url=base_url, policy=policy, transport=transport
        )
        warn_of_end(model)
        self.model = model
        self.usage = Usage()
        self.spending = SpendingLimit(max_usd)
        self._places = PerLoop(lambda: asyncio.Semaphore(max_concurrency))
        self._instructions: defaultdict[int, _Instructions] = defaultdict(_Instructions)

    def __repr__(self) -> str:
        return f"AnthropicCompleter({self.model!r}, max_usd={self.spending.max_usd})"

    async def complete(self, request: Request) -> Reply:
        """One whole answer. See the class for what it raises."""
        async with self._places.get():
            try:
                return await self._client.call_with_retries(lambda: self._call(request))
            except TransientError as problem:
                raise self._client.unanswered(problem) from problem.__cause__

    async def close(self) -> None:
        """Closes the connections of this event loop."""
        await self._client.close()

    async def _call(self, request: Request) -> Reply:
        async def call() -> Reply:
            return reply_of(await self._client.create(params_of(request)), self.model)

        worst = worst_cost(request, self.model)
        await self.spending.hold(worst)
        instructions = self._instructions[hash(request.system)]
        could_read = instructions.answered > 0
        reply = await charge_call(
            call,
            worst=worst,
            cost_of=lambda reply: Cost(reply.usd),
            settle=lambda cost: self.spending.settle(worst, cost),
        )
        self.usage.add(reply.tokens, reply.usd)
        instructions.count(reply, could_read=could_read)
        if instructions.paid_in_full == _UNREAD and could_read and not instructions.was_read:
            warnings.warn(
                PromptNotCached(
                    f"{self.model} was sent the same instructions {instructions.answered} times and read "
                    "none of them from its cache. They may be shorter than the model's minimum, or "
                    f"{self._client.where} keeps no cache; the replies are the same, and cost more."
                ),
                stacklevel=2,
            )
        return reply


@dataclass
class _Instructions:
    """Cache use of one set of instructions: answers, those that paid for it again, whether one read it."""

    answered: int = 0
    paid_in_full: int = 0
    was_read: bool = False

    def count(self, reply: Reply, *, could_read: bool) -> None:
        self.answered += 1
        self.was_read |= reply.tokens.cache_read > 0
        self.paid_in_full += could_read


def warn_of_end(model: str) -> None:
    """Warns about a model whose service ends or has ended, at the line of the caller's caller."""
    end = deprecation(model)
    if end is not None:
        warnings.warn(DeprecatedModel(end), stacklevel=3)


def params_of(request: Request) -> dict[str, Any]:
    """The arguments of `messages.create` for a question, without the model."""
    output: dict[str, Any] = {"format": {"type": "json_schema", "schema": _sent_schema(request.schema)}}
    if request.effort is not None:
        output["effort"] = request.effort
    return {
        "max_tokens": request.max_tokens,
        "system": [{"type": "text", "text": request.system, "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": request.user}],
        "output_config": output,
    }


def worst_cost(request: Request, model: str) -> Cost:
    """The most that one answer can cost."""
    return Cost(price_of(model).at_most(request.size + SLACK, request.max_tokens))


def reply_of(message: Any, model: str, *, discount: float = 1.0) -> Reply:
    """A message of the SDK as a reply. The SDK does not check what the service sent; this does.

    Raises:
        TransientError: it is not a message.
    """
    if isinstance(message, str):
        raise foreign_answer("a page of text")
    try:
        # Thinking comes first and is no part of the answer.
        text = "".join(block.text for block in message.content if block.type == "text")
        tokens = Tokens.of(message.usage.model_dump(mode="json", warnings="none"))
        reason = str(message.stop_reason)
    except (AttributeError, TypeError, ValueError) as problem:
        why = f"the answer is malformed ({type(problem).__name__}: {problem})"
        raise TransientError(why, paid=True) from problem
    priced = price_of(model)
    return Reply(text, reason, tokens, priced.usd(tokens) * discount, estimated=priced.estimated)


@cache
def _sent_schema(schema: type[BaseModel]) -> dict[str, Any]:
    """The schema as the service accepts it: keywords that it lacks are moved into descriptions."""
    import anthropic

    return anthropic.transform_schema(schema)
