"""An answer assembled from the events of its stream.

The SDK can do this too, and raises where the input of a tool is not JSON, which loses what the answer cost.
Here such a call is part of the answer, with its problem, so that it can be answered and counted.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxterp.llm.faults import TransientError
from mlxterp.llm.prices import Tokens


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model calls; `problem` says why its input cannot be used."""

    id: str
    name: str
    input: Mapping[str, Any]
    problem: str | None = None


@dataclass
class Answer:
    """A streamed answer.

    Attributes:
        content: the blocks as they are sent back in the next request.
        calls: the tools that it calls, in order.
        tokens: those it used, by the service's own count.
    """

    content: list[dict[str, Any]] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    stop_reason: str | None = None
    tokens: Tokens = field(default_factory=Tokens)


async def accumulate_stream(events: AsyncIterable[Any]) -> Answer:
    """The whole answer.

    Raises:
        TransientError: the stream ended in the middle, or an event is not of the API's form.
    """
    answer, usage, ended = Answer(), dict[str, Any](), False
    pieces: dict[int, list[str]] = {}
    async for event in events:
        try:
            match event.type:
                case "message_start":
                    usage.update(_wire_form(event.message.usage))
                case "content_block_start":
                    answer.content.append(_wire_form(event.content_block))
                    pieces[event.index] = []
                case "content_block_delta":
                    _add(answer.content[event.index], _wire_form(event.delta), pieces[event.index])
                case "content_block_stop":
                    _close(answer, answer.content[event.index], "".join(pieces[event.index]))
                case "message_delta":
                    answer.stop_reason = event.delta.stop_reason
                    usage.update(_wire_form(event.usage))
                    answer.tokens = Tokens.of(usage)
                case "message_stop":
                    ended = True
        except (AttributeError, LookupError, TypeError, ValueError) as problem:
            raise _unreadable(f"an event of the stream is malformed: {problem!r}") from problem
    if not ended or answer.stop_reason is None:
        raise _unreadable("the stream ended before the answer did")
    return answer


def _unreadable(why: str) -> TransientError:
    return TransientError(f"the answer could not be read ({why})", paid=True)


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


def _wire_form(value: Any) -> dict[str, Any]:
    """One of the SDK's models as it is sent on the wire, without the fields that were not sent."""
    fields: dict[str, Any] = value.model_dump(mode="json", exclude_unset=True)
    return {name: each for name, each in fields.items() if each is not None}
