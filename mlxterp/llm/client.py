"""The client of the Messages API, for labels and for research, over the official SDK.

Contains: one deadline for all bytes of a call, streamed or whole, and retries of transient faults. See
`faults.py` for the meaning of faults, `spending_limit.py` for costs, `anthropic_completer.py` and
`batches.py` for labels, `mlxterp_agent` for tools and conversations.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from mlxterp.errors import LlmAway, LlmUnavailable
from mlxterp.llm.faults import TransientError, meaning
from mlxterp.llm.stream import Answer, accumulate_stream
from mlxterp.llm.sync import PerLoop

if TYPE_CHECKING:
    import anthropic
    import httpx2

KEY_ENV = "ANTHROPIC_API_KEY"
EXPERIMENT_ENV = "AUTOINTERP_OUTBOX"
"""Set in an experiment under supervision: `autointerpret.log.OUTBOX_ENV`, which is a layer above."""

CONNECT_SECONDS = 15.0
CALL_SECONDS = 300.0
"""Seconds for one whole answer. The SDK's own timeout is per read: a slow trickle never reaches it."""

ATTEMPTS = 6
PATIENCE = 300.0
"""Seconds of waiting for one question, all its retries together."""

LONGEST_WAIT = 45.0
"""The longest wait between two tries, in seconds, unless the service asks for more."""

SLACK = 2_000
"""Tokens that the service may add to a request: roles, text around tools and the schema."""

Pause = Callable[[float], Awaitable[None]]
T = TypeVar("T")

_random_wait = wait_random_exponential(multiplier=1, max=LONGEST_WAIT)


@dataclass(frozen=True, kw_only=True)
class CallPolicy:
    """How long a caller waits for an answer, and how often it tries.

    Attributes:
        attempts: calls for one question; None is no limit.
        patience: seconds of waiting for one question, all its retries together, where the caller has no
            deadline.
        call_seconds: for one call, from the first byte of its request to the last of its answer.
        read_seconds: without a byte, after which a call counts as lost.
        pause: waits the given seconds.
    """

    attempts: int | None = ATTEMPTS
    patience: float = PATIENCE
    call_seconds: float = CALL_SECONDS
    read_seconds: float = CALL_SECONDS
    pause: Pause = asyncio.sleep


class MessagesClient:
    """Calls one model of the service. The key appears in no message.

    Args:
        api_key: by default ANTHROPIC_API_KEY.
        base_url: of another service with the Messages API; by default ANTHROPIC_BASE_URL or Anthropic's.
        transport: of the HTTP client; tests pass one that fails.

    Raises:
        LlmUnavailable: no key, no anthropic package, or this is an experiment under supervision.

    It may be used from one event loop after another; `close` ends the connections of the running one.
    """

    def __init__(
        self,
        model: str,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        policy: CallPolicy,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        try:
            import anthropic  # noqa: F401
        except ImportError as problem:
            raise LlmUnavailable(
                f"{model} was asked for; the anthropic package is not installed. "
                "Install it with `pip install anthropic`, or label offline with llm=None."
            ) from problem
        if os.environ.get(EXPERIMENT_ENV):
            raise LlmUnavailable(
                f"{model} was asked for in an experiment under supervision, which has no network, no key and "
                "no share of the run's dollars. Label offline with llm=None, or outside the investigation."
            )
        key = api_key or os.environ.get(KEY_ENV, "")
        if not key:
            raise LlmUnavailable(
                f"{model} was asked for; there is no API key. Set {KEY_ENV}, pass api_key=, "
                "or label offline with llm=None."
            )
        self.model = model
        self.key = key
        self.policy = policy
        self.where = "the service" if base_url is None else base_url
        self._base_url = base_url
        self._transport = transport
        self._sdk = PerLoop(self._connect)

    def __repr__(self) -> str:
        return f"MessagesClient({self.model!r}, {self.where})"

    @property
    def sdk(self) -> anthropic.AsyncAnthropic:
        """The SDK's client for the running event loop, without its own retries."""
        return self._sdk.get()

    async def close(self) -> None:
        """Closes the connections of the running event loop."""
        sdk = self._sdk.pop()
        if sdk is not None:
            await sdk.close()

    async def stream(self, params: Mapping[str, Any]) -> Answer:
        """One call whose answer is streamed; `params` are those of `messages.create` without the model.

        Raises:
            TransientError, LlmRejected: see `faults.py`.
        """

        async def call() -> Answer:
            async with await self.sdk.messages.create(model=self.model, stream=True, **params) as events:
                kind = events.response.headers.get("content-type", "")
                if "event-stream" not in kind:
                    raise foreign_answer(kind or "empty")
                return await accumulate_stream(events)

        return await self.call_with_timeout(call())

    async def create(self, params: Mapping[str, Any]) -> Any:
        """One call whose answer arrives whole: the SDK's message.

        Raises:
            TransientError, LlmRejected: see `faults.py`.
        """
        return await self.call_with_timeout(self.sdk.messages.create(model=self.model, **params))

    async def call_with_timeout(self, call: Awaitable[T]) -> T:
        """The result of a call of the SDK, within `call_seconds`.

        Raises:
            TransientError, LlmRejected: see `faults.py`.
        """
        import anthropic
        import httpx2

        seconds = self.policy.call_seconds
        try:
            return await asyncio.wait_for(call, seconds)
        except asyncio.TimeoutError:
            slow = f"no answer in time (it took longer than {seconds:g} seconds)"
            raise TransientError(slow, paid=True) from None
        except (anthropic.APIError, httpx2.TransportError, TransientError, ValueError) as problem:
            what = meaning(problem, model=self.model, key=self.key)
            if what is problem:
                raise
            # A service may repeat the key in its message; then it is not shown, not even as the cause.
            raise what from (None if self.key in str(problem) else problem)

    async def call_with_retries(
        self,
        call: Callable[[], Awaitable[T]],
        *,
        seconds_left: Callable[[], float] | None = None,
        on_wait: Callable[[TransientError, float], None] | None = None,
    ) -> T:
        """The result of a call, repeated while it fails with a transient fault.

        The wait is as long as the service asks for, else random up to `LONGEST_WAIT`.

        Args:
            seconds_left: until the caller's deadline, which then limits the waits instead of `patience`: no
                wait that would pass it begins.
            on_wait: is called before each wait, with the fault and the seconds.

        Raises:
            TransientError: the last fault, when there is no try, patience or time left.
        """

        def wait(state: RetryCallState) -> float:
            asked = _fault(state).wait
            return _random_wait(state) if asked is None else asked

        def stop(state: RetryCallState) -> bool:
            attempts, seconds = self.policy.attempts, state.upcoming_sleep
            if attempts is not None and state.attempt_number >= attempts:
                return True
            if seconds_left is not None:
                return seconds > seconds_left()
            return state.idle_for + seconds > self.policy.patience

        def before_sleep(state: RetryCallState) -> None:
            if on_wait is not None:
                on_wait(_fault(state), state.upcoming_sleep)

        async def once() -> T:  # tenacity awaits a function only if it is declared so
            return await call()

        tries = AsyncRetrying(
            retry=retry_if_exception_type(TransientError),
            wait=wait,
            stop=stop,
            before_sleep=before_sleep,
            sleep=self.policy.pause,
            reraise=True,
        )
        try:
            return await tries(once)
        except TransientError as problem:
            problem.attempts = int(tries.statistics.get("attempt_number", 1))
            raise

    def unanswered(self, problem: TransientError) -> LlmAway:
        """The error for a question whose last try failed with `problem`."""
        return LlmAway(
            f"{self.model} was asked {problem.attempts} times and gave no answer: {problem}. "
            "Replies so far are in the cache, where there is one: run again later."
        )

    def _connect(self) -> anthropic.AsyncAnthropic:
        import anthropic
        import httpx2

        # Callers warn of it themselves, with the name of the successor.
        warnings.filterwarnings("ignore", message="The model .* is deprecated", category=DeprecationWarning)
        timeout = httpx2.Timeout(self.policy.read_seconds, connect=CONNECT_SECONDS)
        http = (
            anthropic.DefaultAsyncHttpxClient(timeout=timeout)
            if self._transport is None
            else anthropic.DefaultAsyncHttpxClient(timeout=timeout, transport=self._transport)
        )
        return anthropic.AsyncAnthropic(
            api_key=self.key, base_url=self._base_url, max_retries=0, timeout=timeout, http_client=http
        )


def _fault(state: RetryCallState) -> TransientError:
    assert state.outcome is not None
    problem = state.outcome.exception()
    assert isinstance(problem, TransientError)
    return problem


def foreign_answer(kind: str) -> TransientError:
    """The fault of an answer that is not from the API, such as a network's login page."""
    return TransientError(f"the answer is not from the service but {kind}", paid=False)
