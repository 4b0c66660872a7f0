"""One request as the stub received it, and the questions a script asks about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SECRET_HEADERS = frozenset({"authorization", "x-api-key", "cookie"})


@dataclass(frozen=True)
class Request:
    """What a client asked.

    Attributes:
        path: with its query.
        headers: lower-case names; the key is replaced by "(key)".
        body: the JSON object that was sent, or {} for a request without one.
        lane, step: which line of the script answered; "" and -1 for what the script does not answer.
        usage: what the answer said it cost; {} if it said nothing.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    lane: str = ""
    step: int = -1
    usage: Mapping[str, Any] | None = None

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def tools(self) -> list[str]:
        """Names of the tools that were offered."""
        return [str(tool.get("name")) for tool in self.body.get("tools") or ()]

    @property
    def system(self) -> str:
        """All text of the system prompt."""
        return _text(self.body.get("system"))

    @property
    def messages(self) -> str:
        """All text of the messages, tool calls and tool results included. Any role is allowed."""
        return "\n".join(_text(message.get("content")) for message in self.body.get("messages") or ())

    @property
    def size(self) -> int:
        """Bytes of the JSON."""
        return len(json.dumps(self.body, ensure_ascii=False).encode())

    @property
    def results(self) -> list[tuple[str, bool]]:
        """Text and `is_error` of every tool result of the newest message that has some."""
        for message in reversed(self.body.get("messages") or ()):
            content = message.get("content")
            blocks = content if isinstance(content, list) else []
            found = [
                (_text(block.get("content")), bool(block.get("is_error")))
                for block in blocks
                if block.get("type") == "tool_result"
            ]
            if found:
                return found
        return []

    @property
    def last_result(self) -> str:
        """Text of the newest tool result; "" before the first."""
        return self.results[-1][0] if self.results else ""

    @property
    def last_user(self) -> str:
        """Text of the newest message from the user."""
        for message in reversed(self.body.get("messages") or ()):
            if message.get("role") == "user":
                return _text(message.get("content"))
        return ""


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_text(block) for block in content)
    if isinstance(content, dict):
        match content.get("type"):
            case "text":
                return str(content.get("text", ""))
            case "tool_use":
                return f"{content.get('name')} {json.dumps(content.get('input'), ensure_ascii=False)}"
            case "tool_result":
                return _text(content.get("content"))
            case _:
                return ""
    return str(content)
