"""The model's context: a stable beginning, then messages and answers, within a size limit.

When the next request would pass `CONTEXT_LIMIT`, the conversation is not summarised by the model: it is
discarded, and a new one begins from the log (the text of STATE.md) and the last verdict. The same log gives
the same beginning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mlxterp.llm.client import SLACK
from mlxterp.llm.prices import Tokens
from mlxterp.llm.stream import Answer, ToolCall
from mlxterp_agent.researchers.anthropic_api.tools import SCHEMAS, ToolResult

CONTEXT_LIMIT = 120_000
"""Bytes of a request's JSON: about 35,000 tokens of English and Python, never more tokens than bytes."""

_CACHED = {"type": "ephemeral"}


class Conversation:
    """One conversation from its first message on."""

    def __init__(self, system: str, opening: str) -> None:
        self._system = [{**_text(system), "cache_control": _CACHED}]
        self._messages: list[dict[str, Any]] = [{"role": "user", "content": [_text(opening)]}]
        self._counted = (0, 0)

    def request(self) -> dict[str, Any]:
        """The next request: the stable part first, so that the service reads it from its cache, with
        a mark for the cache at its end and at the end of everything."""
        *before, last = self._messages
        *blocks, newest = last["content"]
        marked = {**last, "content": [*blocks, {**newest, "cache_control": _CACHED}]}
        messages = [*before, marked if last["role"] == "user" else last]
        return {"system": self._system, "tools": SCHEMAS, "messages": messages}

    @property
    def size(self) -> int:
        """Bytes of the next request's JSON: never less than its tokens, as a token is at least a byte."""
        parts = self.request().values()
        return sum(len(json.dumps(part, ensure_ascii=False).encode()) for part in parts)

    @property
    def too_long(self) -> bool:
        return self.size > CONTEXT_LIMIT

    @property
    def most_tokens(self) -> int:
        """The most tokens that the next request can have: those that the service counted in the last one,
        and a token for each byte since."""
        size, tokens = self._counted
        return tokens + (self.size - size) + SLACK

    def count(self, tokens: Tokens) -> None:
        """Records the service's token count of the present request."""
        self._counted = (self.size, tokens.prompt)

    def add_answer(self, answer: Answer) -> None:
        """Adds the model's answer."""
        # The service sends empty texts, and refuses them in a request.
        content = [block for block in answer.content if block != {"type": "text", "text": ""}]
        self._messages.append({"role": "assistant", "content": content})

    def add_results(self, results: Sequence[tuple[ToolCall, ToolResult]]) -> None:
        """Adds the results of its tools."""
        blocks = [
            {
                "type": "tool_result",
                "tool_use_id": call.id,
                "content": result.text,
                **({"is_error": True} if result.is_error else {}),
            }
            for call, result in results
        ]
        self._messages.append({"role": "user", "content": blocks})

    def add_text(self, text: str) -> None:
        """Adds text of ours to the end of what the model reads next."""
        if self._messages[-1]["role"] == "user":
            self._messages[-1]["content"].append(_text(text))
        else:
            self._messages.append({"role": "user", "content": [_text(text)]})


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
