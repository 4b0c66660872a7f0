"""Claude's Message Batches as a `Completer`: half the price, answers within a day and mostly within the hour.

Covers: gathering questions that wait at the same time, sending them as one batch, polling, going on with a
batch that an earlier run sent. Does not cover: the questions (`mlxterp.auto_interp`), one call at a time
(`client.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from mlxterp.errors import LlmAway, LlmRejected
from mlxterp.llm.client import ATTEMPTS, CALL_SECONDS, PATIENCE, Pause, Spent, service
from mlxterp.llm.completer import Reply, Request
from mlxterp.llm.prices import DEFAULT_MODEL
from mlxterp.llm.reply_cache import ReplyCache
from mlxterp.llm.spending_limit import SpendingLimit

if TYPE_CHECKING:
    import anthropic
    import httpx2

DISCOUNT = 0.5
"""What a batched answer costs, of the price of others (2026-11)."""

LARGEST = 10_000
"""Questions in one batch; the service takes more."""

POLL_SECONDS = 60.0
LONGEST = 26 * 3600.0
"""Seconds after which a batch is given up; the service ends each after 24 hours."""

T = TypeVar("T")

_TRIES = 3
_TURNS = 50
"""Turns of the event loop without a new question after which all that can ask have asked."""


class BatchCompleter:
    """Asks Claude in batches.

    Every question waits until no more come, then all are sent as one batch. So it pays where many are asked
    at once: `auto_label_features(..., llm=BatchCompleter(), max_concurrency=1000)` labels hundreds of
    features with about three batches, one after the other.

    The ids of batches are kept with the replies: a run that is killed and started again fetches what it had
    sent, and sends nothing twice. (A kill in the moment between the service's taking a batch and our noting
    its id loses that batch.)

    Args:
        cache: where replies and ids are kept; by default the library's own file.
        model, api_key, base_url, attempts, patience, call_seconds, pause, transport: as for
            `AnthropicCompleter`; attempts and patience are for each request about a batch.
        max_usd: never spend more; a batch holds only as many questions as fit at their worst, the others
            wait for the next. What an earlier run has sent is not counted again.
        poll_seconds: between two looks at a batch.

    Attributes:
        spent: what its answers came to; `purse.spent` in dollars.

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
        self.cache = ReplyCache() if cache is None else cache
        self.spent = Spent()
        self.purse = SpendingLimit(max_usd)
        self._poll_seconds = poll_seconds
        self._open: _Open | None = None

    def __repr__(self) -> str:
        return f"BatchCompleter({self.model!r}, max_usd={self.purse.max_usd})"

    async def complete(self, request: Request) -> Reply:
        """One whole answer, when its batch has ended. See the class for what it raises."""
        key = request.digest(self.model)
        kept = self.cache.get(key)
        if kept is not None:
            return kept
        here = self._here()
        here.asked += 1
        question = here.waiting.setdefault(key, _Question(request, here.loop.create_future()))
        if here.work is None or here.work.done():
            here.work = asyncio.ensure_future(self._work(here))
        either: list[asyncio.Future[Any]] = [question.answer, here.work]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not question.answer.done():
            here.work.result()  # raises what ended it
        return question.answer.result()

    async def close(self) -> None:
        """Ends the polling and closes connections and file. A batch under way goes on at the service."""
        opened, self._open = self._open, None
        if opened is not None:
            if opened.work is not None:
                opened.work.cancel()
                await asyncio.gather(opened.work, return_exceptions=True)
            await opened.client.close()
        self.cache.close()

    def _here(self) -> _Open:
        loop = asyncio.get_running_loop()
        if self._open is None or self._open.loop is not loop:
            self._open = _Open(loop, self._service.client(), self.cache.batches(self.model))
        return self._open

    async def _work(self, here: _Open) -> None:
        """Sends and fetches until nobody waits. What it raises is raised to all who wait."""
        waited = 0.0
        try:
            while here.waiting:
                await _quiet(here)
                await self._send(here)
                if await self._fetch(here):
                    waited = 0.0
                    continue
                if waited > LONGEST:
                    raise LlmAway(
                        f"batches {', '.join(here.batches)} of {self.model} have not ended for "
                        f"{LONGEST / 3600:.0f} hours. They are kept: run again to look at them again."
                    )
                await self._service.pause(self._poll_seconds)
                waited += self._poll_seconds
        finally:
            for question in here.waiting.values():
                self._settle(question, question.held)  # what was sent is paid for, at most so much
            here.waiting.clear()

    async def _send(self, here: _Open) -> None:
        """Sends what waits and is in no batch, as far as the money goes."""
        under_way = {key for keys in here.batches.values() for key in keys}
        new: list[str] = []
        for key, question in list(here.waiting.items()):
            if key in under_way:
                continue
            worst = DISCOUNT * self._service.worst(question.request)
            if self.purse.try_hold(worst):
                question.held = worst
                new.append(key)
            elif not under_way and not new:
                here.waiting.pop(key).fail(self.purse.empty(worst))
        for start in range(0, len(new), LARGEST):
            await self._create(here, new[start : start + LARGEST])

    async def _create(self, here: _Open, keys: Sequence[str]) -> None:
        requests: Any = [
            {"custom_id": key, "params": self._service.params(here.waiting[key].request)} for key in keys
        ]
        try:
            batch = await self._ask(lambda: here.client.messages.batches.create(requests=requests))
        except BaseException:
            for key in keys:
                self._settle(here.waiting[key], 0.0)
            raise
        self.cache.add_batch(batch.id, keys, model=self.model)
        here.batches[batch.id] = list(keys)

    async def _fetch(self, here: _Open) -> bool:
        """Takes the answers of every batch that has ended; whether there was one."""
        ended = False
        for batch in list(here.batches):
            try:
                found = await self._results(here.client, batch)
            except LlmRejected as problem:
                if not _is_gone(problem):
                    raise
                found = {}  # its results are no longer kept, or it is another account's
            if found is None:
                continue
            ended = True
            self._take(here, here.batches.pop(batch), found)
            self.cache.drop_batch(batch)
        return ended

    async def _results(self, client: anthropic.AsyncAnthropic, batch: str) -> dict[str, Any] | None:
        """The result of each question of a batch by its key, or None while it goes on."""

        async def lines() -> dict[str, Any]:
            results = await client.messages.batches.results(batch)
            return {each.custom_id: each.result async for each in results}

        state = await self._ask(lambda: client.messages.batches.retrieve(batch))
        return await self._ask(lines) if state.processing_status == "ended" else None

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        return await self._service.call_with_retries(lambda: self._service.call_with_timeout(call()))

    def _take(self, here: _Open, keys: Sequence[str], results: dict[str, Any]) -> None:
        from mlxterp.llm.faults import shortened

        for key in keys:
            result: Any = results.get(key)
            question = here.waiting.get(key)
            kind = "lost" if result is None else result.type
            if kind == "succeeded":
                self._keep(here, key, result.message, question)
            elif question is not None:
                self._settle(question, 0.0)
                if kind == "errored" and result.error.error.type == "invalid_request_error":
                    words = shortened(str(result.error.error.message), self._service.key)
                    question.fail(LlmRejected(f"{self.model} rejected a question of a batch: {words}"))
                    del here.waiting[key]
                    continue
                question.tries += 1
                if question.tries == _TRIES:
                    question.fail(
                        LlmAway(f"{self.model} was asked in {_TRIES} batches; the last one {kind}.")
                    )
                    del here.waiting[key]

    def _keep(self, here: _Open, key: str, message: Any, question: _Question | None) -> None:
        from mlxterp.llm.faults import TransientError

        try:
            reply = self._service.heard(message, discount=DISCOUNT)
        except TransientError as problem:
            if question is not None:
                self._settle(question, question.held)
                question.fail(LlmAway(f"{self.model} answered in a batch, and {problem}"))
                del here.waiting[key]
            return
        version = "" if question is None else question.request.version
        self.cache.put(key, reply, model=self.model, version=version)
        self.spent.add(reply.tokens)
        if question is None:
            return  # of an earlier run, and not asked for by this one
        self._settle(question, reply.usd)
        question.answer.set_result(reply)
        del here.waiting[key]

    def _settle(self, question: _Question, cost: float) -> None:
        if question.held:  # nothing, where an earlier run has sent it
            self.purse.settle(question.held, cost)
            question.held = 0.0


@dataclass
class _Question:
    """Somebody waits for this."""

    request: Request
    answer: asyncio.Future[Reply]
    held: float = 0.0
    tries: int = 0

    def fail(self, problem: Exception) -> None:
        self.answer.set_exception(problem)
        self.answer.exception()  # nobody may be waiting any more


@dataclass
class _Open:
    """What belongs to one event loop. `batches`: ids that have not ended, and the keys of their questions."""

    loop: asyncio.AbstractEventLoop
    client: anthropic.AsyncAnthropic
    batches: dict[str, list[str]]
    waiting: dict[str, _Question] = field(default_factory=dict)
    work: asyncio.Future[None] | None = None
    asked: int = 0


async def _quiet(here: _Open) -> None:
    """Returns when nobody has asked for a while, so that all who can ask have."""
    before = -1
    while before != here.asked:
        before = here.asked
        for _ in range(_TURNS):
            await asyncio.sleep(0)


def _is_gone(problem: LlmRejected) -> bool:
    import anthropic

    return isinstance(problem.__cause__, anthropic.NotFoundError)
