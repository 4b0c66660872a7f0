"""Requests, replies, the protocol of a language model, and a scripted one for tests.

A reply is text. `read` parses it into the requested value or into `Unusable`, which gives the reason: a
refusal, an answer that was cut off, text of another form. Faults of a service are errors (`faults.py`).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from mlxterp.errors import LlmError
from mlxterp.llm.prices import Tokens

Effort = Literal["low", "medium", "high"]
Value = TypeVar("Value", bound=BaseModel)


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        system: the instructions, the same for many questions, so that the service reads them from its cache.
        user: the data of this question, never instructions.
        schema: the form of the answer, a pydantic model.
        max_tokens: of the answer, thinking included.
        effort: how hard the model should think; None leaves it to the service.
        version: a name of the prompt's wording, changed with it and stored with the results.
        attempt: counts repeats of the same question, so that a repeat is not answered from the cache.
    """

    system: str
    user: str
    schema: type[BaseModel]
    max_tokens: int = 2_000
    effort: Effort | None = None
    version: str = ""
    attempt: int = 0

    @property
    def json_schema(self) -> dict[str, Any]:
        """The schema as JSON; not to be changed."""
        return _json_schema(self.schema)

    @property
    def size(self) -> int:
        """Bytes of all that is sent: never less than its tokens, as a token is at least a byte."""
        return len(json.dumps([self.system, self.user, self.json_schema], ensure_ascii=False).encode())

    def digest(self, model: str) -> str:
        """A sha256 of everything that the answer may depend on."""
        parts = {
            "model": model,
            "version": self.version,
            "system": self.system,
            "user": self.user,
            "schema": self.json_schema,
            "max_tokens": self.max_tokens,
            "effort": self.effort,
            "attempt": self.attempt,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Reply:
    """A reply.

    Attributes:
        text: all text of the answer, without the thinking.
        stop_reason: why the answer ends, as the service names it.
        tokens: those used; usd: their cost, a guess if `estimated`.
        cached: it was answered from the cache, so tokens and usd are those of the first call and
            nothing was paid now.
    """

    text: str
    stop_reason: str = "end_turn"
    tokens: Tokens = field(default_factory=Tokens)
    usd: float = 0.0
    estimated: bool = False
    cached: bool = False

    @property
    def paid(self) -> float:
        """Dollars that this reply cost now."""
        return 0.0 if self.cached else self.usd


@dataclass(frozen=True)
class Unusable:
    """Why a reply gives no value: the model refused, the answer was cut off, or it is not what was asked."""

    kind: Literal["refused", "cut_off", "unreadable"]
    words: str

    def __str__(self) -> str:
        return self.words


@cache
def _json_schema(schema: type[BaseModel]) -> dict[str, Any]:
    return schema.model_json_schema()  # 2 ms, and asked for three times a call


class Completer(Protocol):
    """A language model that answers a `Request`.

    `complete` raises `LlmError` for what the model will not or cannot do now; everything else is a `Reply`.
    It may be called many times at once. `close` ends what belongs to the running event loop (connections);
    the completer may be used again afterwards, in another loop.
    """

    @property
    def model(self) -> str:
        """The name of the model, part of the key of a cached reply."""
        ...

    async def complete(self, request: Request) -> Reply: ...

    async def close(self) -> None: ...


def read(reply: Reply, schema: type[Value]) -> Value | Unusable:
    """The value in a reply, or why there is none. Types are strict: "3" is not a number here."""
    if reply.stop_reason == "refusal":
        return Unusable("refused", "the model refused to answer")
    if reply.stop_reason in ("max_tokens", "model_context_window_exceeded"):
        return Unusable("cut_off", f"the answer was cut off ({reply.stop_reason})")
    try:
        return schema.model_validate_json(reply.text, strict=True)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(each) for each in first["loc"])
        what = f"{where}: {first['msg']}" if where else first["msg"]
        return Unusable("unreadable", f"the answer is not of the form that was asked for ({what})")


Answer = str | Reply | Exception


class ScriptedCompleter:
    """Answers from a list, in order, or by a function of the request.

    A string is the text of a whole answer, an exception is raised. The function may be async: any model that
    can be called from Python, a local one for instance, becomes a completer this way.

    Attributes:
        requests: all that were made.

    Raises:
        LlmError: there are more requests than answers in the list.
    """

    def __init__(
        self,
        answers: Sequence[Answer] | Callable[[Request], Answer | Awaitable[Answer]],
        *,
        model: str = "scripted",
    ) -> None:
        self.model = model
        self.requests: list[Request] = []
        self._answers = answers

    async def complete(self, request: Request) -> Reply:
        self.requests.append(request)
        if callable(self._answers):
            said = self._answers(request)
            answer = await said if inspect.isawaitable(said) else said
        elif len(self.requests) <= len(self._answers):
            answer = self._answers[len(self.requests) - 1]
        else:
            raise LlmError(
                f"ScriptedCompleter was asked {len(self.requests)} times; it has {len(self._answers)} "
                "answers. Give it more, or a function of the request."
            )
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Reply) else Reply(answer)

    async def close(self) -> None:
        """Nothing is open."""
