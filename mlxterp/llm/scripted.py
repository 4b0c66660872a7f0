"""A completer without a model: says what it was told to say. For tests, examples and dry runs."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence

from mlxterp.errors import LlmError
from mlxterp.llm.completer import Reply, Request

Answer = str | Reply | Exception


class ScriptedCompleter:
    """Answers from a list, in order, or by a function of the request.

    A string is the text of a whole answer, an exception is raised. The function may be async: any model that
    can be called from Python, a local one for instance, becomes a completer this way.

    Attributes:
        requests: everything that was asked.

    Raises:
        LlmError: it is asked more often than the list is long.
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
