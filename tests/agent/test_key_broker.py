"""The broker on loopback: whom it answers, what it forwards, what it counts."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mlxterp_agent.key_broker import API_KEY, AT_ONCE, AUTH_TOKEN, Credentials, KeyBroker
from mlxterp_agent.researchers.claude_code import environment
from tests.messages_stub import MessagesStub

MODEL = "claude-opus-5-5"
ASKED = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def brokers() -> Iterator[list[KeyBroker]]:
    started: list[KeyBroker] = []
    yield started
    for broker in started:
        broker.close()


def broker_for(stub: MessagesStub, brokers: list[KeyBroker], name: str = API_KEY) -> KeyBroker:
    broker = KeyBroker(Credentials({name: stub.key}, stub.url))
    broker.start()
    brokers.append(broker)
    return broker


def ask(
    broker: KeyBroker,
    asked: dict[str, Any] = ASKED,
    *,
    token: str | None = None,
    method: str = "POST",
    path: str = "/v1/messages?beta=true",
    **headers: str,
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(broker.host, timeout=20)
    given = {"x-api-key": broker.token if token is None else token} | headers
    connection.request(method, path, json.dumps(asked), {"content-type": "application/json", **given})
    answer = connection.getresponse()
    try:
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_comes_through_and_is_counted_by_the_price_table(brokers, stream):
    with MessagesStub([{"text": "hello", "usage": {"input_tokens": 1000, "output_tokens": 100}}]) as stub:
        broker = broker_for(stub, brokers)

        status, said = ask(broker, {**ASKED, "stream": stream})

    assert status == 200
    assert "".join(re.findall(r'"text": ?"(\w*)"', said.decode())) == "hello"
    assert broker.used.tokens == 1100
    assert broker.used.usd == pytest.approx(1000 * 4e-6 + 100 * 20e-6)


def test_a_bearer_token_stands_in_for_a_bearer_token(brokers):
    with MessagesStub([{"text": "hello"}]) as stub:
        broker = broker_for(stub, brokers, AUTH_TOKEN)

        status, _ = ask(broker, token="", authorization=f"Bearer {broker.token}")

    assert status == 200


def test_without_the_token_of_this_run_nothing_is_forwarded(brokers):
    with MessagesStub([]) as stub:
        broker = broker_for(stub, brokers)

        refused = [
            ask(broker, token="")[0],
            ask(broker, token=broker.token[:-1])[0],
            ask(broker, token=stub.key)[0],
            ask(broker, token="", authorization=f"Basic {broker.token}")[0],
        ]

        assert refused == [401] * 4
        assert stub.requests == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/messages"),
        ("DELETE", "/v1/messages"),
        ("POST", "/v1/messages/batches"),
        ("POST", "/v1/files"),
        ("GET", "/v1/organizations/api_keys"),
        ("POST", "/v1/messages/../files"),
    ],
)
def test_other_paths_are_not_forwarded(brokers, method, path):
    with MessagesStub([]) as stub:
        status, _ = ask(broker_for(stub, brokers), method=method, path=path)

        assert status == 404
        assert stub.requests == []


def test_another_host_name_is_refused_so_that_no_page_in_a_browser_reaches_it(brokers):
    with MessagesStub([]) as stub:
        broker = broker_for(stub, brokers)

        assert ask(broker, host="evil.example")[0] == 403
        assert stub.requests == []


def test_a_request_that_names_another_address_is_not_forwarded(brokers):
    with MessagesStub([]) as stub:
        broker = broker_for(stub, brokers)

        status, _ = ask(broker, path="http://evil.example/v1/messages", host=broker.host)

        assert status == 404
        assert stub.requests == []


def test_the_dollars_of_the_run_end_what_is_forwarded(brokers):
    with MessagesStub([{"text": "a", "usage": {"input_tokens": 1_000_000}}, {"text": "b"}]) as stub:
        broker = broker_for(stub, brokers)
        broker.allow(1.0)

        first, (second, why) = ask(broker)[0], ask(broker)

        assert (first, second) == (200, 402)
        assert b"the dollars of this run are used up" in why
        broker.allow(1.0)
        assert ask(broker)[0] == 200


def test_a_key_that_the_service_repeats_in_an_error_is_taken_out(brokers):
    refused = {"status": 401, "error": "authentication_error", "message": "wrong: sk-wrong-4711"}
    with MessagesStub([refused]) as stub:
        wrong = KeyBroker(Credentials({API_KEY: "sk-wrong-4711"}, stub.url))
        wrong.start()
        brokers.append(wrong)

        status, said = ask(wrong)

    assert status == 401
    assert b"wrong: (key)" in said
    assert b"sk-wrong-4711" not in said


def test_a_redirect_of_the_service_is_not_passed_on(brokers):
    away = {"status": 302, "error": "x", "message": "y", "headers": {"location": "http://evil.example/"}}
    with MessagesStub([away]) as stub:
        status, said = ask(broker_for(stub, brokers))

    assert status == 502
    assert b"evil" not in said


def test_a_service_that_is_not_there_is_said_to_be_so(brokers):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    broker = KeyBroker(Credentials({API_KEY: "k"}, f"http://127.0.0.1:{port}"))
    broker.start()
    brokers.append(broker)

    status, said = ask(broker)

    assert status == 502
    assert b"could not be reached" in said


def test_a_stream_that_is_cut_arrives_cut_and_its_text_is_counted(brokers):
    step = {"text": "word " * 400, "cut": True, "usage": {"input_tokens": 10, "output_tokens": 500}}
    with MessagesStub([step]) as stub:
        broker = broker_for(stub, brokers)

        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            ask(broker, {**ASKED, "stream": True})

        until = time.monotonic() + 10
        while broker.used.tokens == 0 and time.monotonic() < until:
            time.sleep(0.01)
    assert broker.used.tokens > 10


def test_a_request_too_many_is_put_off(brokers):
    with MessagesStub([{"text": "late", "hang": 60}] * AT_ONCE) as stub:
        broker = broker_for(stub, brokers)
        threads = [threading.Thread(target=_ask_quietly, args=(broker,)) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 10
        while len(stub.requests) < AT_ONCE and time.monotonic() < until:
            time.sleep(0.01)

        status, _ = ask(broker)

        broker.close()
        for thread in threads:
            thread.join()
    assert status == 429


def _ask_quietly(broker: KeyBroker) -> None:
    try:
        ask(broker)
    except (OSError, http.client.HTTPException):
        return


def test_after_close_nobody_answers(brokers):
    with MessagesStub([]) as stub:
        broker = broker_for(stub, brokers)
        host = broker.host
        broker.close()

        with pytest.raises(OSError, match="refused"):
            http.client.HTTPConnection(host, timeout=5).request("POST", "/v1/messages")


def test_the_program_gets_the_token_and_no_secret(brokers):
    parent = {
        "PATH": "/bin",
        API_KEY: "canary-1",
        AUTH_TOKEN: "canary-2",
        "GITHUB_TOKEN": "canary-3",
        "AWS_SECRET_ACCESS_KEY": "canary-4",
        "HTTPS_PROXY": "http://me:canary-5@proxy",
        "ANTHROPIC_CUSTOM_HEADERS": "X-Gateway: canary-6",
    }
    with MessagesStub([]) as stub:
        broker = broker_for(stub, brokers)

        given = environment(parent, broker)

    assert given[API_KEY] == broker.token
    assert given["ANTHROPIC_BASE_URL"] == f"http://{broker.host}"
    assert "canary" not in str(given)
    assert stub.key not in str(given)


def test_a_login_of_a_cloud_is_passed_on_only_if_the_program_is_told_to_use_it():
    aws = {"AWS_SECRET_ACCESS_KEY": "x", "GITHUB_TOKEN": "y", "HTTPS_PROXY": "http://a:b@proxy"}

    assert "AWS_SECRET_ACCESS_KEY" not in environment(aws)
    told = environment({**aws, "CLAUDE_CODE_USE_BEDROCK": "1"})
    assert told["AWS_SECRET_ACCESS_KEY"] == "x"
    assert told["HTTPS_PROXY"] == "http://a:b@proxy"
    assert "GITHUB_TOKEN" not in told
