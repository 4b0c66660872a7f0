"""What the operating system is asked: clocks, signals, safe reads, environments of children, running
processes.

Does not live here: writing files durably (`mlxterp._files`), starting processes (`sandbox/child.py`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

from mlxterp.autointerpret.log import OUTBOX_ENV
from mlxterp_agent.exit_codes import DiskFull


class Clock(Protocol):
    """The three clocks that a supervisor needs."""

    def monotonic(self) -> float:
        """Seconds that the machine was awake, from an arbitrary start."""

    def elapsed(self) -> float:
        """Seconds that passed, sleep included, from an arbitrary start; starts anew at a reboot."""

    def wall(self) -> float:
        """Seconds since 1970."""


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def elapsed(self) -> float:
        # Python's monotonic clock stops during sleep on both systems.
        if sys.platform == "linux":
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        if sys.platform == "darwin":
            return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class FakeClock:
    """A clock that a test moves by hand."""

    def __init__(self, wall: float = 1_790_000_000.0) -> None:
        self._awake = 0.0
        self._elapsed = 0.0
        self._wall = wall

    def monotonic(self) -> float:
        return self._awake

    def elapsed(self) -> float:
        return self._elapsed

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        """Time passes while the machine is awake."""
        self._awake += seconds
        self.sleep(seconds)

    def sleep(self, seconds: float) -> None:
        """Time passes while the machine sleeps."""
        self._elapsed += seconds
        self._wall += seconds

    def set_wall(self, wall: float) -> None:
        """The wall clock is set; no time passes."""
        self._wall = wall


_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NAMES = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP: the terminal was closed",
}


class Signals:
    """While it is entered, SIGINT, SIGTERM and SIGHUP end nothing by themselves: `received` names the first
    one.

    An append or a commit that has begun is completed; loops that wait check `received` ten times a second. A
    second Ctrl-C does the same as the first.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        for each in _HANDLED:
            self._before[each] = signal.signal(each, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def reason(self) -> str | None:
        """Why to stop; None while no signal came."""
        return None if self.received is None else f"interrupted by {self.received}"

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.received = self.received or _NAMES[signal.Signals(number)]


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_PASSED_ON = re.compile(
    r"PATH|HOME|LANG|LC_\w+|TERM|TZ|VIRTUAL_ENV|XDG_CACHE_HOME|MLXTERP_\w+|OPENBLAS_\w+|OMP_NUM_THREADS|PIP_\w+"
    r"|SSL_CERT\w*|REQUESTS_CA_BUNDLE|HF_\w+|(?:https?|no|all)_proxy|(?:HTTPS?|NO|ALL)_PROXY"
)
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
"""What fixes the number of BLAS threads; as in `mlxterp.core.linux_blas`, which cannot be imported without
mlx."""
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"://[^/@\s]+@")


class NotRegular(Exception):
    """This path is a link, a directory or a pipe instead of a file; or the file is larger than allowed.

    The message continues the sentence "experiment.py is …".
    """


def read_regular(path: Path, *, limit: int | None = None) -> bytes:
    """The bytes of a regular file. A symbolic link is not followed, and a pipe does not block.

    Raises:
        NotRegular: it is none, or too large.
        OSError: the file is missing or cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        if problem.errno in (errno.ELOOP, errno.EMLINK):
            raise NotRegular("a symbolic link, and it must be a file of its own") from None
        if problem.errno == errno.ENXIO:
            raise NotRegular("a socket or a device, and it must be a file") from None
        raise
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegular("not a regular file")
        if limit is not None and status.st_size > limit:
            raise NotRegular(f"{status.st_size:,} bytes long, and at most {limit:,} are read")
        data = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(data) > limit:
        raise NotRegular(f"longer than {limit:,} bytes")
    return data


def read_or_none(path: Path) -> bytes | None:
    """The bytes of a regular file; None if there is none, or it cannot be read."""
    try:
        return read_regular(path)
    except (OSError, NotRegular):
        return None


@contextlib.contextmanager
def explain_disk_full(path: Path) -> Iterator[None]:
    """Turns "no space left" and "quota exceeded" into DiskFull; other errors pass."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in _FULL:
            raise
        raise DiskFull(
            f"could not write {path}: {os.strerror(problem.errno or errno.ENOSPC)}. "
            "Nothing that was logged is lost. Free some space there, then start again."
        ) from problem


def is_disk_full(problem: OSError) -> bool:
    """Whether this is "no space left on device" or "quota exceeded"."""
    return problem.errno in _FULL


def child_environment(parent: Mapping[str, str], *, outbox: int, tmp: Path) -> dict[str, str]:
    """The environment of an experiment: an allow-list, without what looks like a secret.

    A name that holds KEY, TOKEN, SECRET, PASSWORD or CREDENTIAL is left out even if the list has it, and so
    is a URL with a user name in it, such as a private package index. `AUTOINTERP_*` is left out, except the
    outbox.

    An experiment and its replay give the same bits, whatever else runs: matrix products are computed with one
    thread, for the whole life of the process, or with as many as the parent's environment says.

    On Linux mlx compiles nothing, unless the parent's MLX_DISABLE_COMPILE allows it: on the CPU it would call
    g++ again for each run's TMPDIR, which costs a second, and load what it finds there.
    """
    passed = {name: value for name, value in without_secrets(parent).items() if _PASSED_ON.fullmatch(name)}
    if not any(passed.get(name) for name in BLAS_THREADS):
        passed["OPENBLAS_NUM_THREADS"] = "1"
    if sys.platform == "linux":
        passed["MLX_DISABLE_COMPILE"] = parent.get("MLX_DISABLE_COMPILE", "1")
    return {**passed, "TMPDIR": str(tmp), "PYTHONHASHSEED": "0", OUTBOX_ENV: f"fd:{outbox}"}


def without_secrets(parent: Mapping[str, str]) -> dict[str, str]:
    """An environment without what looks like a secret, by its name or by its value."""
    return {
        name: value
        for name, value in parent.items()
        if not _SECRET_NAME.search(name) and not _SECRET_VALUE.search(value)
    }


def began_at() -> float:
    """When this process began, on the clock `SystemClock.elapsed`."""
    import psutil

    age = time.time() - psutil.Process().create_time()
    return SystemClock().elapsed() - min(max(0.0, age), 3600.0)


KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS")
"""The variables that authorise requests to the service. `take_keys` gives them."""
_KEYS_FD = "AUTOINTERP_KEYS_FD"
_PR_SET_DUMPABLE = 4


def hide_keys() -> None:
    """Takes the keys out of what the kernel shows of this process to others of the same user.

    What a process was started with stays readable in /proc while it lives, whatever it removes from its
    environment. So the command starts itself again without the keys, and gets them through a pipe:
    `take_keys` has them then, and its environment has none. On Linux it is not dumpable any more: its memory
    is not readable either, except by root.
    """
    fd = os.environ.pop(_KEYS_FD, "")
    if fd.isdigit():
        with contextlib.suppress(OSError, ValueError), open(int(fd), "rb") as pipe:
            _taken.update(json.loads(pipe.read()))
        _forbid_dumps()
        return
    keys = {name: os.environ[name] for name in KEYS if os.environ.get(name)}
    if not keys:
        return
    reader, writer = os.pipe()
    os.write(writer, json.dumps(keys).encode())
    os.close(writer)
    os.set_inheritable(reader, True)  # noqa: FBT003
    rest = {name: value for name, value in os.environ.items() if name not in keys}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**rest, _KEYS_FD: str(reader)})


_taken: dict[str, str] = {}


def take_keys() -> dict[str, str]:
    """The keys that this process was given. They leave its environment: no child gets one by inheritance."""
    for name in KEYS:
        if value := os.environ.pop(name, ""):
            _taken[name] = value
    return dict(_taken)


def _forbid_dumps() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def boot_id() -> str:
    """Names this boot of the machine: clocks that count from the boot are comparable only within it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        import psutil

        return f"booted at {psutil.boot_time():.0f}"


def oom_kills() -> int | None:
    """How often the kernel ended a process for lack of memory since the boot; None where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return counts[0] if counts else None


class Descendants:
    """The processes below one process, remembered while it lives, so that those that left it can be ended
    afterwards.

    Needed where the kernel has no subreaper (macOS): `observe` sees what runs at that moment, and a process
    that forks away between two observations is missed. A process is known by its id *and* its start time,
    never by the id alone.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._seen: dict[int, float] = {}

    def observe(self) -> None:
        """Remembers the processes that are there now."""
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            for process in psutil.Process(self._root).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    self._seen[process.pid] = process.create_time()

    def end(self) -> int:
        """Ends those that still run, and returns how many there were."""
        import psutil

        ended = 0
        for pid, started in self._seen.items():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
                process = psutil.Process(pid)
                if process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE:
                    process.send_signal(signal.SIGKILL)
                    ended += 1
        return ended
