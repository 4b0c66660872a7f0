"""Claude Code investigates: headless turns of the user's own `claude`, each its own process.

Contains: the command line and its permissions, when a process begins and ends, and what follows from its end.
See `claude_events.py` for its events. The supervisor alone decides about an experiment.

A turn lasts until the agent ends it by itself. Within it, a process that was lost, went silent or was refused
by the service is replaced by another that resumes the same conversation. A turn that ends while budget
remains is followed by the next one, until the supervisor stops after turns without a new experiment.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
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
from mlxterp_agent.api_help import signatures
from mlxterp_agent.endings import refused
from mlxterp_agent.key_broker import KeyBroker, Used
from mlxterp_agent.platform import KEYS, Clock, Descendants, SystemClock, without_secrets
from mlxterp_agent.prompts import values_text
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
from mlxterp_agent.sandbox.orphans import note_started
from mlxterp_agent.state_md import budget_words
from mlxterp_agent.storage.state_dir import open_state
from mlxterp_agent.text import duration, one_line, plain

SUPERVISED_ENV = "AUTOINTERP_DRIVEN"

TESTED_VERSION = "2.1.330"
"""The version of Claude Code that the tests drive."""

Turns = Literal["fresh", "resumed"]

SILENCE = 300.0
"""Seconds without a byte, with no tool running and no retry announced, after which a process is lost."""

LINGER = 10.0
"""Seconds that a process may run after its last result before it is ended."""

_STEPS = 60
_NEVER_EDITED = (SETUP, PROGRAM, LOG, STATE, STEER, "CLAUDE.md", "AGENTS.md", ".mcp.json")
_NEVER_ENTERED = (FINDINGS, PRIVATE, ".claude", ".git")
_NEVER_IN_GIT = ("--amend", "reset", "rebase", "push", "update-ref", "filter-branch", "checkout", "stash")
_A_DAY = 24 * 3600 * 1000

# What authorises Claude Code at a cloud instead of at the service itself.
_CLOUDS = {
    "CLAUDE_CODE_USE_BEDROCK": r"AWS_\w+",
    "CLAUDE_CODE_USE_VERTEX": r"GOOGLE_\w+|CLOUD_ML_\w+",
    "CLAUDE_CODE_USE_FOUNDRY": r"ANTHROPIC_FOUNDRY_\w+|AZURE_\w+",
}
_PROXIES = r"(?i:https?|all)_(?i:proxy)"

_STDERR_TAIL = 4000
_UNKNOWN_OPTION = re.compile(r"unknown (option|command|argument)", re.IGNORECASE)
_DESCENDANTS_EVERY = 2.0
_PARTIAL = b'{"type":"stream_event"'

_LOST_IN_A_ROW = 6
_RESUMED_IN_A_ROW = 3
_FIRST_WAIT, _LONGEST_WAIT = 30.0, 900.0
_MARGIN = 5.0

# What another try cannot change: a wrong request, a refused key, an unpaid account, an unknown model.
_FINAL = frozenset({400, 401, 402, 403, 404})
_FULL = "max_turns", "budget_exhausted", "error_max_turns", "error_max_budget_usd"

_SENT_BACK = (
    "You ended your last turn without a new experiment, and budget remains. The investigation is not over: "
    "test a rival explanation, or what would prove the kept entries wrong."
)
_INTERRUPTED = "Continue where you stopped: your last turn was interrupted; what it ran is in results.jsonl."


@dataclass(frozen=True, kw_only=True)
class ClaudeOptions:
    """How Claude Code is used.

    Attributes:
        binary: path of the program.
        model: the value of `--model`; None leaves it to the program.
        turns: "fresh" begins each turn with a new conversation and STATE.md, "resumed" continues one.
        shell: the agent gets Bash as well.
    """

    binary: str
    model: str | None = None
    turns: Turns = "fresh"
    shell: bool = False


def command(
    options: ClaudeOptions, project: Path, prompt: str, *, session: str, resume: bool, usd_left: float | None
) -> list[str]:
    """The command line of one process."""
    tools = ["Read", "Edit", "Write", "Glob", "Grep", *(["Bash"] if options.shell else [])]
    line = [options.binary, "-p", prompt, "--output-format", "stream-json", "--verbose"]
    line += ["--include-partial-messages", "--permission-mode", "dontAsk", "--setting-sources", "project"]
    line += ["--settings", json.dumps(settings(project, shell=options.shell)), "--tools", ",".join(tools)]
    line += ["--mcp-config", json.dumps(mcp_config(project)), "--strict-mcp-config"]
    line += ["--resume" if resume else "--session-id", session, "--max-turns", str(_STEPS)]
    if options.model is not None:
        line += ["--model", options.model]
    if usd_left is not None:
        line += ["--max-budget-usd", f"{max(usd_left, 0.0001):.4f}"]
    return line


def settings(project: Path, *, shell: bool) -> dict[str, Any]:
    """What the agent may do. A refusal wins over a permission."""
    library = Path(mlxterp.__file__).resolve().parent
    # By its whole path: a relative pattern also means a file of this name in any folder.
    only = f"Edit(/{project.resolve()}/{EXPERIMENT})"
    allow = ["Read(./**)", f"Read(/{library}/**)", only, "mcp__autointerp"]
    deny = [f"Edit(./{name})" for name in _NEVER_EDITED] + [f"Edit(./{name}/**)" for name in _NEVER_ENTERED]
    if shell:
        allow.append("Bash")
        deny += [f"Bash(git *{word}*)" for word in _NEVER_IN_GIT]
    return {"permissions": {"allow": allow, "deny": deny}}


def mcp_config(project: Path) -> dict[str, Any]:
    """Our tools, served by the same Python that supervises."""
    arguments = ["-m", "mlxterp_agent.cli", "mcp", str(project)]
    return {"mcpServers": {"autointerp": {"command": sys.executable, "args": arguments}}}


def environment(parent: Mapping[str, str] = os.environ, broker: KeyBroker | None = None) -> dict[str, str]:
    """The user's own, without updates and short time limits, and without secrets of other programs.

    With a broker it holds no key either. Without one, `claude` finds its login by itself, or the variables of
    the cloud that it is told to use.
    """
    ours = {
        SUPERVISED_ENV: "1",
        "DISABLE_AUTOUPDATER": "1",
        "MCP_TOOL_TIMEOUT": str(_A_DAY),
        "BASH_DEFAULT_TIMEOUT_MS": str(_A_DAY),
        "BASH_MAX_TIMEOUT_MS": str(_A_DAY),
    }
    nested = ("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", *KEYS)
    passed = {name: value for name, value in without_secrets(parent).items() if name not in nested}
    if broker is not None:
        return passed | ours | broker.environment()
    needed = [_PROXIES, *(names for switch, names in _CLOUDS.items() if parent.get(switch))]
    own = {name: value for name, value in parent.items() if any(re.fullmatch(each, name) for each in needed)}
    return passed | own | ours


def prompt(situation: Situation, *, again: str = "") -> str:
    """The prompt at the beginning of a turn. CLAUDE.md explains the files to the agent.

    Args:
        again: why a turn begins after the agent ended the last one, or a process was lost.
    """
    parts = [
        "Read program.md and STATE.md, then continue investigating: write experiment.py whole, call "
        "run_experiment, believe its verdict, choose the next experiment. Do not end your turn and do not "
        "ask whether to continue while budget remains.",
        f"Budget: {budget_words(situation.budget)}.",
    ]
    if again:
        parts.insert(0, again)
    facts, last = situation.facts, situation.last
    if facts.get("capabilities"):
        able = one_line(f"{facts.get('size')}. It has {facts['capabilities']}", 1_500)
        parts.append(f"The loaded model: {able}.")
    parts.append(f"{values_text(facts)}\n\n{signatures()}\n\nEverything else: library_help.")
    if last is not None:
        verdict = (last.record or {}).get("verdict", "logged by hand")
        found = one_line(last.conclusion or last.hypothesis, 200)
        parts.append(f"The newest entry is {last.experiment_id}: {verdict}, {found}")
    if situation.steer:
        parts.append(f"Guidance from the researcher (steer.md):\n{situation.steer}")
    return "\n\n".join(parts)


class ClaudeProcess:
    """A running process. Two threads read its pipes; `read` takes their lines.

    Attributes:
        stream: the state by its events, up to the last `read`.
        last_byte: monotonic time of the last byte it wrote.
    """

    def __init__(
        self, command: Sequence[str], *, directory: Path, environment: Mapping[str, str], transcript: Path
    ) -> None:
        self.stream = Stream()
        self.last_byte = time.monotonic()
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._stderr = b""
        self._looked = 0.0
        transcript.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Before the process starts: a full disk is the caller's error, and leaves no process behind.
        log = open(transcript, "ab")  # noqa: SIM115 - the reading thread closes it
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
        except OSError:
            log.close()
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline)
        note_started(self._process.pid)
        self._left = Descendants(self._process.pid)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._threads = [
            threading.Thread(target=self._read_events, args=(self._process.stdout, log), daemon=True),
            threading.Thread(target=self._read_errors, args=(self._process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def gone(self) -> bool:
        """Whether the process itself has exited; a process that it started may still hold its pipes."""
        return self._process.poll() is not None

    @property
    def ended(self) -> bool:
        """Whether it has exited and its output was read to the end."""
        return self.gone and not self._threads[0].is_alive()

    @property
    def ending(self) -> str:
        """How it ended."""
        code = self._process.returncode
        if code is None:
            return "it still runs"
        return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with code {code}"

    @property
    def stderr_tail(self) -> str:
        """The end of what it wrote to standard error."""
        return plain(self._stderr.decode("utf-8", "replace")).strip()

    def read(self) -> Stream:
        """Takes the new events. Every few seconds it also lists the processes that this one has started, so
        that they can be ended too."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.stream.take(self._lines.get_nowait())
        if not self.gone and time.monotonic() - self._looked > _DESCENDANTS_EVERY:
            self._looked = time.monotonic()
            self._left.observe()
        return self.stream

    def end(self, *, patience: float = 1.0) -> None:
        """Ends it, by two signals and then a kill, and all processes that it has started."""
        self._left.observe()
        for order, seconds in ((b"I", patience), (b"T", 0.4), (b"K", 5.0)):
            if self.gone:
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
        self.read()

    def _order(self, order: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            if self._lifeline is not None:
                os.write(self._lifeline, order)
        # The agent may have stopped its warden.
        self._process.send_signal(signal.SIGCONT)

    def _read_events(self, pipe: IO[bytes], log: BinaryIO) -> None:
        with log, pipe:
            for line in pipe:
                self.last_byte = time.monotonic()
                self._lines.put(line)
                if not line.startswith(_PARTIAL):
                    # The transcript is a convenience; a full disk must not end the reading.
                    with contextlib.suppress(OSError):
                        log.write(line)
                        log.flush()

    def _read_errors(self, pipe: IO[bytes]) -> None:
        with pipe:
            while chunk := os.read(pipe.fileno(), 4096):
                self.last_byte = time.monotonic()
                self._stderr = (self._stderr + chunk)[-_STDERR_TAIL:]


class _Cost(NamedTuple):
    usd: float = 0.0
    tokens: int = 0


class _Wait(NamedTuple):
    until: float
    reason: str


class ClaudeCode:
    """The researcher. Every method returns at once, except `close`, which ends a process within two seconds.

    Args:
        options: which program, and how it is used.
        broker: holds the key that its processes work with; without one they use the program's own login.
        clock: measures waits; a silence is measured in real time.
        silence, linger: see `SILENCE` and `LINGER`.
    """

    name = "claude-code"

    def __init__(
        self,
        options: ClaudeOptions,
        *,
        broker: KeyBroker | None = None,
        clock: Clock | None = None,
        silence: float = SILENCE,
        linger: float = LINGER,
    ) -> None:
        self.model: str | None = options.model or "default"
        self.session: str | None = None
        self.answered = False
        self._options = options
        self._broker = broker
        self._clock: Clock = clock or SystemClock()
        self._silence = silence
        self._linger = linger
        self._state: ResearcherState = IDLE
        # State of the turn:
        self._situation: Situation | None = None
        self._began = 0.0
        self._lost = 0
        self._refused = 0
        self._wait: _Wait | None = None
        # State of the conversation: whether the program has announced it, the cost of its ended processes.
        self._announced = False
        self._spent = _Cost()
        # State of the process:
        self._process: ClaudeProcess | None = None
        self._resumed = False
        self._charged = _Cost()
        self._brokered = Used()
        self._through_at: float | None = None

    def begin_turn(self, situation: Situation) -> None:
        entries = None if self._situation is None else len(self._situation.entries)
        self._situation = situation
        self._began = self._clock.elapsed()
        self._lost = self._refused = 0
        if self._options.turns == "fresh":
            self._reset_conversation()
        self._launch(_SENT_BACK if len(situation.entries) == entries else "")

    def poll(self) -> ResearcherState:
        if self._wait is not None:
            if self._clock.elapsed() < self._wait.until:
                return Working(self._wait.reason, offers=False)
            self._wait = None
            self._launch(_INTERRUPTED)
        if self._process is None:
            return self._state
        stream = self._process.read()
        if stream.session is not None:
            self._announced, self.session = True, stream.session
        self.model = stream.model or self.model
        self.answered = self.answered or stream.answered
        self._charge(self._process)
        silent = self._silent_for(self._process)
        if silent is None and not self._is_finished(self._process):
            return Working(stream.doing, offers=stream.waits_for_run)
        self._settle(self._process, silent)
        return self._state if self._wait is None else Working(self._wait.reason, offers=False)

    def tell(self, outcome: ExperimentOutcome) -> None:
        """The verdict reaches the agent as the answer of run_experiment."""

    def close(self) -> None:
        if self._process is not None:
            self._end(self._process)
        if self._broker is not None:
            self._broker.close()

    def _launch(self, again: str) -> None:
        assert self._situation is not None
        situation, resume = self._situation, self._announced and self.session is not None
        session = self.session if resume and self.session is not None else str(uuid.uuid4())
        self.session, self._resumed = session, resume
        self._charged, self._through_at = _Cost(), None
        usd_left = situation.budget_now().usd_left
        line = command(
            self._options,
            situation.project,
            prompt(situation, again=again),
            session=session,
            resume=resume,
            usd_left=usd_left,
        )
        try:
            if self._broker is not None:
                self._broker.start()
                self._broker.allow(usd_left)
                self._brokered = self._broker.used
            self._process = ClaudeProcess(
                line,
                directory=situation.project,
                environment=environment(broker=self._broker),
                transcript=open_state(situation.project).root / "agent" / f"{session}.jsonl",
            )
        except OSError as problem:
            why = problem.strerror or problem
            self._state = Failed(f"{self._options.binary} could not be started: {why}")

    def _is_finished(self, process: ClaudeProcess) -> bool:
        """Whether the process has given its last result: a later one replaces an earlier one."""
        if process.ended:
            return True
        if process.stream.result is None and not process.gone:
            return False
        now = time.monotonic()
        self._through_at = max(self._through_at or now, process.last_byte)
        return now - self._through_at > (1.0 if process.gone else self._linger)

    def _silent_for(self, process: ClaudeProcess) -> str | None:
        """Why the process counts as lost, or None. Silence while a tool runs does not count."""
        stream, silent = process.stream, time.monotonic() - process.last_byte
        if stream.result is not None or process.gone or stream.calls_tools:
            return None
        allowed = self._silence + (stream.retry_seconds or 0.0)
        return f"it wrote nothing for {duration(silent)}" if silent > allowed else None

    def _settle(self, process: ClaudeProcess, silent: str | None) -> None:
        """Handles the end of a process: the turn ends, continues in another process, waits, or fails."""
        self._end(process)
        resets_at = process.stream.resets_at
        result = None if silent else process.stream.result
        if result is None:
            self._start_over(silent or process.ending, process)
        elif not result.error or result.why in _FULL:
            self._state = IDLE
        elif result.status in _FINAL or "/login" in result.text:
            why = one_line(result.text or process.ending, 300)
            ending = "key" if "/login" in result.text else refused(result.status)
            self._state = Failed(f"Claude Code cannot continue: {why}", ending)
        elif result.why == "api_error" or result.status is not None or resets_at is not None:
            self._wait_for_service(result, resets_at)
        else:
            self._start_over(result.text or result.why or process.ending, process)

    def _start_over(self, why: str, process: ClaudeProcess) -> None:
        """Replaces a lost process: first in the same conversation, then in a new one; then the turn fails."""
        assert self._situation is not None
        if _UNKNOWN_OPTION.search(process.stderr_tail):
            said = one_line(process.stderr_tail, 200)
            self._state = Failed(f"Claude Code is too old: update Claude Code ({said})", "old_client")
            return
        self._lost += 1
        if (self._resumed and process.stream.session is None) or self._lost > _RESUMED_IN_A_ROW:
            self._reset_conversation()
        if self._lost >= _LOST_IN_A_ROW:
            said = f". {one_line(process.stderr_tail, 200)}" if process.stderr_tail else ""
            lost = f"Claude Code was lost {self._lost} times in a row"
            self._state = Failed(f"{lost}: {one_line(why, 200)}{said}", "crash")
            return
        pause = min(_LONGEST_WAIT, 2.0 ** (self._lost - 1) - 1)
        reason = f"Claude Code was lost ({one_line(why, 80)}); starting it again"
        self._wait = _Wait(self._clock.elapsed() + pause, reason)
        self._situation.note(reason)

    def _wait_for_service(self, result: Result, resets_at: float | None) -> None:
        """Waits until a rate limit resets or the service is back, unless the deadline comes first."""
        assert self._situation is not None
        self._refused += 1
        pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (self._refused - 1))
        if resets_at is not None:
            pause = max(_MARGIN, resets_at - self._clock.wall() + _MARGIN)
        status = f"status {result.status}" if result.status else "no connection"
        why = f"({status}: {one_line(result.text, 80)})"
        now, left = self._clock.elapsed(), self._situation.deadline_left
        if left is not None and pause > left - (now - self._began):
            self._state = Done(
                f"Claude's service does not answer for {duration(pause)} {why}, and the time is up before",
                ending="service_for_now",
            )
            return
        self._wait = _Wait(now + pause, f"waits {duration(pause)} for Claude's service {why}")
        self._situation.note(self._wait.reason)

    def _charge(self, process: ClaudeProcess) -> None:
        """Charges what was not charged yet: by our own prices while a process runs, and by its own sum when
        it has ended, which is a running sum of the conversation. If more tokens went through the broker than
        the process says, such as by its shell, those count."""
        assert self._situation is not None
        stream, result, before = process.stream, process.stream.result, self._spent
        usd, tokens = stream.usd, stream.tokens
        stated = None if result is None else result.usd
        if stated is not None:
            usd = stated - before.usd if stated >= before.usd else stated
        if result is not None and result.tokens is not None:
            tokens = max(tokens, result.tokens - before.tokens)
        if self._broker is not None and self._broker.used.tokens - self._brokered.tokens > tokens:
            usd = max(usd, self._broker.used.usd - self._brokered.usd)
            tokens = self._broker.used.tokens - self._brokered.tokens
        more = _Cost(usd - self._charged.usd, tokens - self._charged.tokens)
        if abs(more.usd) > 1e-9 or more.tokens > 0:
            self._charged = _Cost(usd, max(tokens, self._charged.tokens))
            details = {"estimated": stated is None, "session": self.session, "model": self.model}
            self._situation.charge(more.usd, max(more.tokens, 0), details=details)

    def _end(self, process: ClaudeProcess) -> None:
        """Ends the process and charges its final cost."""
        process.end()
        self._charge(process)
        if (result := process.stream.result) is not None:
            self._spent = _Cost(result.usd or self._spent.usd, result.tokens or self._spent.tokens)
        self._process = None

    def _reset_conversation(self) -> None:
        self._announced, self.session, self._spent = False, None, _Cost()
