"""Serves a scenario over HTTP on 127.0.0.1, in threads of the test's own process.

Covers: POST /v1/messages (streamed or whole, with or without ?beta=true), /v1/messages/count_tokens and
/v1/messages/batches (`batches.py`). HEAD of anything is 200, every other path is 404 at once: clients probe,
and must not wait. A request of the message-threads beta is refused with 400, as by a gateway that does not
know it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.messages_stub import batches, wire
from tests.messages_stub.requests import SECRET_HEADERS, Request
from tests.messages_stub.scenario import Scenario, Step

_PAGE = b"<!doctype html><title>Log in to the network</title><p>Accept the terms to go on.</p>"
_DRIP = 16
_MEETING = 20.0


class MessagesStub:
    """A context manager; `url` is what a client takes as its base URL.

    Attributes:
        key: a key that opens nothing; 401 for any other if `check_key`.
        requests: every POST to the Messages API, in order, with lane, step and usage.
        probes: every other request, as "HEAD /".
        failures: expectations that did not hold.
        batches: results of each batch by its id, in order.
        at_once, most_at_once: requests that are being answered, now and at most.
    """

    key = "sk-ant-stub-0000000000"

    def __init__(
        self,
        script: Mapping[str, Any] | Sequence[Step] | str | Path,
        *,
        variables: Mapping[str, str] | None = None,
        check_key: bool = False,
        save: Path | None = None,
        batch_polls: int = 1,
    ) -> None:
        self.scenario = Scenario(script, variables=variables)
        self.requests: list[Request] = []
        self.probes: list[str] = []
        self.check_key = check_key
        self.stopping = threading.Event()
        self._save = save
        self._lock = threading.Lock()
        self.batches: dict[str, list[dict[str, Any]]] = {}
        self.batch_polls = batch_polls
        self.polls: dict[str, int] = {}
        self.at_once = 0
        self.most_at_once = 0
        self._meetings: dict[int, threading.Barrier] = {}
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        assert self._server is not None, "the stub serves only inside `with`"
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def failures(self) -> list[str]:
        return self.scenario.failures

    def check(self, *, through: bool = False) -> None:
        """Raises AssertionError with every expectation that did not hold; `through`: and steps left over."""
        wrong = list(self.failures)
        if through and self.scenario.left():
            wrong.append(f"steps that nobody asked for: {self.scenario.left()}")
        assert not wrong, "\n".join(wrong)

    def usage(self) -> dict[str, int]:
        """The sum of what the answers said they cost."""
        total: dict[str, int] = {}
        for request in self.requests:
            for name, value in (request.usage or {}).items():
                if isinstance(value, int):
                    total[name] = total.get(name, 0) + value
        return total

    def note(self, request: Request) -> int:
        """Keeps a request; gives its place among all."""
        with self._lock:
            self.requests.append(request)
            number = len(self.requests)
        if self._save is not None:
            self._save.mkdir(parents=True, exist_ok=True)
            text = json.dumps(
                {"path": request.path, "headers": dict(request.headers), "body": request.body}, indent=1
            )
            (self._save / f"{number:04}.json").write_text(text, encoding="utf-8")
        return number

    def came(self, change: int) -> None:
        """Counts a request that comes (1) or has its answer (-1)."""
        with self._lock:
            self.at_once += change
            self.most_at_once = max(self.most_at_once, self.at_once)

    def meet(self, number: int) -> None:
        """Waits for so many requests, this one included."""
        with self._lock:
            meeting = self._meetings.setdefault(number, threading.Barrier(number))
        try:
            meeting.wait(timeout=_MEETING)
        except threading.BrokenBarrierError:
            self.failures.append(f"{number} requests at once were waited for; {self.at_once} came")

    def answered(self, number: int, lane: str, step: int, usage: Mapping[str, Any] | None) -> None:
        with self._lock:
            self.requests[number - 1] = replace(self.requests[number - 1], lane=lane, step=step, usage=usage)

    def __enter__(self) -> MessagesStub:
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._thread is not None
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, stub: MessagesStub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.stub = stub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of many tests; a broken script is a failure of the test."""
        import sys

        problem = sys.exc_info()[1]
        if not isinstance(problem, OSError):
            self.stub.failures.append(f"the stub itself failed: {problem!r}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self.server.stub.probes.append(f"HEAD {self.path}")
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        batch = path.rpartition("/v1/messages/batches/")[2].removesuffix("/results")
        if batch in self.server.stub.batches and "/batches/" in path:
            if path.endswith("/results"):
                raw = batches.results(self.server.stub, batch)
                self._send(200, "application/x-jsonl", [raw], len(raw), {})
            else:
                self._json(200, batches.poll(self.server.stub, batch))
            return
        self.server.stub.probes.append(f"GET {self.path}")
        self._not_there()

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0].rstrip("/")
        if path.endswith("/v1/messages/count_tokens"):
            self._json(200, {"input_tokens": len(json.dumps(body)) // 4})
        elif path.endswith("/v1/messages/batches"):
            self._json(200, batches.take(self.server.stub, body, self.path))
        elif path.endswith("/v1/messages"):
            self.server.stub.came(1)
            try:
                self._messages(body)
            finally:
                self.server.stub.came(-1)
        else:
            self.server.stub.probes.append(f"POST {self.path}")
            self._not_there()

    do_PUT = do_PATCH = do_DELETE = do_POST

    def _messages(self, body: Mapping[str, Any]) -> None:
        stub = self.server.stub
        headers = {name.lower(): value for name, value in self.headers.items()}
        shown = {name: "(key)" if name in SECRET_HEADERS else value for name, value in headers.items()}
        request = Request(self.command, self.path, shown, body)
        number = stub.note(request)
        step: Step
        if stub.check_key and stub.key not in (
            headers.get("x-api-key"),
            headers.get("authorization", "")[7:],
        ):
            lane, at, step = (
                "",
                -1,
                {"status": 401, "error": "authentication_error", "message": "invalid x-api-key"},
            )
        elif "thread" in body:
            words = "thread: Extra inputs are not permitted"
            lane, at, step = "", -1, {"status": 400, "error": "invalid_request_error", "message": words}
        else:
            lane, at, step = stub.scenario.answer(request, number)
        answers = not ({"status", "drop", "garbage"} & step.keys())
        whole = wire.message(step, request) if answers else None
        stub.answered(
            number,
            lane,
            at,
            None if whole is None or step.get("cut") or step.get("break") else whole["usage"],
        )
        self._play(step, request, whole)

    def _play(self, step: Step, request: Request, whole: dict[str, Any] | None) -> None:
        if step.get("together"):
            self.server.stub.meet(int(step["together"]))
        if step.get("hang"):
            self._pause(float(step["hang"]))
        if step.get("drop"):
            self.close_connection = True
            self.connection.shutdown(2)
        elif "status" in step:
            status, headers, body = wire.error(step)
            self._json(status, body, headers)
        elif step.get("garbage"):
            self._send(200, "text/html", [_PAGE], len(_PAGE), step)
        elif request.stream:
            assert whole is not None
            parts = list(wire.events(whole, malformed=bool(step.get("malformed"))))
            if step.get("break"):
                parts = wire.broken(parts, str(step["break"]))
            self._send(
                200, "text/event-stream", parts[: len(parts) // 2] if step.get("cut") else parts, None, step
            )
        else:
            raw = json.dumps(whole).encode()
            self._send(
                200, "application/json", [raw[: len(raw) // 2] if step.get("cut") else raw], len(raw), step
            )

    def _send(self, status: int, kind: str, parts: Iterable[bytes], length: int | None, step: Step) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("request-id", "req_stub")
        if length is None:
            self.send_header("transfer-encoding", "chunked")
        else:
            self.send_header("content-length", str(length))
        self.end_headers()
        for part in parts:
            for piece in _dripped(part) if step.get("drip") else (part,):
                if step.get("drip") and self._pause(float(step["drip"])):
                    return
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if length is None else piece)
        if step.get("cut"):
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
        elif length is None:
            self.wfile.write(b"0\r\n\r\n")

    def _json(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def _not_there(self) -> None:
        self._json(
            404, {"type": "error", "error": {"type": "not_found_error", "message": "stub: no such path"}}
        )

    def _body(self) -> dict[str, Any]:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            value = json.loads(raw or b"{}")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def _pause(self, seconds: float) -> bool:
        """Waits; True if the stub is being closed meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.server.stub.stopping.wait(min(left, 0.1)):
                return True
        return False


def _dripped(part: bytes) -> list[bytes]:
    return [part[start : start + _DRIP] for start in range(0, len(part), _DRIP)]
