"""What a fault of the service means for the call that met it.

    408, 409, 429, 5xx, a lost connection, no answer in time, a page that is no answer  TransientError
    400, 401, 402, 403, 404, 413, 422, every other status                      LlmRejected: for good, at once

Waiting and the money are `client.py`'s. The researcher's own table, which knows longer patience and other
advice, is `mlxterp_agent.researchers.anthropic_api.service_faults`.
"""

from __future__ import annotations

import asyncio
import math

import anthropic
import httpx2

from mlxterp.errors import LlmRejected
from mlxterp.llm.prices import deprecation


class TransientError(Exception):
    """A fault that passes. `paid`: the reply may have been paid for. `wait`: seconds the service asks for."""

    def __init__(self, words: str, *, paid: bool, wait: float | None = None) -> None:
        super().__init__(words)
        self.paid = paid
        self.wait = wait


def meaning(problem: Exception, *, model: str, key: str) -> TransientError | LlmRejected:
    """What a fault means. Its words never hold the key, whatever the service repeats."""
    words = _words(problem, key)
    if isinstance(problem, anthropic.APIStatusError):
        return _of_status(problem, words, model)
    if isinstance(
        problem, asyncio.TimeoutError | TimeoutError | anthropic.APITimeoutError | httpx2.TimeoutException
    ):
        never_left = isinstance(problem.__cause__ or problem, httpx2.ConnectTimeout)
        return TransientError(f"no answer in time ({words})", paid=not never_left)
    if isinstance(problem, anthropic.APIConnectionError | httpx2.TransportError):
        cause = problem.__cause__ or problem
        return TransientError(
            f"the connection was lost ({_words(cause, key)})",
            paid=not isinstance(cause, httpx2.ConnectError),
        )
    return TransientError(f"the answer could not be read ({words})", paid=True)


def _of_status(problem: anthropic.APIStatusError, words: str, model: str) -> TransientError | LlmRejected:
    status = problem.status_code
    if status in (408, 409, 429) or status >= 500:
        return TransientError(
            f"the service says {status} {problem.type or ''}".rstrip(), paid=False, wait=_retry_after(problem)
        )
    asked = f"a call of {model} was rejected: {status} {words}."
    match status:
        case 401 | 403:
            return LlmRejected(f"{asked} Check the API key (ANTHROPIC_API_KEY) and what it may use.")
        case 402:
            return LlmRejected(f"{asked} The account cannot pay.")
        case 404:
            old = deprecation(model)
            hint = "Check the name of the model and the base URL." if old is None else f"{old}."
            return LlmRejected(f"{asked} {hint}")
        case 413:
            return LlmRejected(f"{asked} The request is too large: give shorter or fewer texts.")
        case _:
            return LlmRejected(f"{asked} No repetition mends this.")


def _retry_after(problem: anthropic.APIStatusError) -> float | None:
    """Seconds that the service asks to wait; None if it does not say."""
    try:
        seconds = float(problem.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def shortened(words: str, key: str) -> str:
    """The service's or a fault's own words on one line, without the key."""
    return " ".join(words.split()).replace(key, "(key)")[:200]


def _words(problem: BaseException, key: str) -> str:
    return shortened(str(problem) or type(problem).__name__, key)
