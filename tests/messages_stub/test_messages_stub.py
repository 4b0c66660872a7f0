"""The stub says what its script says, to a real client of the Messages API."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx2
import pytest

from tests.messages_stub import MessagesStub
from tests.messages_stub.scenario import ScenarioError

TOOL: dict[str, Any] = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}


@contextmanager
def asking(script: Any, **options: Any) -> Iterator[tuple[MessagesStub, anthropic.Anthropic]]:
    with (
        MessagesStub(script, **options) as stub,
        anthropic.Anthropic(base_url=stub.url, api_key=stub.key, max_retries=0, timeout=5.0) as client,
    ):
        yield stub, client


def ask(client: anthropic.Anthropic, text: str = "hello", **options: Any) -> Any:
    """One streamed question."""
    said: Any = options.pop("messages", [{"role": "user", "content": text}])
    with client.messages.stream(model="claude-opus-5-5", max_tokens=50, messages=said, **options) as stream:
        return stream.get_final_message()


def test_text_tools_and_usage_come_through_the_stream_as_written():
    step = {"text": "looking", "tool": "look", "input": {"at": "ä" * 9000}, "usage": {"input_tokens": 7}}
    with asking([step]) as (stub, client):
        answer = ask(client, tools=[TOOL])

    assert [block.type for block in answer.content] == ["text", "tool_use"]
    assert answer.content[1].input == {"at": "ä" * 9000}
    assert (answer.stop_reason, answer.usage.input_tokens, answer.usage.output_tokens) == ("tool_use", 7, 20)
    assert stub.usage()["input_tokens"] == 7


def test_a_plain_request_gets_a_whole_message():
    with asking([{"text": "whole", "stop_reason": "max_tokens"}]) as (_, client):
        answer = client.messages.create(
            model="claude-opus-5-5", max_tokens=5, messages=[{"role": "user", "content": "x"}]
        )

    assert (answer.content[0].text, answer.stop_reason) == ("whole", "max_tokens")


def test_each_lane_has_its_own_cursor_and_then_repeats():
    script = {
        "lanes": [
            {"name": "side", "match": {"messages_have": "title"}, "then": {"text": "a title"}},
            {
                "name": "main",
                "turns": [{"text": "one", "times": 2}, {"text": "two"}],
                "then": {"text": "more"},
            },
        ]
    }
    with asking(script) as (stub, client):
        said = [ask(client, text).content[0].text for text in ["a", "title", "b", "c", "d", "title", "e"]]

    assert said == ["one", "a title", "one", "two", "more", "a title", "more"]
    assert [(r.lane, r.step) for r in stub.requests[:3]] == [("main", 0), ("side", 0), ("main", 1)]


@pytest.mark.parametrize(
    ("status", "error", "raised"),
    [
        (400, "invalid_request_error", anthropic.BadRequestError),
        (401, "authentication_error", anthropic.AuthenticationError),
        (404, "not_found_error", anthropic.NotFoundError),
        (429, "rate_limit_error", anthropic.RateLimitError),
        (500, "api_error", anthropic.InternalServerError),
        (529, "overloaded_error", anthropic.InternalServerError),
    ],
)
def test_an_error_step_raises_the_error_of_its_status(status, error, raised):
    step = {"status": status, "error": error, "retry_after": 17}
    with asking([step]) as (_, client), pytest.raises(raised) as caught:
        ask(client)

    assert caught.value.response.headers["retry-after"] == "17"
    assert caught.value.type == error


@pytest.mark.parametrize(
    ("step", "raised"),
    [
        ({"drop": True}, anthropic.APIConnectionError),
        ({"cut": True, "text": "half of it"}, httpx2.TransportError),
        ({"break": "overloaded_error", "text": "half of it"}, anthropic.APIStatusError),
        ({"garbage": True}, Exception),
        ({"tool": "look", "malformed": True}, ValueError),
        ({"hang": 30}, (anthropic.APITimeoutError, httpx2.TimeoutException)),
    ],
    ids=["drop", "cut", "break", "garbage", "malformed", "hang"],
)
def test_a_fault_reaches_the_client_and_the_next_request_is_answered(step, raised):
    with asking([step, {"text": "back"}]) as (_, client):
        with pytest.raises(raised):
            ask(client.with_options(timeout=0.3))

        assert ask(client).content[0].text == "back"


def test_a_slow_drip_keeps_the_client_waiting_for_longer_than_its_timeout():
    with asking([{"text": "slow", "drip": 0.02}]) as (_, client):
        began = time.monotonic()
        answer = ask(client.with_options(timeout=0.3))

    assert answer.content[0].text == "slow"
    assert time.monotonic() - began > 0.6


def test_what_a_step_expects_and_does_not_find_is_a_failure_with_both_sides():
    result = [{"type": "tool_result", "tool_use_id": "t", "content": "seen 3", "is_error": True}]
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {}}]},
        {"role": "user", "content": result},
    ]
    step = {
        "text": "Saw ${last_result} in ${cwd}",
        "expect": {"last_result_has": "seen 4", "last_is_error": True},
    }
    with asking([step], variables={"cwd": "/there"}) as (stub, client):
        answer = ask(client, messages=messages, tools=[TOOL])

    assert answer.content[0].text == "Saw seen 3 in /there"
    with pytest.raises(AssertionError, match=r"seen 4.*seen 3"):
        stub.check()


def test_a_request_that_the_script_does_not_know_is_refused_and_noted():
    with asking([]) as (stub, client), pytest.raises(anthropic.BadRequestError, match="no step left"):
        ask(client)

    assert stub.failures


def test_steps_that_nobody_asked_for_are_told():
    with asking([{"text": "a"}, {"text": "b"}]) as (stub, client):
        ask(client)

    stub.check()
    with pytest.raises(AssertionError, match="nobody asked"):
        stub.check(through=True)


def test_a_step_may_be_decided_in_python():
    steps = [
        {"text": "no", "when": lambda request: "magic" in request.messages},
        {"call": lambda request: {"text": f"{len(request.messages)} characters"}},
    ]
    with asking(steps) as (_, client):
        assert ask(client, "12345").content[0].text == "5 characters"


def test_a_system_message_in_the_middle_and_the_beta_query_are_served():
    body = {
        "model": "m",
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
    }
    with MessagesStub([{"text": "ok"}]) as stub:
        request = urllib.request.Request(
            f"{stub.url}/v1/messages?beta=true",
            json.dumps(body).encode(),
            {"x-api-key": "secret", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            said = json.load(answer)

    assert said["content"][0]["text"] == "ok"
    assert stub.requests[0].messages == "a\nb"
    assert stub.requests[0].headers["x-api-key"] == "(key)"


def test_probes_are_answered_at_once():
    with MessagesStub([]) as stub:
        with urllib.request.urlopen(urllib.request.Request(stub.url, method="HEAD"), timeout=5) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            urllib.request.urlopen(f"{stub.url}/api/hello", timeout=5)
        caught.value.close()

    assert stub.probes == ["HEAD ", "GET /api/hello"] or stub.probes == ["HEAD /", "GET /api/hello"]


def test_a_message_thread_and_a_wrong_key_are_refused():
    with asking([{"text": "ok"}], check_key=True) as (_, client):
        with pytest.raises(anthropic.BadRequestError, match="thread"):
            ask(client, extra_body={"thread": {"id": "t"}})
        with pytest.raises(anthropic.AuthenticationError):
            ask(client.with_options(api_key="another"))
        assert ask(client).content[0].text == "ok"


def test_every_request_can_be_saved_whole(tmp_path):
    with asking([{"text": "ok"}], save=tmp_path / "seen") as (_, client):
        ask(client, "keep this")

    saved = json.loads((tmp_path / "seen" / "0001.json").read_text())
    assert saved["body"]["messages"][0]["content"] == "keep this"
    assert "stub-0000" not in (tmp_path / "seen" / "0001.json").read_text()


def test_a_word_that_no_step_knows_is_an_error_of_the_script():
    with pytest.raises(ScenarioError, match="txet"):
        MessagesStub([{"txet": "typo"}])
