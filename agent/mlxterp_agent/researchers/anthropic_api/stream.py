"""An answer put together from the events of its stream.

The SDK can do this too, and raises where the input of a tool is not JSON, which loses what the answer cost.
Here such a call is kept with its problem, so that it can be answered, and counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxterp.llm.prices import Tokens


class LostReply(Exception):
    """The stream ended before the answer did."""


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model calls; `problem` says why its input cannot be used."""

    id: str
    name: str
    input: Mapping[str, Any]
    problem: str | None = None


@dataclass
class Answer:
    """What was heard so far; whole when `stop_reason` is there and the stream has ended.

    Attributes:
        content: the blocks as they are sent back in the next request.
        usage: the service's own words on what it used.
    """

    content: list[dict[str, Any]] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    stop_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    ended: bool = False

    @property
    def tokens(self) -> Tokens:
        return Tokens.of(self.usage)


def accumulate_stream(events: Iterable[Any], answer: Answer) -> None:
    """Adds every event to `answer`.

    Raises:
        LostReply: the stream ended in the middle. What was heard until then is in `answer`.
    """
    pieces: dict[int, list[str]] = {}
    for event in events:
        try:
            _take(event, answer, pieces)
        except (AttributeError, LookupError, TypeError) as problem:
            raise LostReply(f"an event of the stream makes no sense: {problem!r}") from problem
    if not answer.ended or answer.stop_reason is None:
        raise LostReply("the stream ended before the answer did")


def _take(event: Any, answer: Answer, pieces: dict[int, list[str]]) -> None:
    match event.type:
        case "message_start":
            answer.model = str(event.message.model)
            answer.usage.update(_plain(event.message.usage))
        case "content_block_start":
            answer.content.append(_plain(event.content_block))
            pieces[event.index] = []
        case "content_block_delta":
            _add(answer.content[event.index], _plain(event.delta), pieces[event.index])
        case "content_block_stop":
            _close(answer, answer.content[event.index], "".join(pieces[event.index]))
        case "message_delta":
            answer.stop_reason = event.delta.stop_reason
            answer.usage.update(_plain(event.usage))
        case "message_stop":
            answer.ended = True


def _add(block: dict[str, Any], delta: dict[str, Any], pieces: list[str]) -> None:
    match delta["type"]:
        case "text_delta":
            block["text"] = block.get("text", "") + delta["text"]
        case "input_json_delta":
            pieces.append(delta["partial_json"])
        case "thinking_delta":
            block["thinking"] = block.get("thinking", "") + delta["thinking"]
        case "signature_delta":
            block["signature"] = delta["signature"]


def _close(answer: Answer, block: dict[str, Any], text: str) -> None:
    if block["type"] != "tool_use":
        return
    problem = None
    given: Any = {}
    try:
        given = json.loads(text or "{}")
    except ValueError as error:
        problem = f"the input is not JSON ({error})"
    if problem is None and not isinstance(given, dict):
        problem, given = "the input is no JSON object", {}
    block["input"] = given
    answer.calls.append(ToolCall(block["id"], block["name"], given, problem))


def _plain(value: Any) -> dict[str, Any]:
    """One of the SDK's models as what is sent on the wire; fields that were not sent stay away."""
    fields: dict[str, Any] = value.model_dump(mode="json", exclude_unset=True)
    return {name: each for name, each in fields.items() if each is not None}
