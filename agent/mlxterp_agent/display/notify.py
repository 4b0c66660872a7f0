"""Tells a person who is elsewhere: a desktop notice, ntfy, or any webhook, for the few things worth a look.

Covers: a finding, a retraction, a violated contract, 80 % of a budget, and why a run stopped. Nothing else is
ever sent. Each target has a thread and a short queue of its own, so a slow or broken one costs the run
nothing: it is named once, and the run goes on. Does not cover: delivery. What a target did not take is not
kept, and nothing here is written down.
"""

from __future__ import annotations

import contextlib
import html
import http.client
import json
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple

from mlxterp_agent.events import (
    Decided,
    Emit,
    Event,
    Spending,
    Started,
    Stopped,
    Violated,
    Waiting,
)
from mlxterp_agent.exit_codes import UsageError
from mlxterp_agent.researchers.base import BudgetState
from mlxterp_agent.storage.record import tier_of, verdict_of
from mlxterp_agent.text import duration, one_line

FLUSH = 2.0
"""Seconds that the end of a run waits for notices, over all targets."""

SHARE = 0.8
"""Of a budget: when this much is used, it is told once."""

_TIMEOUT = 5.0
_QUEUE = 16
_NTFY = "https://ntfy.sh/"
_TOPIC = re.compile(r"[-_A-Za-z0-9]{1,64}")

Kind = Literal["finding", "retraction", "violation", "budget", "stopped"]


class Notice(NamedTuple):
    """What is sent: plain text, one line each."""

    title: str
    text: str
    project: str
    kind: Kind


class NotSent(Exception):
    """A target did not take a notice; the message says why, without the target's address."""


@dataclass(frozen=True)
class Target:
    """Where notices go.

    Attributes:
        name: how it is called on the screen. An address is often a secret, so only its host is in here.
        send: gives it one notice; raises what `_FAULTS` lists.
        missing: why it cannot work here, in words; or "".
    """

    name: str
    send: Callable[[Notice], None]
    missing: str = ""


_FAULTS = (NotSent, OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError)


def targets_of(asked: Iterable[str]) -> tuple[Target, ...]:
    """The targets that `--notify` names.

    Raises:
        UsageError: one that is neither `desktop`, nor `ntfy:…`, nor an http(s) address.
    """
    return tuple(_target(each.strip()) for each in asked)


class Notices:
    """An `Emit` that shows every event, and sends a notice for a few of them. It is a context manager: on its
    way out it waits for what is under way, at most `FLUSH` seconds.

    Args:
        show: where every event goes on to, and the complaints about targets.
        project: what the investigation is called in a notice.
    """

    def __init__(self, show: Emit, targets: Sequence[Target], *, project: str) -> None:
        self._show = show
        self._project = one_line(project, 60)
        self._troubles: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._missing = [target.missing for target in targets if target.missing]
        self._channels = [_Channel(each, self._troubles.put) for each in targets if not each.missing]
        self._began = self._ended = False
        self._used_before: frozenset[str] | None = None
        self._told_budget = threading.Lock()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Notices:
        return self

    def __call__(self, event: Event) -> None:
        match event:
            case Decided():
                self._decided(event)
            case Violated():
                self._send("violation", "the contract was violated", event.what)
            case Spending():
                self._spent(event.budget)
            case Stopped():
                self._ended = True
                self._send("stopped", "stopped", event.reason)
        self._show(event)
        if isinstance(event, Started):
            self._began = True
            for words in self._missing:
                self._show(Waiting(words))
        self._complain()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if problem is not None and self._began and not self._ended:
            self._send("stopped", "stopped by an error", str(problem) or type(problem).__name__)
        for channel in self._channels:
            channel.end()
        until = time.monotonic() + FLUSH
        for channel in self._channels:
            channel.wait(until - time.monotonic())
        self._complain()

    def _decided(self, event: Decided) -> None:
        entry, tier = event.entry, tier_of(event.entry)
        words = entry.conclusion or entry.hypothesis
        if tier in ("finding", "claim") and entry.informative:
            self._send("finding", f"{tier} {entry.experiment_id}", words)
        elif "retracted" in (tier, verdict_of(entry)):
            self._send("retraction", f"{entry.experiment_id} retracted", words)

    def _spent(self, budget: BudgetState) -> None:
        """Tells of the first budget that passes the mark while this run goes on."""
        used = _used(budget)
        if self._used_before is None:
            self._used_before = frozenset(name for name, part in used.items() if part.share >= SHARE)
        if self._timer is not None:
            self._timer.cancel()
        for name, part in used.items():
            if name in self._used_before:
                continue
            if SHARE <= part.share < 1:
                self._budget_is_short(part.words)
            elif name == "time" and part.share < SHARE:
                # Time passes without events, too.
                total = budget.seconds + (budget.seconds_left or 0.0)
                words = f"{duration(SHARE * total)} of {duration(total)}"
                seconds = min(SHARE * total - budget.seconds, threading.TIMEOUT_MAX)
                self._timer = threading.Timer(seconds, self._budget_is_short, args=(words,))
                self._timer.daemon = True
                self._timer.start()

    def _budget_is_short(self, words: str) -> None:
        """Once in a run: the lock is never released."""
        if self._told_budget.acquire(blocking=False):
            self._send("budget", f"{SHARE:.0%} of the budget is used", words)

    def _send(self, kind: Kind, what: str, text: str) -> None:
        title = f"autointerp: {one_line(what, 80)} ({self._project})"
        for channel in self._channels:
            channel.put(Notice(title, one_line(text, 300), self._project, kind))

    def _complain(self) -> None:
        """On the supervisor's own thread, as the screen expects."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._show(Waiting(self._troubles.get_nowait()))


class _Channel:
    """One target, its queue and its thread. What does not fit pushes out the oldest."""

    def __init__(self, target: Target, complain: Callable[[str], None]) -> None:
        self._target = target
        self._tell = complain
        self._told = False
        self._waiting: queue.Queue[Notice | None] = queue.Queue(_QUEUE)
        self._thread = threading.Thread(target=self._work, name=f"notices to {target.name}", daemon=True)
        self._thread.start()

    def put(self, notice: Notice | None) -> None:
        """Returns at once."""
        while True:
            try:
                self._waiting.put_nowait(notice)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._waiting.get_nowait()
                    self._complain("it is too slow")
            else:
                return

    def end(self) -> None:
        """Nothing more will be put."""
        self.put(None)

    def wait(self, seconds: float) -> None:
        """Until everything is sent, or the time is up."""
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._complain(f"it did not answer within {duration(FLUSH)}")

    def _work(self) -> None:
        while (notice := self._waiting.get()) is not None:
            try:
                self._target.send(notice)
            except _FAULTS as problem:
                self._complain(one_line(str(problem) or type(problem).__name__, 160))

    def _complain(self, why: str) -> None:
        if not self._told:
            self._told = True
            self._tell(
                f"a notice to {self._target.name} was not delivered ({why}); the run goes on, and further "
                "failures there are not told"
            )


class _Used(NamedTuple):
    share: float
    words: str


def _used(budget: BudgetState) -> dict[str, _Used]:
    """How much of each limited budget is used."""
    used: dict[str, _Used] = {}

    def look(name: str, spent: float, left: float | None, words: Callable[[float], str]) -> None:
        if left is not None and spent + left > 0:
            used[name] = _Used(spent / (spent + left), f"{words(spent)} of {words(spent + left)}")

    look("experiments", budget.experiments, budget.experiments_left, "{:.0f} experiments".format)
    look("time", budget.seconds, budget.seconds_left, duration)
    look("dollars", budget.usd or 0.0, budget.usd_left, "${:.2f}".format)
    look("tokens", budget.tokens or 0, budget.tokens_left, "{:,.0f} tokens".format)
    return used


def _target(asked: str) -> Target:
    if asked == "desktop":
        return _desktop()
    if asked.startswith("ntfy:"):
        return _ntfy(asked.removeprefix("ntfy:"), asked)
    parts = _address(asked, asked)
    return Target(f"the webhook at {parts.hostname}", lambda notice: _post(asked, notice._asdict()))


def _ntfy(named: str, asked: str) -> Target:
    """ntfy takes JSON at the root of a server, which is the only way to send a title that is not ASCII."""
    named = named if "/" in named else f"{_NTFY}{named}"
    parts = _address(named, asked)
    topic = parts.path.strip("/")
    if not _TOPIC.fullmatch(topic):
        raise UsageError(
            f"--notify {asked!r} names no topic of ntfy. A topic is 1 to 64 letters, digits, - and _: "
            "ntfy:my-topic-7f3a, or ntfy:https://ntfy.example.org/my-topic-7f3a."
        )
    root = urllib.parse.urlunsplit((parts.scheme, parts.netloc, "/", parts.query, ""))
    return Target(
        f"ntfy at {parts.hostname}",
        lambda notice: _post(root, {"topic": topic, "title": notice.title, "message": notice.text}),
    )


def _address(address: str, asked: str) -> urllib.parse.SplitResult:
    """An http(s) address that can be used as it is."""
    wrong = "is neither desktop, nor ntfy:TOPIC, nor an address that begins with http:// or https://"
    try:
        parts = urllib.parse.urlsplit(address)
        _ = parts.port
    except ValueError:
        raise UsageError(f"--notify {asked!r} {wrong}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[!-~]+", address):
        raise UsageError(f"--notify {asked!r} {wrong}.")
    if "@" in parts.netloc:
        raise UsageError(f"--notify: the address of {parts.hostname} holds a login, which is not supported.")
    return parts


def _post(address: str, body: dict[str, str]) -> None:
    """Sends JSON to exactly this address: a redirect is a failure, so that no answer can lead elsewhere."""
    headers = {"Content-Type": "application/json", "User-Agent": "autointerp"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
    try:
        with _opener().open(request, timeout=_TIMEOUT):
            pass
    except urllib.error.HTTPError as problem:
        problem.close()
        elsewhere = 300 <= problem.code < 400
        hint = "; redirects are not followed, so name the last address" if elsewhere else ""
        raise NotSent(f"it answered {problem.code}{hint}") from None


def _opener() -> urllib.request.OpenerDirector:
    """http and https only, through the machine's proxies; no redirects, files or ftp."""
    proxies = {
        scheme: proxy
        for scheme, proxy in urllib.request.getproxies().items()
        if scheme in ("http", "https") and proxy.startswith(("http://", "https://"))
    }
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _desktop() -> Target:
    program = "osascript" if sys.platform == "darwin" else "notify-send"
    found = shutil.which(program)
    hint = "" if sys.platform == "darwin" else " (Debian and Ubuntu: the package libnotify-bin)"
    missing = "" if found else f"no desktop notices: there is no {program} here{hint}; the run goes on"

    def send(notice: Notice) -> None:
        line = (_osascript if sys.platform == "darwin" else _notify_send)(str(found), notice)
        said = subprocess.run(
            line, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False
        )
        if said.returncode != 0:
            words = one_line(said.stderr.decode(errors="replace"), 100)
            raise NotSent(f"{program} ended with {said.returncode}{f': {words}' if words else ''}")

    return Target("the desktop", send, missing)


def _notify_send(program: str, notice: Notice) -> list[str]:
    # The body is markup, the title is not.
    return [program, "--app-name=autointerp", "--", notice.title, html.escape(notice.text, quote=False)]


def _osascript(program: str, notice: Notice) -> list[str]:
    # The words are arguments of a fixed script, never part of it. The title begins with a letter, so it ends
    # the options.
    show = "display notification (item 2 of argv) with title (item 1 of argv)"
    return [program, "-e", "on run argv", "-e", show, "-e", "end run", notice.title, notice.text]
