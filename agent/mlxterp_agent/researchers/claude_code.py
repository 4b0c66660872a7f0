"""Claude Code investigates: headless turns of the user's own `claude`, each a process of its own.

Lives here: when a process begins and ends, and what follows from how it ended. How it is started is
`claude_command.py`, the process `claude_process.py`, its words `claude_events.py`. What becomes of an
experiment is the supervisor's affair.

A turn lasts until the agent ends it by itself. Within it, a process that was lost, went silent or was
refused by the service is replaced by another that resumes the same conversation. A turn that ends while
budget remains is followed by the next one: "I am done" is sent back, until the supervisor sees that nothing
new comes.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import NamedTuple

from mlxterp_agent.clock import Clock, SystemClock
from mlxterp_agent.researchers.base import (
    IDLE,
    Done,
    DriverState,
    Failed,
    Situation,
    Told,
    Working,
)
from mlxterp_agent.researchers.claude_command import (
    ClaudeOptions,
    command,
    environment,
    prompt,
)
from mlxterp_agent.researchers.claude_events import Result
from mlxterp_agent.researchers.claude_process import ClaudeProcess
from mlxterp_agent.storage.state_dir import open_state
from mlxterp_agent.text import duration, one_line

SILENCE = 300.0
"""Seconds without a byte, while no tool works and no retry is announced, after which a process is lost."""

LINGER = 10.0
"""Seconds that a process may go on after its last result before it is ended."""

_LOST_IN_A_ROW = 6
_RESUMED_IN_A_ROW = 3
_FIRST_WAIT, _LONGEST_WAIT = 30.0, 900.0
_MARGIN = 5.0

# What another try cannot change: the request is wrong, the key is refused, nobody pays, the model is unknown.
_FINAL = frozenset({400, 401, 402, 403, 404})
_FULL = "max_turns", "budget_exhausted", "error_max_turns", "error_max_budget_usd"

_SENT_BACK = (
    "You ended your last turn without a new experiment, and budget remains. The investigation is not over: "
    "test a rival explanation, or what would prove the kept entries wrong."
)
_WENT_ON = "Go on where you stopped: your last turn was interrupted, and what it ran is in results.jsonl."


class _Cost(NamedTuple):
    usd: float = 0.0
    tokens: int = 0


class _Wait(NamedTuple):
    until: float
    words: str


class _Last(NamedTuple):
    """What is left of a process: its last result, whether it ever began, how it ended, its complaint."""

    result: Result | None
    began: bool
    how: str
    complaint: str


class ClaudeCode:
    """The driver. Every method returns at once, except `close`, which ends a process within two seconds.

    Args:
        options: which program, and how it is used.
        clock: measures waits; a silence is measured in real time.
        silence, linger: see `SILENCE` and `LINGER`.
    """

    name = "claude-code"

    def __init__(
        self,
        options: ClaudeOptions,
        *,
        clock: Clock | None = None,
        silence: float = SILENCE,
        linger: float = LINGER,
    ) -> None:
        self.model: str | None = options.model or "default"
        self.session: str | None = None
        self._options = options
        self._clock: Clock = clock or SystemClock()
        self._silence = silence
        self._linger = linger
        self._situation: Situation | None = None
        self._process: ClaudeProcess | None = None
        self._wait: _Wait | None = None
        self._over: DriverState = IDLE
        self._known = False
        self._began = 0.0
        self._entries = 0
        self._turns = 0
        self._lost = 0
        self._refused = 0
        self._resumed = False
        self._session, self._charged = _Cost(), _Cost()
        self._ended_at: float | None = None

    def begin_turn(self, situation: Situation) -> None:
        empty = self._turns > 0 and len(situation.entries) == self._entries
        self._situation, self._entries = situation, len(situation.entries)
        self._turns += 1
        self._began = self._clock.elapsed()
        self._lost = self._refused = 0
        if self._options.turns == "fresh":
            self._forget()
        self._launch(_SENT_BACK if empty else "")

    def poll(self) -> DriverState:
        if self._wait is not None:
            if self._clock.elapsed() < self._wait.until:
                return Working(self._wait.words, offers=False)
            self._wait = None
            self._launch(_WENT_ON)
        if self._process is None:
            return self._over
        with self._process.lock:
            stream = self._process.stream
            doing, offers, result = stream.doing, stream.waits_for_run, stream.result
            if stream.session is not None:
                self._known, self.session = True, stream.session
            self.model = stream.model or self.model
        self._process.look()
        self._charge(result)
        lost = self._lost_because(result)
        if lost is None and not self._through(result):
            return Working(doing, offers=offers)
        self._settle(lost)
        return self._over if self._wait is None else Working(self._wait.words, offers=False)

    def tell(self, told: Told) -> None:
        """The verdict reaches the agent as the answer of run_experiment."""

    def close(self) -> None:
        if self._process is not None:
            self._end()

    def _launch(self, again: str) -> None:
        assert self._situation is not None
        left = self._situation.budget_now().usd_left
        resume = self._known and self.session is not None
        session = self.session if resume and self.session is not None else str(uuid.uuid4())
        self.session, self._resumed = session, resume
        self._charged, self._ended_at = _Cost(), None
        project = self._situation.project
        line = command(
            self._options,
            project,
            prompt(self._situation, again=again),
            session=session,
            resume=resume,
            usd_left=left,
        )
        try:
            self._process = ClaudeProcess(
                line,
                directory=project,
                environment=environment(),
                transcript=_transcripts(project) / f"{session}.jsonl",
            )
        except OSError as problem:
            self._over = Failed(f"{self._options.binary} could not be started: {problem.strerror or problem}")

    def _through(self, result: Result | None) -> bool:
        """Whether the process has said its last word: a later `result` replaces an earlier one."""
        assert self._process is not None
        if self._process.ended:
            return True
        if result is None and not self._process.gone:
            return False
        now = time.monotonic()
        self._ended_at = max(self._ended_at or now, self._process.last_word)
        return now - self._ended_at > (1.0 if self._process.gone else self._linger)

    def _lost_because(self, result: Result | None) -> str | None:
        """Why the process is given up, or None."""
        assert self._process is not None
        if result is not None or self._process.gone:
            return None
        with self._process.lock:
            stream = self._process.stream
            allowed = self._silence + (stream.retry_seconds or 0.0)
            busy, silent = stream.calls_tools, time.monotonic() - self._process.last_word
        return f"it said nothing for {duration(silent)}" if silent > allowed and not busy else None

    def _settle(self, lost: str | None) -> None:
        """The process is over: the turn ends, goes on in another process, waits, or cannot go on."""
        assert self._process is not None
        with self._process.lock:
            resets_at = self._process.stream.resets_at
        last = self._end()
        result = None if lost else last.result
        if result is None:
            self._start_over(lost or last.how, last)
        elif not result.error or result.why in _FULL:
            self._over = IDLE
        elif result.status in _FINAL or "/login" in result.text:
            self._over = Failed(f"Claude Code cannot go on: {one_line(result.text or last.how, 300)}")
        elif result.why == "api_error" or result.status is not None or resets_at is not None:
            self._wait_for_service(result, resets_at)
        else:
            self._start_over(result.text or result.why or last.how, last)

    def _start_over(self, how: str, last: _Last) -> None:
        """Replaces a lost process: resumed at first, then with a fresh mind, and at last not at all."""
        assert self._situation is not None
        self._lost += 1
        if self._resumed and not last.began:
            self._forget()
        if self._lost >= _LOST_IN_A_ROW:
            words = f"Claude Code was lost {self._lost} times in a row: {one_line(how, 200)}"
            said = f". {one_line(last.complaint, 200)}" if last.complaint else ""
            self._over = Failed(words + said)
            return
        if self._lost > _RESUMED_IN_A_ROW:
            self._forget()
        pause = min(_LONGEST_WAIT, 2.0 ** (self._lost - 1) - 1)
        words = f"Claude Code was lost ({one_line(how, 80)}); starts it again"
        self._wait = _Wait(self._clock.elapsed() + pause, words)
        self._situation.note(words)

    def _wait_for_service(self, result: Result, resets_at: float | None) -> None:
        """Waits until a rate limit resets or the service is back, unless the time is up before."""
        assert self._situation is not None
        self._refused += 1
        pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (self._refused - 1))
        if resets_at is not None:
            pause = max(_MARGIN, resets_at - self._clock.wall() + _MARGIN)
        why = f"status {result.status}" if result.status else "no connection"
        why = f"({why}: {one_line(result.text, 80)})"
        now, left = self._clock.elapsed(), self._situation.deadline_left
        if left is not None and pause > left - (now - self._began):
            words = f"Claude's service stays away for {duration(pause)} {why}, and the time is up before"
            self._over = Done(words)
            return
        self._wait = _Wait(now + pause, f"waits {duration(pause)} for Claude's service {why}")
        self._situation.note(self._wait.words)

    def _charge(self, result: Result | None) -> None:
        """Hands to the budget what was not charged yet: by our own prices while a process runs, and by its
        own words when it has ended. Those are a running sum of the session."""
        assert self._situation is not None
        assert self._process is not None
        with self._process.lock:
            usd, tokens = self._process.stream.usd, self._process.stream.tokens
        said = result is not None and result.usd is not None
        if result is not None and result.usd is not None:
            usd = result.usd - self._session.usd if result.usd >= self._session.usd else result.usd
        if result is not None and result.tokens is not None:
            tokens = max(tokens, result.tokens - self._session.tokens)
        more = _Cost(usd - self._charged.usd, tokens - self._charged.tokens)
        if abs(more.usd) > 1e-9 or more.tokens > 0:
            self._charged = _Cost(usd, max(tokens, self._charged.tokens))
            details = {"estimated": not said, "session": self.session, "model": self.model}
            self._situation.charge(more.usd, max(more.tokens, 0), details=details)

    def _end(self) -> _Last:
        """Ends the process and takes what it says at the end into account."""
        assert self._process is not None
        process = self._process
        process.end()
        with process.lock:
            result, began = process.stream.result, process.stream.session is not None
        self._charge(result)
        if result is not None:
            self._session = _Cost(result.usd or self._session.usd, result.tokens or self._session.tokens)
        self._process = None
        return _Last(result, began, process.how, process.complaint())

    def _forget(self) -> None:
        self._known, self.session, self._session = False, None, _Cost()


def _transcripts(project: Path) -> Path:
    return open_state(project).root / "agent"
