"""What a fault of the Messages API means for the failed call: the one table for labels and for research.

    408, 409, 429, 5xx, a lost connection, no answer in time,
    an error inside a stream, a page or a stream that is not an answer TransientError: the call is repeated
    413, and 400 that says the prompt is too long                      RequestTooLong
    400, 401, 402, 403, 404, 422, every other status                   LlmRejected: repeating changes nothing

See `client.py` for when a call is repeated, `spending_limit.py` for its charge.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mlxterp.errors import LlmRejected
from mlxterp.llm.prices import deprecation

if TYPE_CHECKING:
    import anthropic


class TransientError(Exception):
    """A fault that a later try may not meet.

    Attributes:
        paid: whether the lost reply may have been paid for.
        wait: seconds that the service asks to wait; None if it does not say.
        attempts: calls that were made for this question.
    """

    def __init__(self, message: str, *, paid: bool, wait: float | None = None) -> None:
        super().__init__(message)
        self.paid = paid
        self.wait = wait
        self.attempts = 1


class RequestTooLong(LlmRejected):
    """The request is larger than the service or the model's context takes."""


_STREAMED = ("overloaded_error", "rate_limit_error", "api_error", "timeout_error")
"""Transient errors, as they arrive inside a stream that began with status 200."""

_REJECTED = {
    401: ("the API key was refused", "Check the API key (ANTHROPIC_API_KEY) and its permissions."),
    402: ("the account cannot pay", "Add credit to the account, or use another key."),
    403: ("the API key was refused", "Check the API key (ANTHROPIC_API_KEY) and its permissions."),
    404: ("the service does not know what was asked for", "Check the name of the model and the base URL."),
    413: ("the request is too large", "Give shorter or fewer texts."),
}
_OTHER = ("the service refused the request", "Repeating it changes nothing: change the request.")


def meaning(problem: Exception, *, model: str, key: str) -> TransientError | LlmRejected:
    """What a fault means. The message never holds the key, whatever the service repeats."""
    import anthropic
    import httpx2

    if isinstance(problem, TransientError):
        return problem
    if isinstance(problem, anthropic.APIStatusError):
        return _of_status(problem, model, key)
    text = _text(problem, key)
    if isinstance(problem, anthropic.APITimeoutError | httpx2.TimeoutException):
        never_sent = isinstance(problem.__cause__ or problem, httpx2.ConnectTimeout)
        return TransientError(f"no answer in time ({text})", paid=not never_sent)
    if isinstance(problem, anthropic.APIConnectionError | httpx2.TransportError):
        cause = problem.__cause__ or problem
        never_sent = isinstance(cause, httpx2.ConnectError)
        return TransientError(f"the connection was lost ({_text(cause, key)})", paid=not never_sent)
    return TransientError(f"the answer could not be read ({text})", paid=True)


def _of_status(problem: anthropic.APIStatusError, model: str, key: str) -> TransientError | LlmRejected:
    status, kind = problem.status_code, str(problem.type or "")
    said = _said(problem.body)
    text = without_key(said, key) if said else _text(problem, key)
    if status in (408, 409, 429) or status >= 500 or (status < 400 and kind in _STREAMED):
        # An error inside a stream may follow tokens that were paid for.
        says = f"the service says {status} {kind}".rstrip()
        return TransientError(says, paid=status < 400, wait=_retry_after(problem))
    says, advice = _REJECTED.get(status, _OTHER)
    if status == 404 and (end := deprecation(model)) is not None:
        advice = f"{end}."
    too_long = status == 413 or (status == 400 and "too long" in text.lower())
    rejected = RequestTooLong if too_long else LlmRejected
    return rejected(f"a call of {model} failed: {says} ({status}: {text}). {advice}", status=status)


def _retry_after(problem: anthropic.APIStatusError) -> float | None:
    """Seconds that the service asks to wait; None if it does not say."""
    try:
        seconds = float(problem.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def without_key(text: str, key: str) -> str:
    """A message of the service on one line of at most 200 characters, without the key."""
    return " ".join(text.split()).replace(key, "(key)")[:200]


def _text(problem: BaseException, key: str) -> str:
    return without_key(str(problem) or type(problem).__name__, key)


def _said(body: object) -> str:
    """What the service says in the body of an error; "" if the body is of another form."""
    error = body.get("error") if isinstance(body, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else ""
