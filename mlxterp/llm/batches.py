"""Claude's Message Batches as a `Completer`: half the price, answers within a day and mostly within the hour.

Covers: gathering questions that wait at the same time, sending them as one batch, polling, resuming a
batch that an earlier run sent. See `anthropic_completer.py` for one call at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from mlxterp.errors import LlmAway, LlmRejected
from mlxterp.llm.anthropic_completer import params_of, reply_of, warn_of_end, worst_cost
from mlxterp.llm.client import ATTEMPTS, CALL_SECONDS, PATIENCE, CallPolicy, MessagesClient, Pause
from mlxterp.llm.completer import Reply, Request
from mlxterp.llm.faults import TransientError, without_key
from mlxterp.llm.prices import DEFAULT_MODEL, Usage
from mlxterp.llm.reply_cache import ReplyCache
from mlxterp.llm.spending_limit import Cost, SpendingLimit
from mlxterp.llm.sync import PerLoop

if TYPE_CHECKING:
    import httpx2

DISCOUNT = 0.5
"""The price of a batched answer, as a share of the usual one (2026-11)."""

LARGEST = 10_000
"""Questions in one batch; the service takes more."""

POLL_SECONDS = 60.0
LONGEST = 26 * 3600.0
"""Seconds after which a batch is given up; the service ends each after 24 hours."""

T = TypeVar("T")

_TRIES = 3
_TURNS = 50
"""Turns of the event loop without a new question after which a batch is complete."""


class BatchCompleter:
    """Asks Claude in batches.

    Questions wait until no more arrive, then all are sent as one batch. So it pays where many are asked at
    once: `auto_label_features(..., llm=BatchCompleter(), max_concurrency=1000)` labels hundreds of
    features with about three batches, one after the other.

    The ids of batches are in the cache beside the replies: a run that is killed and started again fetches
    what it had sent, and sends nothing twice. (A kill between the service's acceptance of a batch and the
    writing of its id loses that batch.)

    Args:
        cache: of replies and ids; by default the library's own file.
        model, api_key, base_url, attempts, patience, call_seconds, pause, transport: as for
            `AnthropicCompleter`; attempts and patience are for each request about a batch.
        max_usd: never spend more; a batch holds only as many questions as their worst cost allows, the
            others wait for the next. What an earlier run has sent is not counted again.
        poll_seconds: between two polls of a batch.

    Attributes:
        usage: totals of its answers.
        spending: dollars spent, and their limit.

    Raises:
        LlmUnavailable: no key, or no anthropic package.
        ReplyCacheError: the file cannot be written.

    `complete` raises what `AnthropicCompleter.complete` does; LlmAway also for a question that failed or
    expired in three batches.
    """

    def __init__(
        self,
        cache: ReplyCache | None = None,
        model: str = DEFAULT_MODEL,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        max_usd: float | None = None,
        poll_seconds: float = POLL_SECONDS,
        attempts: int = ATTEMPTS,
        patience: float = PATIENCE,
        call_seconds: float = CALL_SECONDS,
        pause: Pause = asyncio.sleep,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        policy = CallPolicy(attempts=attempts, patience=patience, call_seconds=call_seconds, pause=pause)
        self._client = MessagesClient(
            model, api_key=api_key, base_url=base_url, policy=policy, transport=transport
        )
        warn_of_end(model)
        self.model = model
        self.cache = ReplyCache() if cache is None else cache
        self.usage = Usage()
        self.spending = SpendingLimit(max_usd)
        self._poll_seconds = poll_seconds
        self._questions = PerLoop(lambda: _Questions(self.cache.batches(model)))

    def __repr__(self) -> str:
        return f"BatchCompleter({self.model!r}, max_usd={self.spending.max_usd})"

    async def complete(self, request: Request) -> Reply:
        """One whole answer, when its batch has ended. See the class for what it raises."""
        key = request.digest(self.model)
        known = self.cache.get(key)
        if known is not None:
            return known
        here = self._questions.get()
        here.asked += 1
        if key not in here.waiting:
            here.waiting[key] = _Question(request, asyncio.get_running_loop().create_future())
        question = here.waiting[key]
        if here.work is None or here.work.done():
            here.work = asyncio.ensure_future(self._work(here))
        either: list[asyncio.Future[Any]] = [question.answer, here.work]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not question.answer.done():
            here.work.result()  # raises the error that ended it
        return question.answer.result()

    async def close(self) -> None:
        """Ends the polling and closes connections and file. An open batch continues at the service."""
        here = self._questions.pop()
        if here is not None and here.work is not None:
            here.work.cancel()
            await asyncio.gather(here.work, return_exceptions=True)
        await self._client.close()
        self.cache.close()

    async def _work(self, here: _Questions) -> None:
        """Sends and fetches until no question waits. Its errors are raised in every waiting task."""
        waited = 0.0
        try:
            while here.waiting:
                await _wait_for_last_question(here)
                await self._send(here)
                if await self._fetch(here):
                    waited = 0.0
                    continue
                if waited > LONGEST:
                    raise LlmAway(
                        f"batches {', '.join(here.batches)} of {self.model} have not ended for "
                        f"{LONGEST / 3600:.0f} hours. Their ids are in the cache: run again to fetch them."
                    )
                await self._client.policy.pause(self._poll_seconds)
                waited += self._poll_seconds
        finally:
            for question in here.waiting.values():
                self._settle(question, question.held)  # what was sent is paid for, at most so much
            here.waiting.clear()

    async def _send(self, here: _Questions) -> None:
        """Sends the waiting questions that are in no batch, as far as the budget allows."""
        under_way = {key for keys in here.batches.values() for key in keys}
        new: list[str] = []
        for key, question in list(here.waiting.items()):
            if key in under_way:
                continue
            worst = Cost(DISCOUNT * worst_cost(question.request, self.model).usd)
            if self.spending.try_hold(worst):
                question.held = worst
                new.append(key)
            elif not under_way and not new:
                here.waiting.pop(key).fail(self.spending.exceeded(worst))
        for start in range(0, len(new), LARGEST):
            await self._create(here, new[start : start + LARGEST])

    async def _create(self, here: _Questions, keys: Sequence[str]) -> None:
        requests: Any = [
            {"custom_id": key, "params": {"model": self.model, **params_of(here.waiting[key].request)}}
            for key in keys
        ]
        try:
            batch = await self._call(lambda: self._client.sdk.messages.batches.create(requests=requests))
        except BaseException:
            for key in keys:
                self._settle(here.waiting[key], Cost(0.0))
            raise
        self.cache.add_batch(batch.id, keys, model=self.model)
        here.batches[batch.id] = list(keys)

    async def _fetch(self, here: _Questions) -> bool:
        """Takes the answers of every batch that has ended; returns whether there was one."""
        ended = False
        for batch in list(here.batches):
            try:
                found = await self._results(batch)
            except LlmRejected as problem:
                if not _is_gone(problem):
                    raise
                found = {}  # the service has deleted its results, or it is another account's
            if found is None:
                continue
            ended = True
            for key in here.batches.pop(batch):
                self._take(here, key, found.get(key))
            self.cache.drop_batch(batch)
        return ended

    async def _results(self, batch: str) -> dict[str, Any] | None:
        """The result of each question of a batch by its key, or None while it is open."""
        batches = self._client.sdk.messages.batches

        async def lines() -> dict[str, Any]:
            results = await batches.results(batch)
            return {each.custom_id: each.result async for each in results}

        state = await self._call(lambda: batches.retrieve(batch))
        return await self._call(lines) if state.processing_status == "ended" else None

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._client.call_with_retries(lambda: self._client.call_with_timeout(call()))
        except TransientError as problem:
            raise self._client.unanswered(problem) from problem.__cause__

    def _take(self, here: _Questions, key: str, result: Any) -> None:
        """One result of a batch that has ended; None where the batch has none for this question."""
        question = here.waiting.get(key)
        kind = "lost" if result is None else result.type
        if kind == "succeeded":
            self._take_answer(here, key, result.message)
        elif question is not None:
            self._settle(question, Cost(0.0))
            if kind == "errored" and result.error.error.type == "invalid_request_error":
                why = without_key(str(result.error.error.message), self._client.key)
                here.waiting.pop(key).fail(LlmRejected(f"{self.model} rejected a question of a batch: {why}"))
                return
            question.tries += 1
            if question.tries == _TRIES:
                here.waiting.pop(key).fail(
                    LlmAway(f"{self.model} was asked in {_TRIES} batches; the last one {kind}.")
                )

    def _take_answer(self, here: _Questions, key: str, message: Any) -> None:
        question = here.waiting.get(key)  # None: an earlier run asked, and this one has not
        try:
            reply = reply_of(message, self.model, discount=DISCOUNT)
        except TransientError as problem:
            if question is not None:
                self._settle(question, question.held)
                here.waiting.pop(key).fail(LlmAway(f"{self.model} answered in a batch, and {problem}"))
            return
        version = "" if question is None else question.request.version
        self.cache.put(key, reply, model=self.model, version=version)
        self.usage.add(reply.tokens, reply.usd)
        if question is not None:
            self._settle(question, Cost(reply.usd))
            here.waiting.pop(key).answer.set_result(reply)

    def _settle(self, question: _Question, cost: Cost | None) -> None:
        if question.held is not None and cost is not None:  # one that is not held was sent by an earlier run
            self.spending.settle(question.held, cost)
            question.held = None


@dataclass
class _Question:
    """A question whose answer is awaited; `held` is the cost reserved for it while it is in a batch."""

    request: Request
    answer: asyncio.Future[Reply]
    held: Cost | None = None
    tries: int = 0

    def fail(self, problem: Exception) -> None:
        self.answer.set_exception(problem)
        self.answer.exception()  # the asking task may have been cancelled


@dataclass
class _Questions:
    """The state of one event loop. `batches`: ids of open batches, and the keys of their questions."""

    batches: dict[str, list[str]]
    waiting: dict[str, _Question] = field(default_factory=dict)
    work: asyncio.Future[None] | None = None
    asked: int = 0


async def _wait_for_last_question(here: _Questions) -> None:
    """Waits until no question has arrived for a while, so that every task that can ask has asked."""
    before = -1
    while before != here.asked:
        before = here.asked
        for _ in range(_TURNS):
            await asyncio.sleep(0)


def _is_gone(problem: LlmRejected) -> bool:
    import anthropic

    return isinstance(problem.__cause__, anthropic.NotFoundError)
