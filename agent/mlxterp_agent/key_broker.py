"""The API key stays with the supervisor: a server on loopback puts it into the requests of an agent's
program.

The program gets the address of this server and a token of this run instead of the key, so that neither its
environment nor a shell that it starts holds a key. Contains: which requests are forwarded, and the count of
what they cost. Does not contain: keeping the key out of the kernel's copy of the environment (`platform.py`).

Who has the token can ask the service for answers while the run lasts, up to its dollars, and nothing else.
"""

from __future__ import annotations

import contextlib
import hmac
import http.client
import json
import secrets
import ssl
import threading
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from mlxterp.llm.prices import Tokens, price_of
from mlxterp_agent.platform import KEYS

API_KEY, AUTH_TOKEN, OAUTH_TOKEN, CUSTOM_HEADERS = KEYS
BASE_URL_ENV = "ANTHROPIC_BASE_URL"
DEFAULT_BASE_URL = "https://api.anthropic.com"

PATHS = ("/v1/messages", "/v1/messages/count_tokens")
"""What is forwarded, by POST."""

LARGEST_REQUEST = 32_000_000
"""Bytes: the service takes no more."""

AT_ONCE = 8
"""Requests that may be under way: what is open when the dollars are used up is paid all the same."""

_JSON = [("content-type", "application/json")]
_CONNECT_SECONDS, _READ_SECONDS = 30.0, 900.0
_LARGEST_ERROR = 1_000_000
_CHARACTERS_PER_TOKEN = 3
_OF_ONE_CONNECTION = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
}
_NOT_FORWARDED = _OF_ONE_CONNECTION | {"host", "authorization", "x-api-key", "cookie", "accept-encoding"}
_NOT_RETURNED = _OF_ONE_CONNECTION | {"set-cookie", "location", "date", "server"}


@dataclass(frozen=True)
class Credentials:
    """What the service is asked with.

    Attributes:
        values: the variables of `platform.KEYS` that are set.
        base_url: of the service.
    """

    values: Mapping[str, str] = field(repr=False)
    base_url: str = DEFAULT_BASE_URL

    @property
    def are_there(self) -> bool:
        return any(self.values.get(name) for name in (API_KEY, AUTH_TOKEN, OAUTH_TOKEN))

    def stand_ins(self, token: str) -> dict[str, str]:
        """The variables with a token in place of each secret."""
        return {name: token for name in (API_KEY, AUTH_TOKEN, OAUTH_TOKEN) if self.values.get(name)}

    def headers(self, *, by_key: bool) -> dict[str, str]:
        """The headers that authorise a request.

        Args:
            by_key: the client authorised itself with an API key, not with a bearer token.
        """
        custom = (line.partition(":") for line in self.values.get(CUSTOM_HEADERS, "").splitlines())
        headers = {name.strip(): value.strip() for name, _, value in custom if name.strip()}
        key, bearer = self.values.get(API_KEY), self.values.get(AUTH_TOKEN) or self.values.get(OAUTH_TOKEN)
        if key and (by_key or not bearer):
            return {**headers, "x-api-key": key}
        return {**headers, "authorization": f"Bearer {bearer}"}


class Used(NamedTuple):
    """What went through, by our prices.

    Attributes:
        usd: of models that are not in the price table, at the highest known price.
    """

    usd: float = 0.0
    tokens: int = 0


class KeyBroker:
    """The server. It listens from `start` to `close`.

    Attributes:
        token: authorises requests to it.
        used: by all requests so far.
    """

    def __init__(self, credentials: Credentials) -> None:
        self.token = f"autointerp-{secrets.token_urlsafe(32)}"
        self.used = Used()
        self._credentials = credentials
        self._limit: float | None = None
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()
        self._server: _Server | None = None

    def start(self) -> None:
        """Listens on a free port of 127.0.0.1, if it does not yet."""
        if self._server is None:
            self._server = _Server(self)
            threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        """Ends the server and the requests that are under way."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                if connection.sock is not None:
                    connection.sock.shutdown(2)

    def environment(self) -> dict[str, str]:
        """The variables that lead a client here."""
        assert self._server is not None, "start() comes first"
        url = f"http://{self.host}"
        # The client must not ask a proxy for a loopback address.
        near = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
        return {**near, BASE_URL_ENV: url, **self._credentials.stand_ins(self.token)}

    @property
    def host(self) -> str:
        """Address and port, as requests must name them."""
        assert self._server is not None, "start() comes first"
        return f"127.0.0.1:{self._server.server_address[1]}"

    def allow(self, usd: float | None) -> None:
        """Refuses requests once this many more dollars have gone through; None is no limit."""
        with self._lock:
            self._limit = None if usd is None else self.used.usd + usd

    def refusal(self, request: BaseHTTPRequestHandler) -> tuple[int, str, str] | None:
        """Why a request is not forwarded: status, type of the error and a sentence."""
        given = request.headers.get("x-api-key") or _bearer(request.headers.get("authorization", ""))
        if request.headers.get("host") != self.host:
            return 403, "permission_error", f"this server is {self.host} and answers to no other name"
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return 401, "authentication_error", "this is not the token of this run"
        if request.command != "POST" or request.path.partition("?")[0] not in PATHS:
            return 404, "not_found_error", f"only POST of {' and '.join(PATHS)} is forwarded"
        with self._lock:
            if self._limit is not None and self.used.usd >= self._limit:
                return 402, "billing_error", "the dollars of this run are used up"
        return None

    @contextlib.contextmanager
    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> Iterator[Answer]:
        """The service's answer, whose cost is counted when the context ends.

        Raises:
            OSError, http.client.HTTPException: the service could not be reached.
        """
        connection, path = _connection(self._credentials.base_url, request.path)
        with self._lock:
            full = len(self._open) >= AT_ONCE
            if not full:
                self._open.add(connection)
        if full:
            why = f"{AT_ONCE} requests are under way already"
            yield Answer(429, _JSON, iter([_error("rate_limit_error", why)]))
            return
        count = _Count(body)
        try:
            sent = {
                name: value for name, value in request.headers.items() if name.lower() not in _NOT_FORWARDED
            }
            own = self._credentials.headers(by_key="x-api-key" in request.headers)
            connection.request("POST", path, body, {**sent, **own, "accept-encoding": "identity"})
            if connection.sock is not None:
                connection.sock.settimeout(_READ_SECONDS)
            yield self._received(connection.getresponse(), count)
        finally:
            connection.close()
            with self._lock:
                self._open.discard(connection)
                usd, tokens = count.total()
                self.used = Used(self.used.usd + usd, self.used.tokens + tokens)

    def _received(self, answer: http.client.HTTPResponse, count: _Count) -> Answer:
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _NOT_RETURNED]
        if 300 <= answer.status < 400:
            return Answer(502, _JSON, iter([_error("api_error", "the service answered with a redirect")]))
        if answer.status >= 400:
            said = answer.read(_LARGEST_ERROR)
            for value in self._credentials.values.values():
                said = said.replace(value.encode(), b"(key)")
            return Answer(answer.status, headers, iter([said]))
        count.streamed = "event-stream" in answer.getheader("content-type", "")
        return Answer(answer.status, headers, _counted(answer, count))


class Answer(NamedTuple):
    """What goes back to the client."""

    status: int
    headers: list[tuple[str, str]]
    parts: Iterator[bytes]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, broker: KeyBroker) -> None:
        self.broker = broker
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event, and standard error is the screen."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 120.0

    def do_POST(self) -> None:
        refusal = self.server.broker.refusal(self)
        if refusal is not None:
            self._refuse(*refusal)
            return
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > LARGEST_REQUEST:
            self._refuse(413, "request_too_large", f"a request has at most {LARGEST_REQUEST:,} bytes, stated")
            return
        body = self.rfile.read(int(length))
        begun = False
        try:
            with self.server.broker.answer(self, body) as answer:
                begun = True
                self._send(answer)
            # Only now: who has seen the end of an answer finds it counted.
            self.wfile.write(b"0\r\n\r\n")
        except (OSError, http.client.HTTPException) as problem:
            if begun:
                self.close_connection = (
                    True  # without the last chunk the client sees that something is missing
                )
            else:
                self._refuse(502, "api_error", f"the service could not be reached: {type(problem).__name__}")

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for data in answer.parts:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    do_GET = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST

    def do_HEAD(self) -> None:
        """Clients look in this way whether the address answers."""
        self.send_response(200 if self.headers.get("host") == self.server.broker.host else 403)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: standard error is the screen."""

    def _refuse(self, status: int, kind: str, why: str) -> None:
        body = _error(kind, why)
        self.close_connection = True  # the body of the request was not read
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)


class _Count:
    """What one answer cost, read from its bytes as they pass."""

    def __init__(self, request: bytes) -> None:
        try:
            model = json.loads(request).get("model")
        except (ValueError, AttributeError, RecursionError):
            model = None
        self._model = model if isinstance(model, str) else ""
        self.streamed = False
        self._usage: dict[str, Any] = {}
        self._ended = False
        self._text = 0
        self._rest = b""

    def take(self, data: bytes) -> None:
        self._rest += data
        if self.streamed:
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                self._line(line)

    def total(self) -> Used:
        """Of a stream that stopped before its end, the text that arrived is counted by its length."""
        self._line(self._rest)
        self._rest = b""
        if self._usage and not self._ended:
            said = int(self._usage.get("output_tokens") or 0)
            self._usage["output_tokens"] = max(said, self._text // _CHARACTERS_PER_TOKEN)
        try:
            tokens = Tokens.of(self._usage)
        except (TypeError, ValueError, AttributeError):
            return Used()
        return Used(price_of(self._model).usd(tokens), tokens.total)

    def _line(self, line: bytes) -> None:
        if b'"content_block_delta"' in line:
            self._text += len(line)
            return
        if b'"usage"' not in line:
            return
        try:
            event = json.loads(line.removeprefix(b"data:"))
            kind = event.get("type")
            usage = event["message"]["usage"] if kind == "message_start" else event.get("usage")
            if isinstance(usage, dict):
                self._usage.update({name: value for name, value in usage.items() if value is not None})
                self._ended = kind != "message_start"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return


def _bearer(header: str) -> str:
    kind, _, value = header.partition(" ")
    return value.strip() if kind.lower() == "bearer" else ""


def _connection(base_url: str, path: str) -> tuple[http.client.HTTPConnection, str]:
    """A connection to the service, through the proxy that the environment names, and the path to ask for."""
    base = urlsplit(base_url)
    host, path = base.hostname or "", base.path.rstrip("/") + path
    if base.scheme == "http":
        return http.client.HTTPConnection(host, base.port, timeout=_CONNECT_SECONDS), path
    context = ssl.create_default_context()
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get("https")
    if proxy is None:
        return http.client.HTTPSConnection(host, base.port, timeout=_CONNECT_SECONDS, context=context), path
    via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connection = http.client.HTTPSConnection(
        via.hostname or "", via.port, timeout=_CONNECT_SECONDS, context=context
    )
    login = f"{unquote(via.username or '')}:{unquote(via.password or '')}"
    known = {"Proxy-Authorization": f"Basic {b64encode(login.encode()).decode()}"} if via.username else {}
    connection.set_tunnel(host, base.port or 443, headers=known)
    return connection, path


def _counted(answer: http.client.HTTPResponse, count: _Count) -> Iterator[bytes]:
    while data := answer.read1(65536):
        count.take(data)
        yield data


def _error(kind: str, why: str) -> bytes:
    """An error in the form of the service."""
    return json.dumps({"type": "error", "error": {"type": kind, "message": f"autointerp: {why}"}}).encode()
