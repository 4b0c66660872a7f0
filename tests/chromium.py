"""A headless Chromium, driven over a pipe by its DevTools protocol: a page as a reader has it."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = PROGRAM is None and not os.environ.get("CI")
REASON = "no Chromium on PATH; install it to run this"

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--disable-extensions",
    "--hide-scrollbars", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip


class Tab:
    """One page, with all it asked for and all it told the console."""

    def __init__(self, send: Any, receive: Iterator[dict[str, Any]]) -> None:
        self._send, self._receive = send, receive
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Asks for something and waits for the answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        self._send(message if self._session is None else message | {"sessionId": self._session})
        for answer in self._receive:
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self.events.append(answer)
        raise AssertionError(f"Chromium ended while it was asked for {method}")

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def open(self, page: Path) -> None:
        """Loads a file and waits until it is drawn."""
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            event = next(self._receive)
            assert event.get("method") != "Page.javascriptDialogOpening", (
                "a script of the page opened a dialog"
            )
            self.events.append(event)

    def size(self, width: int, height: int) -> None:
        given = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **given)

    def media(self, medium: str = "", scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=medium, features=features)

    def eval(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; the page's policy does not bind the protocol."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def settled(self, expression: str, wanted: Any) -> Any:
        """The value of an expression once it is the one wanted: a key that was sent may still be on its way.

        After 30 s whatever it is.
        """
        return self.eval(
            f"new Promise((done) => {{ const end = performance.now() + 30000; const look = () => {{"
            f" const value = {expression};"
            f" if (value === {json.dumps(wanted)} || performance.now() > end) done(value);"
            f" else setTimeout(look, 20); }}; look(); }})"
        )

    def key(self, name: str, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, text=text if kind == "keyDown" else "")

    def type(self, text: str) -> None:
        for sign in text:
            self.key(sign, sign)

    def point_at(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def asked_for(self) -> list[str]:
        """Every address the page wanted, but for itself and what it holds."""
        asked = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [each["request"]["url"] for each in asked]
        return [url for url in urls if not url.startswith(("file:", "data:", "about:"))]

    def said(self) -> list[str]:
        """Every line on the console: errors, refusals of the security policy, what scripts print."""
        told = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(e["params"]) for e in self.events if e.get("method") in told]


@contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A browser with one tab; it is gone afterwards."""
    assert PROGRAM is not None, REASON
    to_browser, from_us = os.pipe()
    to_us, from_browser = os.pipe()
    # Chromium reads 3 and writes 4. Numbers far above, so that neither end is overwritten on the way there.
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (to_browser, from_browser)]
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    browser = os.posix_spawn(
        PROGRAM,
        [PROGRAM, *_FLAGS, f"--user-data-dir={profile}"],
        dict(os.environ),
        file_actions=[*null, (os.POSIX_SPAWN_DUP2, ends[0], 3), (os.POSIX_SPAWN_DUP2, ends[1], 4)],
        setpgroup=0,
    )
    for fd in (to_browser, from_browser, *ends):
        os.close(fd)

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(from_us, data) :]

    def receive() -> Iterator[dict[str, Any]]:
        left = b""
        while block := os.read(to_us, 1 << 20):
            *whole, left = (left + block).split(b"\0")
            yield from (json.loads(each) for each in whole)

    try:
        tab = Tab(send, receive())
        tab.attach()
        yield tab
    finally:
        os.close(from_us)
        os.killpg(browser, signal.SIGKILL)
        os.waitpid(browser, 0)
        os.close(to_us)
