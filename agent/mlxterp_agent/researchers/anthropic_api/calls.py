"""One question to the service until there is an answer: reserved before it is asked, charged after, repeated
while the service is away.

What a fault means is decided in `service_faults.py`. A request that the service refused costs nothing. A
reply that was lost on its way may have been paid for: it is charged what was reserved for it.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import anthropic
import httpx2
from tenacity import RetryCallState, Retrying, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from mlxterp.llm.prices import OF, Priced, price_of
from mlxterp_agent.platform import Clock
from mlxterp_agent.researchers.anthropic_api import transport
from mlxterp_agent.researchers.anthropic_api.service_faults import Refused, TransientError, verdict_of
from mlxterp_agent.researchers.anthropic_api.stream import Answer, LostReply, accumulate_stream
from mlxterp_agent.researchers.anthropic_api.supervisor_queue import SupervisorQueue
from mlxterp_agent.researchers.base import BudgetState
from mlxterp_agent.text import duration, one_line

MAX_TOKENS = 16_000
"""Tokens of one answer, thinking included."""

LEAST_TOKENS = 1_000
"""An answer that may not be this long is not worth its question: the budget counts as used up."""

CALL_SECONDS = 900.0
"""For one question, from its first byte to the last of the answer."""

PATIENCE = 12 * 3600.0
"""How long a service may stay away when nothing else limits the time."""

LONGEST_WAIT = 45.0
"""Seconds between two tries if the service does not ask for more: so long after it is back, at most."""

_SLACK = 2_000
"""Tokens that the service may add to a request: the words around tools, the roles."""


class NoMoney(Exception):
    """The next call could cost more than is left."""


class NoTime(Exception):
    """The service is away for longer than there is time."""


@dataclass(frozen=True)
class Request:
    """What is sent, as lists of JSON objects: the stable part first, so that it is read from the cache."""

    system: Any
    tools: Any
    messages: Any

    @property
    def size(self) -> int:
        """Bytes of its JSON: never less than its tokens, as a token is at least a byte."""
        parts = (self.system, self.tools, self.messages)
        return sum(len(json.dumps(part, ensure_ascii=False).encode()) for part in parts)


class Reservation(NamedTuple):
    """The budget, as the supervisor keeps it. Called on its thread only."""

    left: Callable[[], BudgetState]
    hold: Callable[[str, float, int], None]
    charge: Callable[..., None]
    note: Callable[[str], None]


class _Held(NamedTuple):
    call: str
    usd: float
    tokens: int
    max_tokens: int


class Sums(NamedTuple):
    """What the calls of this driver came to."""

    calls: int = 0
    usd: float = 0.0
    prompt: int = 0
    cache_read: int = 0

    @property
    def cache_share(self) -> float:
        """The part of all input tokens that was read from the cache."""
        return self.cache_read / self.prompt if self.prompt else 0.0


class Calls:
    """Asks the service for a researcher of one model.

    Attributes:
        sums: what the calls came to so far.
    """

    def __init__(
        self,
        *,
        model: str,
        api_key: str,
        base_url: str | None,
        handover: SupervisorQueue,
        clock: Clock,
        nap: Callable[[float], object],
        doing: Callable[[str], None],
        call_seconds: float = CALL_SECONDS,
        read_timeout: float = transport.READ_TIMEOUT,
    ) -> None:
        self.sums = Sums()
        self._model = model
        self._priced: Priced = price_of(model)
        self._handover = handover
        self._clock = clock
        self._nap = nap
        self._doing = doing
        self._call_seconds = call_seconds
        self._must_end = math.inf
        self._client = transport.client(api_key, base_url, self._check, read_timeout=read_timeout)
        self._bound = (0, 0)

    def close(self) -> None:
        self._client.close()

    def ask(self, request: Request, purse: Reservation, *, until: float | None, same_talk: bool) -> Answer:
        """One whole answer.

        Args:
            until: on the clock's `elapsed`, when the investigation must end; None if nothing limits it.
            same_talk: the request begins as the one before it, so that what that one used is known to be
            used.

        Raises:
            Refused, TooLong: see `service_faults.py`. NoMoney, NoTime: not asked, or not any more.
        """
        if not same_talk:
            self._bound = (0, 0)
        began = self._clock.elapsed()
        end = began + PATIENCE if until is None else until
        waits = wait_random_exponential(multiplier=1, max=LONGEST_WAIT)

        def wait(state: RetryCallState) -> float:
            asked = _away(state).wait
            return waits(state) if asked is None else asked

        def before_sleep(state: RetryCallState) -> None:
            seconds = state.upcoming_sleep
            words = f"{_away(state)}; again in {duration(seconds)}"
            self._handover.ask(lambda: purse.note(words))
            self._doing(f"waiting: {words}")

        tries = Retrying(
            retry=retry_if_exception_type(TransientError),
            wait=wait,
            stop=lambda state: self._clock.elapsed() + state.upcoming_sleep > end,
            before_sleep=before_sleep,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            answer: Answer = tries(self._once, request, purse)
        except TransientError as problem:
            if until is not None:
                raise NoTime(f"{problem}, and the time ends before it is back") from problem
            raise Refused(f"{problem}; the service stayed away for {duration(PATIENCE)}") from problem
        self._bound = (request.size, answer.tokens.prompt)
        return answer

    def _once(self, request: Request, purse: Reservation) -> Answer:
        held = self._handover.ask(lambda: self._reserve(request, purse))
        if held is None:
            raise NoMoney("what is left of the budget does not pay for another question")
        self._doing("thinking")
        answer = Answer()
        self._must_end = self._clock.monotonic() + self._call_seconds
        try:
            with self._client.messages.create(
                model=self._model,
                max_tokens=held.max_tokens,
                system=request.system,
                tools=request.tools,
                messages=request.messages,
                stream=True,
            ) as stream:
                kind = stream.response.headers.get("content-type", "")
                if "event-stream" not in kind:
                    raise TransientError(
                        f"something else than the service answered, with {kind or 'nothing'}", paid=False
                    )
                accumulate_stream(stream, answer)
        except (anthropic.APIError, httpx2.TransportError, LostReply, ValueError, TransientError) as problem:
            meaning = verdict_of(problem)
            if isinstance(meaning, TransientError) and meaning.paid:
                lost = {"lost": one_line(str(meaning), 200), **self._details()}
                self._charge(purse, held.usd, held.tokens, held, lost)
            else:
                self._charge(purse, 0.0, 0, held, {})
            raise meaning from problem
        self._settle(answer, held, purse)
        return answer

    def _reserve(self, request: Request, purse: Reservation) -> _Held | None:
        """Puts aside what the call costs at worst; shortens the answer to what is left. None: it would be
        too short. On the supervisor's thread."""
        size, known = self._bound
        prompt = known + (request.size - size) + _SLACK
        left = purse.left()
        room = float(MAX_TOKENS)
        if left.usd_left is not None:
            for_output = left.usd_left - self._priced.at_most(prompt, 0)
            room = min(room, for_output / (self._priced.at_most(0, 1_000_000) / 1e6))
        if left.tokens_left is not None:
            room = min(room, left.tokens_left - prompt)
        if room < LEAST_TOKENS:
            return None
        most = int(room)
        held = _Held(uuid.uuid4().hex, self._priced.at_most(prompt, most), prompt + most, most)
        purse.hold(held.call, held.usd, held.tokens)
        return held

    def _settle(self, answer: Answer, held: _Held, purse: Reservation) -> None:
        tokens = answer.tokens
        usd = self._priced.usd(tokens)
        details = {"usage": tokens._asdict(), **self._details()}
        self._charge(purse, usd, tokens.total, held, details)
        self.sums = Sums(
            self.sums.calls + 1,
            self.sums.usd + usd,
            self.sums.prompt + tokens.prompt,
            self.sums.cache_read + tokens.cache_read,
        )

    def _charge(
        self, purse: Reservation, usd: float, tokens: int, held: _Held, details: dict[str, Any]
    ) -> None:
        self._handover.ask(
            lambda: purse.charge(usd, tokens, call=held.call, details=details), in_any_case=True
        )

    def _details(self) -> dict[str, Any]:
        return {"model": self._model, "prices": OF, "estimated": self._priced.estimated}

    def _check(self) -> None:
        """Looked at with every chunk of an answer."""
        self._handover.check()
        if self._clock.monotonic() > self._must_end:
            raise httpx2.ReadTimeout(f"the answer took longer than {duration(self._call_seconds)}")

    def _sleep(self, seconds: float) -> None:
        until = self._clock.elapsed() + seconds
        while (left := until - self._clock.elapsed()) > 0:
            self._handover.check()
            self._nap(min(left, 1.0))


def _away(state: RetryCallState) -> TransientError:
    assert state.outcome is not None
    problem = state.outcome.exception()
    assert isinstance(problem, TransientError)
    return problem
