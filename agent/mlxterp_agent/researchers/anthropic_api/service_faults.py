"""What a fault of the service means for the question that met it:

    401, 402, 403, 404, other 4xx      the researcher cannot go on: Refused
    400 that says the prompt is too long, 413      TooLong; the conversation is made anew, once
    408, 409, 429, 5xx, a lost connection, a lost or unreadable reply      waited out, then asked again

Waiting, asking again and the money are `calls.py`'s.
"""

from __future__ import annotations

import math

import anthropic
import httpx2

from mlxterp_agent.text import one_line


class Refused(Exception):
    """The service will not answer this researcher: the key, the bill, the name of the model, the request."""


class TooLong(Exception):
    """The request does not fit the model's context."""


class TransientError(Exception):
    """A fault that passes. `paid`: the reply may have been paid for. `wait`: what the service asked for."""

    def __init__(self, words: str, *, paid: bool, wait: float | None = None) -> None:
        super().__init__(words)
        self.paid = paid
        self.wait = wait


def verdict_of(problem: Exception) -> Exception:
    """What a fault means."""
    if isinstance(problem, anthropic.APIStatusError):
        return _of_status(problem)
    if isinstance(problem, anthropic.APITimeoutError | httpx2.TimeoutException):
        never_left = isinstance(problem.__cause__ or problem, httpx2.ConnectTimeout)
        return TransientError(f"no answer in time ({_words(problem)})", paid=not never_left)
    if isinstance(problem, anthropic.APIConnectionError | httpx2.TransportError):
        never_left = isinstance(problem.__cause__ or problem, httpx2.ConnectError)
        return TransientError(
            f"the connection was lost ({_words(problem.__cause__ or problem)})", paid=not never_left
        )
    if isinstance(problem, TransientError):
        return problem
    return TransientError(f"the answer could not be read ({_words(problem)})", paid=True)


def _of_status(problem: anthropic.APIStatusError) -> Exception:
    status, kind, words = problem.status_code, str(problem.type or ""), _words(problem)
    passing = ("overloaded_error", "rate_limit_error", "api_error", "timeout_error")
    if status in (408, 409, 429) or status >= 500 or (status < 400 and kind in passing):
        # An error inside a stream that had begun (status 200) may follow tokens that were paid for.
        name = kind or "error"
        return TransientError(
            f"the service says {status} {name}", paid=status < 400, wait=_retry_after(problem)
        )
    if status == 413 or (status == 400 and "too long" in words.lower()):
        return TooLong(words)
    if status in (401, 403):
        return Refused(f"the API key was refused ({status}: {words}). Check ANTHROPIC_API_KEY")
    if status == 402:
        return Refused(f"the account cannot pay ({words})")
    if status == 404:
        return Refused(
            f"the service does not know what was asked for ({words}). Check --agent-model and --base-url"
        )
    return Refused(f"the service refused the request ({status}: {words})")


def _retry_after(problem: anthropic.APIStatusError) -> float | None:
    """Seconds that the service asks to wait; None if it does not say."""
    try:
        seconds = float(problem.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _words(problem: BaseException) -> str:
    return one_line(str(problem) or type(problem).__name__, 200)
