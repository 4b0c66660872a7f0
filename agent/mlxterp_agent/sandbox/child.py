"""One worker with its warden and its pipes, seen from the supervisor.

Lives here: starting it, reading everything it writes without ever blocking it, ending it. Does not live here:
how long it may run and what its end means (`runner.py`), what the frames are (`child_messages.py`).

The supervisor never forks: `subprocess` starts the warden, and the warden starts the worker (`warden.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from mlxterp_agent.platform import child_environment
from mlxterp_agent.sandbox.child_messages import Frames
from mlxterp_agent.sandbox.jail import Policy, macos
from mlxterp_agent.sandbox.orphans import end_orphans, note_started
from mlxterp_agent.sandbox.scratch_files import WrittenFiles, copy_written_files, remove_tree
from mlxterp_agent.storage.project_files import create_in_project

TAIL = 64 * 1024
FILE = 1_000_000


class Capture:
    """One stream of a child: its end in memory, and from `to_file` on its beginning and end in a file.

    Attributes:
        total: bytes so far.
    """

    def __init__(self) -> None:
        self.total = 0
        self._head = bytearray()
        self._tail = bytearray()
        self._file: BinaryIO | None = None

    def feed(self, chunk: bytes) -> None:
        """Takes what was read from the pipe."""
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
        """Writes the beginning of the stream to this file, what came before included. A copy for people:
        nothing depends on it."""
        try:
            fd = create_in_project(path.parent, path.name)
        except OSError:
            return  # The disk is full, or the directory was removed.
        self._file = open(fd, "wb", buffering=0)  # noqa: SIM115 - closed by `end`
        self._write(bytes(self._head))
        self._head.clear()

    def end(self) -> None:
        """Ends the file: with how much of the stream is left out, and with its last 64 kB."""
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
            # The disk is full: the experiment continues, and the journal will report it.
            self._file.close()
            self._file = None


_HERE = Path(__file__).resolve().parent
JAIL = _HERE / "jail" / "linux.py"
_CHUNK = 1 << 16
_DRAIN = 0.5
_LAST_WAIT = 10.0
_LAST_WAIT_JAILED = 0.5
_SIGNALS = frozenset({0, *signal.valid_signals()})
_MAX_FILE = 4_000_000_000
_NOT_LINKED = ["report.html", "report.md", "report_files"]
"""What the supervisor makes from the log: an experiment's own `report.html` takes its place in the scratch
directory."""


def warden_command(
    command: Sequence[str],
    *,
    lifeline: int,
    when_alone: Literal["kill", "ask"],
    status: int | None = None,
    outbox: int | None = None,
) -> list[str]:
    """The command line that starts `command` under a warden; what the descriptors mean is in `warden.py`."""
    fds = ["-" if fd is None else str(fd) for fd in (lifeline, status, outbox)]
    return [sys.executable, "-I", "-S", "-B", str(_HERE / "warden.py"), *fds, when_alone, *command]


class Exit(NamedTuple):
    """How the worker ended, as its warden saw it."""

    code: int
    signal: int
    escaped: int
    peak_mb: float
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class ChildStart:
    """What a worker begins with.

    Attributes:
        project: the investigation.
        source, setup_sha: the sealed setup.py and its digest.
        tmp: its directory for temporary files, made for it and removed at its end.
        policy: of its jail; None for none.
        secret, fixed: files that it must not be able to read, and not to write; it tries once it is jailed.
    """

    project: Path
    source: bytes
    setup_sha: str
    tmp: Path
    policy: Policy | None
    secret: Path
    fixed: Path

    def program(self) -> list[str]:
        """The command line of the worker. On macOS it runs in its jail from the start."""
        program = [sys.executable, str(_HERE / "worker.py")]
        if self.policy is None or sys.platform != "darwin":
            return program
        return macos.command(self.policy, program)

    def environment(self) -> dict[str, str]:
        """In a jail there is no network, and Hugging Face's library is not to try it."""
        return {} if self.policy is None else {"HF_HUB_OFFLINE": "1"}

    def order(self) -> dict[str, Any]:
        """The first order, as `worker.py` reads it."""
        jail: dict[str, Any] | None = None
        if self.policy is not None:
            jail = {
                "module": str(JAIL) if sys.platform == "linux" else None,
                "read": self.policy.roots(),
                "write": self.policy.write,
                "secret": str(self.secret),
                "fixed": str(self.fixed),
            }
        return {
            "project": str(self.project),
            "source": self.source.decode("latin-1"),
            "sha": self.setup_sha,
            "max_file": None if self.policy is not None and self.policy.prepares else _MAX_FILE,
            "jail": jail,
        }


class Child:
    """A worker that imports setup.py at once and then waits for `go`.

    Its methods and properties may be used from any thread; a thread of its own reads the pipes.

    Attributes:
        setup_sha: digest of the setup.py it imports.
        frames: what it reported.
        pid: of the worker; None until the warden has started it.
        exit: None while it runs, and when the warden was lost (then `ended` is true).
        orphans: processes that were left when the warden was lost, and were ended by `close`.
    """

    def __init__(self, start: ChildStart) -> None:
        tmp = start.tmp
        self.setup_sha = start.setup_sha
        self.frames = Frames()
        self.pid: int | None = None
        self.exit: Exit | None = None
        self.setup_seconds: float | None = None
        self._out, self._err = Capture(), Capture()
        self._tmp = tmp
        self._scratch = tmp / "scratch"
        self._jailed = start.policy is not None
        self._wrapped = start.policy is not None and sys.platform == "darwin"
        self._changed = threading.Condition()
        self._ended = False
        self._began = time.monotonic()
        self.orphans = 0
        tmp.mkdir(mode=0o700)
        self._outbox, outbox = os.pipe()
        lifeline, self._lifeline = os.pipe()
        self._status, status = os.pipe()
        self._wake, self._waker = os.pipe()
        try:
            self._process = subprocess.Popen(
                warden_command(
                    start.program(),
                    lifeline=lifeline,
                    status=status,
                    outbox=outbox,
                    when_alone="kill",
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=start.project,
                env=child_environment(os.environ, outbox=outbox, tmp=tmp) | start.environment(),
                start_new_session=True,
                pass_fds=(lifeline, status, outbox),
            )
        finally:
            for fd in (lifeline, status, outbox):
                os.close(fd)
        self._began_at = note_started(self._process.pid)
        self._send(start.order())
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
        """Whether it is gone and everything it wrote is read."""
        return self._ended

    @property
    def jail_error(self) -> str | None:
        """Why there is no jail; None if there is one, or none was asked for."""
        if self._wrapped and self.frames.facts is None and self.stderr.startswith("sandbox-exec:"):
            return self.stderr.strip().splitlines()[0]
        return self.frames.jail_error

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
        """The last line it printed: during a download, the progress."""
        return self._err.last_line() or self._out.last_line()

    def go(self, source: bytes, sha: str, run_dir: Path, *, explore: Sequence[int] | None = None) -> None:
        """Starts the experiment; what it prints goes to stdout.txt and stderr.txt in `run_dir`.

        Args:
            explore: the pairs of `setup.dataset` that it sees; None for all.
        """
        with self._changed:
            self._out.to_file(run_dir / "stdout.txt")
            self._err.to_file(run_dir / "stderr.txt")
            self.frames.expect_entries()
        self._send(
            {
                "source": source.decode("latin-1"),
                "sha": sha,
                "scratch": str(self._scratch),
                "not_linked": _NOT_LINKED,
                "explore": None if explore is None else list(explore),
            }
        )

    def wait(self, ready: Callable[[], bool], timeout: float) -> bool:
        """Waits until something that was read makes `ready` true, at most this long in real time."""
        with self._changed:
            return self._changed.wait_for(ready, timeout)

    def terminate(self) -> None:
        """Asks the worker's process group to end."""
        self._order_warden(b"T")

    def kill(self) -> None:
        """Ends the worker's group and everything else it has started; returns when it is gone, at most 10 s
        later, half a second in a jail, where it cannot start anything."""
        self._order_warden(b"K")
        if not self.wait(lambda: self._ended, _LAST_WAIT_JAILED if self._jailed else _LAST_WAIT):
            if self.pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            self._process.kill()
            self.wait(lambda: self._ended, _DRAIN)

    def close(self, *, files_to: Path | None = None) -> WrittenFiles:
        """Ends it if it still runs, and frees everything it used.

        Args:
            files_to: where the files go that the experiment wrote; by default they are lost.
        """
        if not self._ended:
            self.kill()
        if self.exit is None and self.pid is not None:
            # Without its warden the worker may still run.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            self.orphans = end_orphans(self._began_at)
        self._process.wait()
        os.write(self._waker, b".")
        self._pump.join()
        for fd in (self._lifeline, self._outbox, self._status, self._wake, self._waker):
            os.close(fd)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        written = WrittenFiles() if files_to is None else copy_written_files(self._scratch, files_to)
        remove_tree(self._tmp)
        return written

    def _send(self, order: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def _order_warden(self, order: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._lifeline, order)
        # The experiment may have stopped its warden. `send_signal` checks that the process is still ours.
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
                    with self._changed:
                        if chunk:
                            takers[key.fd](chunk)
                        else:
                            selector.unregister(key.fd)
                        self._changed.notify_all()
                    if not chunk and key.fd == self._status:
                        until = time.monotonic() + _DRAIN
        with self._changed:
            self.frames.end()
            self._out.end()
            self._err.end()
            self._ended = True
            self._changed.notify_all()

    def _take_frames(self, chunk: bytes) -> None:
        self.frames.feed(chunk)
        if self.setup_seconds is None and (
            self.frames.facts is not None or self.frames.setup_error is not None
        ):
            self.setup_seconds = time.monotonic() - self._began

    def _take_status(self, chunk: bytes) -> None:
        # Two short lines, each written at once by the warden.
        # An experiment without a jail can write there too: what cannot be read is not the warden's.
        for line in chunk.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                facts = json.loads(line)
                if "pid" in facts:
                    self.pid = self.pid or int(facts["pid"])
                else:
                    numbers = (int(facts[name]) for name in ("code", "signal", "escaped", "peak"))
                    code, signal_number, escaped, peak = numbers
                    if signal_number in _SIGNALS:
                        self.exit = Exit(code, signal_number, escaped, peak / 1024, float(facts["cpu"]))
