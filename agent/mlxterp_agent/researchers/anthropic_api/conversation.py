"""What the model has before it: a stable beginning, then question and answer, never more than a stated size.

When the next request would pass `CONTEXT_LIMIT`, the conversation is not summarised by the model: it is
thrown away, and a new one begins from the log (the text of STATE.md) and the last verdict. The same log gives
the same beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxterp_agent.researchers.anthropic_api.calls import Request
from mlxterp_agent.researchers.anthropic_api.stream import Answer, ToolCall
from mlxterp_agent.researchers.anthropic_api.tools import SCHEMAS, Done

CONTEXT_LIMIT = 120_000
"""Bytes of a request's JSON: about 35,000 tokens of English and Python, never more tokens than bytes."""


_CACHED = {"type": "ephemeral"}


class Conversation:
    """One conversation from its first words on."""

    def __init__(self, system: str, opening: str) -> None:
        self._system = [{"type": "text", "text": system, "cache_control": _CACHED}]
        self._messages: list[dict[str, Any]] = [{"role": "user", "content": [_said(opening)]}]

    def request(self) -> Request:
        """What would be sent now; marked so that the service caches the stable beginning, and all up to its
        end."""
        *before, last = self._messages
        *blocks, newest = last["content"]
        marked = {**last, "content": [*blocks, {**newest, "cache_control": _CACHED}]}
        return Request(self._system, SCHEMAS, [*before, marked if last["role"] == "user" else last])

    @property
    def too_long(self) -> bool:
        return self.request().size > CONTEXT_LIMIT

    def heard(self, answer: Answer) -> None:
        """Adds the model's answer."""
        # The service refuses to be sent the empty texts that it sends.
        said = [block for block in answer.content if block != {"type": "text", "text": ""}]
        self._messages.append({"role": "assistant", "content": said})

    def results(self, results: Sequence[tuple[ToolCall, Done]]) -> None:
        """Adds what its tools gave."""
        blocks = [
            {
                "type": "tool_result",
                "tool_use_id": call.id,
                "content": done.text,
                **({"is_error": True} if done.is_error else {}),
            }
            for call, done in results
        ]
        self._messages.append({"role": "user", "content": blocks})

    def say(self, text: str) -> None:
        """Adds words of ours to the end of what the model reads next."""
        if self._messages[-1]["role"] == "user":
            self._messages[-1]["content"].append(_said(text))
        else:
            self._messages.append({"role": "user", "content": [_said(text)]})


def _said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
