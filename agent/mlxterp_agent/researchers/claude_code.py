"""Claude Code investigates: headless turns of the user's own `claude`, each a process of its own.

Lives here: when a process begins and ends, and what follows from how it ended. How it is started is
`claude_code.py`, the process `claude_code.py`, its words `claude_events.py`. What becomes of an
experiment is the supervisor's affair.

A turn lasts until the agent ends it by itself. Within it, a process that was lost, went silent or was
refused by the service is replaced by another that resumes the same conversation. A turn that ends while
budget remains is followed by the next one: "I am done" is sent back, until the supervisor sees that nothing
new comes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, NamedTuple

import mlxterp
from mlxterp.autointerpret.contract import EXPERIMENT, FINDINGS, LOG, PRIVATE, PROGRAM, SETUP, STATE, STEER
from mlxterp_agent.platform import Clock, Descendants, SystemClock
from mlxterp_agent.researchers.base import (
    IDLE,
    Done,
    ExperimentOutcome,
    Failed,
    ResearcherState,
    Situation,
    Working,
)
from mlxterp_agent.researchers.claude_events import Result, Stream
from mlxterp_agent.sandbox.child import warden_command
from mlxterp_agent.state_md import budget_words
from mlxterp_agent.storage.state_dir import open_state
from mlxterp_agent.text import duration, one_line, plain

BINARY_ENV = "AUTOINTERP_CLAUDE"
DRIVEN_ENV = "AUTOINTERP_DRIVEN"

Turns = Literal["fresh", "resumed"]

_STEPS = 60
_NEVER_EDITED = (SETUP, PROGRAM, LOG, STATE, STEER, "CLAUDE.md", "AGENTS.md", ".mcp.json")
_NEVER_ENTERED = (FINDINGS, PRIVATE, ".claude", ".git")
_NEVER_IN_GIT = ("--amend", "reset", "rebase", "push", "update-ref", "filter-branch", "checkout", "stash")
_A_DAY = 24 * 3600 * 1000


@dataclass(frozen=True, kw_only=True)
class ClaudeOptions:
    """How Claude Code is driven.

    Attributes:
        binary: path of the program.
        model: what `--model` says; None leaves it to the program.
        turns: "fresh" begins each turn with an empty mind and STATE.md, "resumed" goes on in one
            conversation.
        shell: the agent gets Bash as well.
    """

    binary: str
    model: str | None = None
    turns: Turns = "fresh"
    shell: bool = False


def find_claude(environment: Mapping[str, str] = os.environ) -> str | None:
    """The program: what AUTOINTERP_CLAUDE names, or `claude` on PATH; None if there is none."""
    return shutil.which(environment.get(BINARY_ENV) or "claude", path=environment.get("PATH"))


def logged_in(binary: str) -> bool:
    """Whether the program says that it can reach a model; asks nobody else, in less than a second."""
    try:
        asked = subprocess.run(
            [binary, "auth", "status", "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=15,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def command(
    options: ClaudeOptions, project: Path, prompt: str, *, session: str, resume: bool, usd_left: float | None
) -> list[str]:
    """The command line of one process."""
    tools = ["Read", "Edit", "Write", "Glob", "Grep", *(["Bash"] if options.shell else [])]
    line = [options.binary, "-p", prompt, "--output-format", "stream-json", "--verbose"]
    line += ["--include-partial-messages", "--permission-mode", "dontAsk", "--setting-sources", "project"]
    line += ["--settings", json.dumps(settings(shell=options.shell)), "--tools", ",".join(tools)]
    line += ["--mcp-config", json.dumps(mcp_config(project)), "--strict-mcp-config"]
    line += ["--resume" if resume else "--session-id", session, "--max-turns", str(_STEPS)]
    if options.model is not None:
        line += ["--model", options.model]
    if usd_left is not None:
        line += ["--max-budget-usd", f"{max(usd_left, 0.0001):.4f}"]
    return line


def settings(*, shell: bool) -> dict[str, Any]:
    """What the agent may do. A refusal wins over a permission."""
    library = Path(mlxterp.__file__).resolve().parent
    allow = ["Read(./**)", f"Read(/{library}/**)", f"Edit(./{EXPERIMENT})", "mcp__autointerp"]
    deny = [f"Edit(./{name})" for name in _NEVER_EDITED] + [f"Edit(./{name}/**)" for name in _NEVER_ENTERED]
    if shell:
        allow.append("Bash")
        deny += [f"Bash(git *{word}*)" for word in _NEVER_IN_GIT]
    return {"permissions": {"allow": allow, "deny": deny}}


def mcp_config(project: Path) -> dict[str, Any]:
    """Our tools, served by the same Python that supervises."""
    arguments = ["-m", "mlxterp_agent.cli", "mcp", str(project)]
    return {"mcpServers": {"autointerp": {"command": sys.executable, "args": arguments}}}


def environment(parent: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The user's own, with which `claude` finds its key or login, without what would change under our
    hands."""
    ours = {
        DRIVEN_ENV: "1",
        "DISABLE_AUTOUPDATER": "1",
        "MCP_TOOL_TIMEOUT": str(_A_DAY),
        "BASH_DEFAULT_TIMEOUT_MS": str(_A_DAY),
        "BASH_MAX_TIMEOUT_MS": str(_A_DAY),
    }
    nested = ("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT")
    return {name: value for name, value in parent.items() if name not in nested} | ours


def prompt(situation: Situation, *, again: str = "") -> str:
    """What the agent is told at the beginning of a turn. What it must know about the files is in CLAUDE.md.

    Args:
        again: why a turn begins although the last one was ended, or a process was lost.
    """
    parts = [
        "Read program.md and STATE.md, then go on investigating: write experiment.py whole, call "
        "run_experiment, believe its verdict, choose the next experiment. Do not end your turn and do not "
        "ask whether to go on while budget remains.",
        f"Budget: {budget_words(situation.budget)}.",
    ]
    if again:
        parts.insert(0, again)
    if situation.facts.get("capabilities"):
        able = one_line(f"{situation.facts.get('size')}. It has {situation.facts['capabilities']}", 1_500)
        parts.append(f"The loaded model: {able}. What each analysis takes: library_help.")
    if situation.last is not None:
        parts.append(f"The newest entry is {situation.last.experiment_id}: {_newest(situation)}")
    if situation.steer:
        parts.append(f"Guidance from the researcher (steer.md):\n{situation.steer}")
    return "\n\n".join(parts)


def _newest(situation: Situation) -> str:
    assert situation.last is not None
    verdict = (situation.last.record or {}).get("verdict", "logged by hand")
    return f"{verdict}, {one_line(situation.last.conclusion or situation.last.hypothesis, 200)}"


_KEPT_STDERR = 4000
_LOOK_EVERY = 2.0
_PARTIAL = b'{"type":"stream_event"'


class ClaudeProcess:
    """A running process and what it said.

    Attributes:
        stream: the fold of its events; read it under `lock`.
        last_word: monotonic time of the last byte it said.
    """

    def __init__(
        self, command: Sequence[str], *, directory: Path, environment: Mapping[str, str], transcript: Path
    ) -> None:
        self.stream = Stream()
        self.lock = threading.Lock()
        self.last_word = time.monotonic()
        self._said_wrong = b""
        self._looked = 0.0
        transcript.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lifeline: int | None
        lifeline, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                warden_command(command, lifeline=lifeline, when_alone="ask"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=directory,
                env=dict(environment),
                start_new_session=True,
                pass_fds=(lifeline,),
            )
        finally:
            os.close(lifeline)
        self._left = Descendants(self._process.pid)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        # The transcript is opened before the threads start, so that a full disk is the caller's error.
        log = open(transcript, "ab")  # noqa: SIM115 - the reading thread closes it
        self._threads = [
            threading.Thread(target=self._read_events, args=(self._process.stdout, log), daemon=True),
            threading.Thread(target=self._read_errors, args=(self._process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is gone and everything it said is read."""
        return self._process.poll() is not None and not self._threads[0].is_alive()

    @property
    def gone(self) -> bool:
        """Whether the process itself is gone; something it started may still hold its pipes."""
        return self._process.poll() is not None

    @property
    def how(self) -> str:
        """How it ended, in words."""
        code = self._process.returncode
        if code is None:
            return "it still runs"
        return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with code {code}"

    def complaint(self) -> str:
        """The end of what it wrote to standard error."""
        with self.lock:
            return plain(self._said_wrong.decode("utf-8", "replace")).strip()

    def read_project(self) -> None:
        """Remembers what it has started, so that it can be ended too; a walk over the processes every few
        seconds."""
        if time.monotonic() - self._looked > _LOOK_EVERY:
            self._looked = time.monotonic()
            self._left.observe()

    def end(self, *, patience: float = 1.0) -> None:
        """Ends it: asked to twice, then killed; and whatever it has started, wherever that went."""
        self._left.observe()
        for order, seconds in ((b"I", patience), (b"T", 0.4), (b"K", 5.0)):
            if self._process.poll() is not None:
                break
            self._order(order)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self._process.kill()
        self._process.wait()
        self._left.end()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        for thread in self._threads:
            thread.join(0.5)

    def _order(self, order: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            if self._lifeline is not None:
                os.write(self._lifeline, order)
        # The agent may have stopped its warden.
        self._process.send_signal(signal.SIGCONT)

    def _read_events(self, pipe: IO[bytes], log: BinaryIO) -> None:
        with log, pipe:
            for line in pipe:
                with self.lock:
                    self.last_word = time.monotonic()
                    self.stream.take(line)
                if not line.startswith(_PARTIAL):
                    # The transcript is a convenience; a full disk must not end the reading.
                    with contextlib.suppress(OSError):
                        log.write(line)
                        log.flush()

    def _read_errors(self, pipe: IO[bytes]) -> None:
        with pipe:
            while chunk := os.read(pipe.fileno(), 4096):
                with self.lock:
                    self.last_word = time.monotonic()
                    self._said_wrong = (self._said_wrong + chunk)[-_KEPT_STDERR:]


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
        self._over: ResearcherState = IDLE
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

    def poll(self) -> ResearcherState:
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
        self._process.read_project()
        self._charge(result)
        lost = self._lost_because(result)
        if lost is None and not self._through(result):
            return Working(doing, offers=offers)
        self._settle(lost)
        return self._over if self._wait is None else Working(self._wait.words, offers=False)

    def tell(self, told: ExperimentOutcome) -> None:
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
