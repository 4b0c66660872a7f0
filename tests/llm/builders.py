"""Questions, a completer against the stub, and their answers, for every test of `mlxterp.llm`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from mlxterp.errors import LlmError
from mlxterp.llm import AnthropicCompleter, Reply, Request, run
from tests.messages_stub import MessagesStub

MODEL = "claude-sonnet-5-5"
GOOD: dict[str, Any] = {"text": '{"name": "x", "count": 3}'}
READ = {"usage": {"cache_read_input_tokens": 50}}


class Answer(BaseModel):
    name: str
    count: int


def ask(user: str = "a b", **changes: Any) -> Request:
    return Request(**{"system": "Count.", "user": user, "schema": Answer, "max_tokens": 100, **changes})


class Pauses(list[float]):
    """Waits that are written down instead of waited."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def completer(stub: MessagesStub, **options: Any) -> AnthropicCompleter:
    given: dict[str, Any] = {"api_key": stub.key, "base_url": stub.url, "pause": Pauses(), **options}
    return AnthropicCompleter(given.pop("model", MODEL), **given)


def answers(claude: Any, requests: Sequence[Request]) -> list[Reply | LlmError]:
    """All asked at once; an error stands in the place of its reply."""

    async def job() -> list[Any]:
        try:
            return await asyncio.gather(*map(claude.complete, requests), return_exceptions=True)
        finally:
            await claude.close()

    found = run(job)
    for each in found:
        if not isinstance(each, Reply | LlmError):
            raise each
    return found


def answer(claude: Any, request: Request | None = None) -> Reply | LlmError:
    return answers(claude, [request or ask()])[0]


def always(step: dict[str, Any] = GOOD, **options: Any) -> MessagesStub:
    """A service that answers every request with this step."""
    return MessagesStub({"lanes": [{"then": step}]}, **options)
