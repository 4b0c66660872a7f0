"""One question to a language model, asked a second time if the first answer cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from pydantic import BaseModel

from mlxterp.auto_interp.label import Usage
from mlxterp.llm import Completer, Reply, Request, Unusable, read

Schema = TypeVar("Schema", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What two attempts gave.

    Attributes:
        value: None if neither answer could be used; `reason` then says why the last one could not.
        refused: whether the model refused to answer.
    """

    value: T | None
    reason: str
    usage: Usage
    refused: bool = False


@dataclass(frozen=True)
class Invalid:
    """Why an answer of the right form is not accepted."""

    reason: str


async def ask(
    completer: Completer,
    request: Request,
    schema: type[Schema],
    accept: Callable[[Schema], T | Invalid],
    *,
    retry_refusal: bool = False,
    on_usage: Callable[[Usage], None] | None = None,
) -> Answer[T]:
    """The first of two answers that has the schema's form and that `accept` turns into a value.

    Args:
        on_usage: called with what each reply costs, also when the next attempt raises.

    Raises:
        LlmError: the service rejected the question, did not answer, or its budget is spent.
    """
    usage, reason, refused = Usage(), "", False
    for attempt in range(2):
        reply = await completer.complete(replace(request, attempt=attempt))
        usage += usage_of(reply)
        if on_usage is not None:
            on_usage(usage_of(reply))
        answer = read(reply, schema)
        value = Invalid(str(answer)) if isinstance(answer, Unusable) else accept(answer)
        if not isinstance(value, Invalid):
            return Answer(value, "", usage)
        reason = value.reason
        refused = isinstance(answer, Unusable) and answer.kind == "refused"
        if refused and not retry_refusal:
            break
    return Answer(None, reason, usage, refused)


def usage_of(reply: Reply) -> Usage:
    """What a reply costs now: nothing if it was cached."""
    if reply.cached:
        return Usage(usd=0.0)
    tokens = reply.tokens
    return Usage(
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        cache_read_tokens=tokens.cache_read,
        cache_write_tokens=tokens.cache_write + tokens.cache_write_1h,
        usd=None if reply.estimated else reply.usd,
        calls=1,
    )
