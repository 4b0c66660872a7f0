"""Batches of requests: each is answered by the script when the batch comes, and given out when it has ended.

A batch ends after `batch_polls` looks at it. A step with a status is an errored result, one that drops an
expired one. Results are given out in another order than they were asked for, as the service may.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tests.messages_stub import wire
from tests.messages_stub.requests import Request

if TYPE_CHECKING:
    from tests.messages_stub.server import MessagesStub

_DAY = "2026-11-22T00:00:00Z"


def take(stub: MessagesStub, body: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A new batch, as the service describes it."""
    results = []
    for each in body["requests"]:
        request = Request("BATCH", path, {}, each["params"])
        number = stub.note(request)
        lane, at, step = stub.scenario.answer(request, number)
        result: dict[str, Any] = {"type": "expired"}
        if "status" in step:
            result = {"type": "errored", "error": wire.error(step)[2]}
        elif not step.get("drop"):
            result = {"type": "succeeded", "message": wire.message(step, request)}
        stub.answered(number, lane, at, result.get("message", {}).get("usage"))
        results.append({"custom_id": each["custom_id"], "result": result})
    batch = f"msgbatch_stub{len(stub.batches) + 1:04}"
    stub.batches[batch] = results
    stub.polls[batch] = 0
    return _described(stub, batch)


def poll(stub: MessagesStub, batch: str) -> dict[str, Any]:
    """The batch as it is now."""
    stub.polls[batch] += 1
    return _described(stub, batch)


def results(stub: MessagesStub, batch: str) -> bytes:
    """One line of JSON for each result."""
    return "".join(json.dumps(each) + "\n" for each in reversed(stub.batches[batch])).encode()


def _described(stub: MessagesStub, batch: str) -> dict[str, Any]:
    ended = stub.polls[batch] >= stub.batch_polls
    return {
        "id": batch,
        "type": "message_batch",
        "processing_status": "ended" if ended else "in_progress",
        "request_counts": {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
        "created_at": _DAY,
        "expires_at": _DAY,
        "results_url": f"{stub.url}/v1/messages/batches/{batch}/results" if ended else None,
    }
