"""A step as bytes: a whole JSON message, or the events of a stream."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.messages_stub.requests import Request
from tests.messages_stub.scenario import Step

USAGE: dict[str, Any] = {
    "input_tokens": 100,
    "output_tokens": 20,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
}
MALFORMED = '{"path": "a", oops'

_numbers = itertools.count(1)


def message(step: Step, request: Request) -> dict[str, Any]:
    """The step as the API's message object."""
    content: list[dict[str, Any]] = []
    if step.get("thinking"):
        content.append({"type": "thinking", "thinking": step["thinking"], "signature": "c3R1Yg=="})
    if step.get("text"):
        content.append({"type": "text", "text": step["text"]})
    calls = list(step.get("tools") or ())
    if step.get("tool"):
        calls.insert(0, [step["tool"], step.get("input") or {}])
    for name, given in calls:
        content.append(
            {"type": "tool_use", "id": f"toolu_stub{next(_numbers):06}", "name": name, "input": given}
        )
    return {
        "id": f"msg_stub{next(_numbers):06}",
        "type": "message",
        "role": "assistant",
        "model": step.get("model") or request.body.get("model") or "stub",
        "content": content,
        "stop_reason": step.get("stop_reason") or ("tool_use" if calls else "end_turn"),
        "stop_sequence": None,
        "usage": {**USAGE, **(step.get("usage") or {})},
    }


def error(step: Step) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and body of an error step."""
    headers = {str(name): str(value) for name, value in (step.get("headers") or {}).items()}
    if step.get("retry_after") is not None:
        headers["retry-after"] = str(step["retry_after"])
    kind = str(step.get("error") or "api_error")
    body = {"type": "error", "error": {"type": kind, "message": str(step.get("message") or kind)}}
    return int(step["status"]), headers, {**body, "request_id": f"req_stub{next(_numbers):06}"}


def events(whole: Mapping[str, Any], *, malformed: bool = False) -> Iterator[bytes]:
    """The message as server-sent events, in the order and the pieces of the API."""
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 1}}
    yield _event("message_start", message=begun)
    yield _event("ping")
    last = len(whole["content"]) - 1
    for index, block in enumerate(whole["content"]):
        match block["type"]:
            case "text":
                yield _event("content_block_start", index=index, content_block={"type": "text", "text": ""})
                for piece in _pieces(block["text"]):
                    yield _delta(index, type="text_delta", text=piece)
            case "thinking":
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                yield _event("content_block_start", index=index, content_block=empty)
                yield _delta(index, type="thinking_delta", thinking=block["thinking"])
                yield _delta(index, type="signature_delta", signature=block["signature"])
            case _:
                yield _event("content_block_start", index=index, content_block={**block, "input": {}})
                text = MALFORMED if malformed and index == last else json.dumps(block["input"])
                for piece in _pieces(text):
                    yield _delta(index, type="input_json_delta", partial_json=piece)
        yield _event("content_block_stop", index=index)
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _event("message_delta", delta=ended, usage=whole["usage"])
    yield _event("message_stop")


def broken(parts: Sequence[bytes], kind: str) -> list[bytes]:
    """The first half of a stream, then an error event."""
    return [*parts[: len(parts) // 2], _event("error", error={"type": kind, "message": kind})]


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def _delta(index: int, **fields: Any) -> bytes:
    return _event("content_block_delta", index=index, delta=fields)


def _pieces(text: str, size: int = 4000) -> Iterator[str]:
    half = max(1, min(size, len(text) // 2))
    for start in range(0, len(text), half):
        yield text[start : start + half]
