"""Notifications for a person who is not at the screen: on the desktop, over ntfy, or to any webhook.

Covers: a finding, a retraction, a violated contract, 80 % of a budget, and why a run stopped. Nothing else is
ever sent. Each target has a thread and a short queue of its own, so a slow or broken one costs the run
nothing: its failure is shown once, and the run continues. Does not cover: delivery. A notice that a target
did not accept is dropped, and nothing here is stored.
"""

from __future__ import annotations

import contextlib
import html
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple

from mlxterp.text import percent
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

if TYPE_CHECKING:
    import httpx2

FLUSH = 2.0
"""Seconds that the end of a run waits for notices, over all targets."""

SHARE = 0.8
"""The share of a budget at which one notice is sent."""

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
    """A target did not accept a notice; the message says why, without the target's address."""


@dataclass(frozen=True)
class Target:
    """Where notices go.

    Attributes:
        name: what the screen calls it. An address is often a secret, so only its host is in here.
        send: sends one notice; raises what `_FAULTS` lists.
        missing: why it cannot work on this machine; or "".
    """

    name: str
    send: Callable[[Notice], None]
    missing: str = ""


_FAULTS = (NotSent, OSError, ValueError, subprocess.SubprocessError)


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
        show: gets every event, and a `Waiting` for each target that fails.
        project: what the investigation is called in a notice.
    """

    def __init__(self, show: Emit, targets: Sequence[Target], *, project: str) -> None:
        self._show = show
        self._project = one_line(project, 60)
        self._failures: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._missing = [target.missing for target in targets if target.missing]
        self._channels = [_Channel(each, self._failures.put) for each in targets if not each.missing]
        self._began = self._ended = False
        self._used_before: frozenset[str] | None = None
        self._budget_lock = threading.Lock()
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
        self._show_failures()

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
        self._show_failures()

    def _decided(self, event: Decided) -> None:
        entry, tier = event.entry, tier_of(event.entry)
        words = entry.conclusion or entry.hypothesis
        if tier in ("finding", "claim") and entry.informative:
            self._send("finding", f"{tier} {entry.experiment_id}", words)
        elif "retracted" in (tier, verdict_of(entry)):
            self._send("retraction", f"{entry.experiment_id} retracted", words)

    def _spent(self, budget: BudgetState) -> None:
        """Sends a notice for the first budget that passes `SHARE` during this run."""
        used = _used(budget)
        if self._used_before is None:
            self._used_before = frozenset(name for name, part in used.items() if part.share >= SHARE)
        if self._timer is not None:
            self._timer.cancel()
        for name, part in used.items():
            if name in self._used_before:
                continue
            if SHARE <= part.share < 1:
                self._budget_is_short(part.text)
            elif name == "time" and part.share < SHARE:
                # Time also passes without events.
                total = budget.seconds + (budget.seconds_left or 0.0)
                words = f"{duration(SHARE * total)} of {duration(total)}"
                seconds = min(SHARE * total - budget.seconds, threading.TIMEOUT_MAX)
                self._timer = threading.Timer(seconds, self._budget_is_short, args=(words,))
                self._timer.daemon = True
                self._timer.start()

    def _budget_is_short(self, words: str) -> None:
        """Sends one notice in a run: the lock is never released."""
        if self._budget_lock.acquire(blocking=False):
            self._send("budget", f"{percent(SHARE)} of the budget is used", words)

    def _send(self, kind: Kind, what: str, text: str) -> None:
        title = f"autointerp: {one_line(what, 80)} ({self._project})"
        for channel in self._channels:
            channel.put(Notice(title, one_line(text, 300), self._project, kind))

    def _show_failures(self) -> None:
        """Shows the failures of the targets, on the supervisor's own thread, as the screen expects."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._show(Waiting(self._failures.get_nowait()))


class _Channel:
    """One target, its queue and its thread. A notice that does not fit replaces the oldest."""

    def __init__(self, target: Target, report: Callable[[str], None]) -> None:
        self._target = target
        self._report = report
        self._reported = False
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
                    self._fail("it is too slow")
            else:
                return

    def end(self) -> None:
        """Stops the queue: no notice follows."""
        self.put(None)

    def wait(self, seconds: float) -> None:
        """Until everything is sent, or the time is up."""
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._fail(f"it did not answer within {duration(FLUSH)}")

    def _work(self) -> None:
        while (notice := self._waiting.get()) is not None:
            try:
                self._target.send(notice)
            except _FAULTS as problem:
                self._fail(one_line(str(problem) or type(problem).__name__, 160))

    def _fail(self, why: str) -> None:
        if not self._reported:
            self._reported = True
            self._report(
                f"a notice to {self._target.name} was not delivered ({why}); the run goes on, and further "
                "failures there are not shown"
            )


class _Used(NamedTuple):
    share: float
    text: str


def _used(budget: BudgetState) -> dict[str, _Used]:
    """How much of each limited budget is used."""
    used: dict[str, _Used] = {}

    def note(name: str, spent: float, left: float | None, words: Callable[[float], str]) -> None:
        if left is not None and spent + left > 0:
            used[name] = _Used(spent / (spent + left), f"{words(spent)} of {words(spent + left)}")

    note("experiments", budget.experiments, budget.experiments_left, "{:.0f} experiments".format)
    note("time", budget.seconds, budget.seconds_left, duration)
    note("dollars", budget.usd or 0.0, budget.usd_left, "${:.2f}".format)
    note("tokens", budget.tokens or 0, budget.tokens_left, "{:,.0f} tokens".format)
    return used


def _target(asked: str) -> Target:
    if asked == "desktop":
        return _desktop()
    if asked.startswith("ntfy:"):
        return _ntfy(asked.removeprefix("ntfy:"), asked)
    parts = _address(asked, asked)
    return _http_target(f"the webhook at {parts.hostname}", lambda notice: _post(asked, notice._asdict()))


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
    return _http_target(
        f"ntfy at {parts.hostname}",
        lambda notice: _post(root, {"topic": topic, "title": notice.title, "message": notice.text}),
    )


def _address(address: str, asked: str) -> urllib.parse.SplitResult:
    """The parts of an http(s) address; UsageError if it cannot be used as it is."""
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


@cache
def _client() -> httpx2.Client:
    """Made before the run starts, because the import and the certificates take a moment."""
    import httpx2

    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.Client(headers={"User-Agent": "autointerp"}, timeout=_TIMEOUT, limits=limits)


def _http_target(name: str, send: Callable[[Notice], None]) -> Target:
    try:
        _client()
    except ImportError as problem:  # a proxy that needs a package
        return Target(name, send, f"no notices to {name}: {one_line(str(problem), 160)}; the run continues")
    return Target(name, send)


def _post(address: str, body: dict[str, str]) -> None:
    """Sends JSON to exactly this address: a redirect is a failure, so that no answer can lead elsewhere."""
    import httpx2

    try:
        # The answer's body is not read: a server could send it for ever.
        with _client().stream("POST", address, json=body) as answer:
            pass
    except httpx2.HTTPError as problem:
        raise NotSent(str(problem) or type(problem).__name__) from None
    if not answer.is_success:
        elsewhere = answer.has_redirect_location
        hint = "; redirects are not followed, so name the last address" if elsewhere else ""
        raise NotSent(f"it answered {answer.status_code}{hint}")


def _desktop() -> Target:
    program = "osascript" if sys.platform == "darwin" else "notify-send"
    found = shutil.which(program)
    hint = "" if sys.platform == "darwin" else " (Debian and Ubuntu: the package libnotify-bin)"
    missing = "" if found else f"no desktop notices: there is no {program} here{hint}; the run goes on"

    def send(notice: Notice) -> None:
        line = (_osascript if sys.platform == "darwin" else _notify_send)(str(found), notice)
        ended = subprocess.run(
            line, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False
        )
        if ended.returncode != 0:
            words = one_line(ended.stderr.decode(errors="replace"), 100)
            raise NotSent(f"{program} ended with {ended.returncode}{f': {words}' if words else ''}")

    return Target("the desktop", send, missing)


def _notify_send(program: str, notice: Notice) -> list[str]:
    # The body is markup, the title is not.
    return [program, "--app-name=autointerp", "--", notice.title, html.escape(notice.text, quote=False)]


def _osascript(program: str, notice: Notice) -> list[str]:
    # The texts are arguments of a fixed script, never part of it. The title begins with a letter, so it ends
    # the options.
    show = "display notification (item 2 of argv) with title (item 1 of argv)"
    return [program, "-e", "on run argv", "-e", show, "-e", "end run", notice.title, notice.text]
