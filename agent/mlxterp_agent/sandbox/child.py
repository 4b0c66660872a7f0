"""One worker with its warden and its pipes, seen from the supervisor.

Lives here: starting it, reading everything it says without ever blocking it, ending it. Does not live here:
how long it may run and what its end means (`runner.py`), what the frames are (`frames.py`).

The supervisor never forks: `subprocess` starts the warden, and the warden starts the worker (`warden.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mlxterp_agent.platform import child_environment
from mlxterp_agent.sandbox.frames import Frames

TAIL = 64 * 1024
FILE = 1_000_000


class Capture:
    """One stream of a child. Fed by the pump; `to_file` may come later, what came before is written then.

    Attributes:
        total: bytes so far.
    """

    def __init__(self) -> None:
        self.total = 0
        self._head = bytearray()
        self._tail = bytearray()
        self._file: BinaryIO | None = None

    def feed(self, chunk: bytes) -> None:
        """Takes what the pipe gave."""
        room = max(0, FILE - TAIL - self.total)
        self.total += len(chunk)
        if room and self._file is None:
            self._head += chunk[:room]
        elif room:
            self._write(chunk[:room])
        self._tail += chunk
        if len(self._tail) > 2 * TAIL:
            del self._tail[:-TAIL]

    def to_file(self, path: Path) -> None:
        """From now on the beginning of the stream goes to this file. It is a copy for people: nothing depends
        on it."""
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by `end`
        self._write(bytes(self._head))
        self._head.clear()

    def end(self) -> None:
        """The stream is over: what was left out of the file is named there, and its end follows."""
        if self._file is None:
            return
        left_out = self.total - (FILE - TAIL)
        if left_out > 0:
            shown = bytes(self._tail[-min(TAIL, left_out) :])
            if left_out > len(shown):
                self._write(f"\n[… {left_out - len(shown):,} bytes are left out here …]\n".encode())
            self._write(shown)
        if self._file is not None:
            self._file.close()

    def text(self) -> str:
        """The last 64 kB."""
        return bytes(self._tail[-TAIL:]).decode("utf-8", "replace")

    def last_line(self) -> str:
        """The last line that is not empty; a carriage return, as progress bars use it, ends one too."""
        lines = re.split(r"[\r\n]+", bytes(self._tail[-2000:]).decode("utf-8", "replace"))
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _write(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(data)
        except OSError:
            # The disk is full: the experiment goes on, and the journal will say so.
            self._file.close()
            self._file = None


_HERE = Path(__file__).resolve().parent
_CHUNK = 1 << 16
_DRAIN = 0.5
_LAST_WAIT = 10.0


class Exit(NamedTuple):
    """How the worker ended, as its warden saw it."""

    code: int
    signal: int
    escaped: int
    peak_mb: float


class Child:
    """A worker that imports setup.py at once and then waits for `go`.

    `with_news` and the properties below may be used from any thread; a thread of its own reads the pipes.

    Attributes:
        setup_sha: digest of the setup.py it was told to import.
        frames: what it reported.
        pid: of the worker; None until the warden has started it.
        exit: None while it runs, and when the warden was lost (then `ended` is true).
    """

    def __init__(self, project: Path, setup: Path, setup_sha: str, tmp: Path) -> None:
        self.setup_sha = setup_sha
        self.frames = Frames()
        self.pid: int | None = None
        self.exit: Exit | None = None
        self.setup_seconds: float | None = None
        self._out, self._err = Capture(), Capture()
        self._tmp = tmp
        self._news = threading.Condition()
        self._ended = False
        self._began = time.monotonic()
        tmp.mkdir(mode=0o700)
        self._outbox, outbox = os.pipe()
        lifeline, self._lifeline = os.pipe()
        self._status, status = os.pipe()
        self._wake, self._waker = os.pipe()
        warden = [sys.executable, "-I", "-S", "-B", str(_HERE / "warden.py")]
        try:
            self._process = subprocess.Popen(
                [*warden, str(lifeline), str(status), str(outbox), str(_HERE / "worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=project,
                env=child_environment(os.environ, outbox=outbox, tmp=tmp),
                start_new_session=True,
                pass_fds=(lifeline, status, outbox),
            )
        finally:
            for fd in (lifeline, status, outbox):
                os.close(fd)
        self._order(project=str(project), setup=str(setup), sha=setup_sha)
        self._pump = threading.Thread(
            target=self._read_pipes, name=f"autointerp-pump-{tmp.name}", daemon=True
        )
        self._pump.start()

    @property
    def ready(self) -> bool:
        """Whether it has imported setup.py and waits."""
        return self.frames.facts is not None and not self._ended

    @property
    def ended(self) -> bool:
        """Whether it is gone and everything it said is read."""
        return self._ended

    @property
    def output_bytes(self) -> int:
        return self._out.total + self._err.total

    @property
    def stdout(self) -> str:
        return self._out.text()

    @property
    def stderr(self) -> str:
        return self._err.text()

    @property
    def last_line(self) -> str:
        """What it printed last: during a download, the progress."""
        return self._err.last_line() or self._out.last_line()

    def go(self, experiment: Path, sha: str, run_dir: Path) -> None:
        """Starts the experiment in these bytes; what it prints goes to stdout.txt and stderr.txt in
        `run_dir`."""
        with self._news:
            self._out.to_file(run_dir / "stdout.txt")
            self._err.to_file(run_dir / "stderr.txt")
            self.frames.expect_entries()
        self._order(experiment=str(experiment), sha=sha)

    def wait(self, ready: Callable[[], bool], timeout: float) -> bool:
        """Waits for news that make `ready` true, at most this long in real time."""
        with self._news:
            return self._news.wait_for(ready, timeout)

    def terminate(self) -> None:
        """Asks the worker's process group to end."""
        self._tell_warden(b"T")

    def kill(self) -> None:
        """Ends the worker's group and everything else it has started; returns when it is gone, at most 10 s
        later."""
        self._tell_warden(b"K")
        if not self.wait(lambda: self._ended, _LAST_WAIT):
            self._process.kill()
            self.wait(lambda: self._ended, _DRAIN)

    def close(self) -> None:
        """Ends it if it still runs, and frees everything it used."""
        if not self._ended:
            self.kill()
        if self.exit is None and self.pid is not None:
            # Without its warden the worker may still run.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        os.write(self._waker, b".")
        self._pump.join()
        for fd in (self._lifeline, self._outbox, self._status, self._wake, self._waker):
            os.close(fd)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        shutil.rmtree(self._tmp, ignore_errors=True)

    def _order(self, **order: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def _tell_warden(self, order: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._lifeline, order)
        # The experiment may have stopped its warden; `send_signal` knows whether it is still ours to signal.
        self._process.send_signal(signal.SIGCONT)

    def _read_pipes(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        takers: dict[int, Callable[[bytes], None]] = {
            self._process.stdout.fileno(): self._out.feed,
            self._process.stderr.fileno(): self._err.feed,
            self._outbox: self._take_frames,
            self._status: self._take_status,
        }
        until: float | None = None
        with selectors.DefaultSelector() as selector:
            for fd in takers:
                os.set_blocking(fd, False)
                selector.register(fd, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            # The worker's end is the status pipe's end of file. A process that escaped may hold the other
            # pipes open for ever: they are read for half a second more and then left.
            while len(selector.get_map()) > 1 and (until is None or time.monotonic() < until):
                for key, _ in selector.select(None if until is None else _DRAIN):
                    if key.fd == self._wake:
                        until = 0.0
                        continue
                    chunk = os.read(key.fd, _CHUNK)
                    with self._news:
                        if chunk:
                            takers[key.fd](chunk)
                        else:
                            selector.unregister(key.fd)
                        self._news.notify_all()
                    if not chunk and key.fd == self._status:
                        until = time.monotonic() + _DRAIN
        with self._news:
            self.frames.end()
            self._out.end()
            self._err.end()
            self._ended = True
            self._news.notify_all()

    def _take_frames(self, chunk: bytes) -> None:
        self.frames.feed(chunk)
        if self.setup_seconds is None and (
            self.frames.facts is not None or self.frames.setup_error is not None
        ):
            self.setup_seconds = time.monotonic() - self._began

    def _take_status(self, chunk: bytes) -> None:
        # Two short lines, each written at once by the warden.
        for line in chunk.splitlines():
            facts = json.loads(line)
            if "pid" in facts:
                self.pid = facts["pid"]
            else:
                self.exit = Exit(facts["code"], facts["signal"], facts["escaped"], facts["peak"] / 1024)
