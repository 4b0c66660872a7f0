"""One `claude -p` process: started in a group of its own, read by threads of its own, ended for certain.

Lives here: pipes, signals, the sweep of what it leaves behind. What its words mean is `claude_events.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, BinaryIO

from mlxterp_agent.platform import Descendants
from mlxterp_agent.researchers.claude_events import Stream
from mlxterp_agent.text import plain

_WARDEN = Path(__file__).resolve().parent / "claude_warden.py"
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
                [sys.executable, "-I", "-S", "-B", str(_WARDEN), str(lifeline), *command],
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

    def look(self) -> None:
        """Remembers what it has started, so that it can be ended too; a walk over the processes every few
        seconds."""
        if time.monotonic() - self._looked > _LOOK_EVERY:
            self._looked = time.monotonic()
            self._left.look()

    def end(self, *, patience: float = 1.0) -> None:
        """Ends it: asked to twice, then killed; and whatever it has started, wherever that went."""
        self._left.look()
        for number, seconds in ((signal.SIGINT, patience), (signal.SIGTERM, 0.4), (signal.SIGKILL, 5.0)):
            if self._process.poll() is not None:
                break
            self._signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self._signal(signal.SIGKILL)
        self._left.end()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        for thread in self._threads:
            thread.join(0.5)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if number == signal.SIGINT:
                self._process.send_signal(number)
            else:
                os.killpg(self._process.pid, number)

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
