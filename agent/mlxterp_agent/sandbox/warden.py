"""Stands between the supervisor and a worker: starts it, signals its group, ends what it leaves behind, says
how it ended.

Run as a program (`python warden.py LIFELINE STATUS OUTBOX WORKER`), standard library only; it never loads
anything of the experiment's. It is as small as it can be, because it is the one process that must outlive the
worker. On Linux it is the *subreaper*: whatever the experiment starts, also a daemon that forked twice and
took its own session, becomes its child, and `wait` tells when none is left. Elsewhere it ends the process
group, and the supervisor looks for the rest.

The lifeline is a pipe whose writing end only the supervisor has: "T" asks the group to end, "K" ends it, and
so does the end of file, which comes when the supervisor dies, however it dies.

On the status pipe: one line with the worker's process id when it starts, one with how it ended. Covers:
everything the worker starts that does not kill its warden first. Does not cover: that (`jail.py`).
"""

import contextlib
import os
import select
import signal
import sys
import time

SUBREAPER = 36
LINGER = 0.2
SWEEP = 5.0


def main(lifeline: int, status: int, outbox: int, worker: str) -> None:
    for fd in (lifeline, status):
        os.set_inheritable(fd, False)  # noqa: FBT003
    subreaper = _become_subreaper()
    wake, waker = os.pipe()
    for fd in (wake, waker):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    command = [sys.executable, worker, str(os.getpid())]
    pid = os.posix_spawn(sys.executable, command, os.environ, setpgroup=0)
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    os.write(status, b'{"pid": %d}\n' % pid)
    _let_go_of_pipes(outbox)
    code, killed_by, peak = _watch(pid, lifeline, wake)
    escaped = _sweep(pid) if subreaper else _end_group(pid)
    report = b'{"code": %d, "signal": %d, "escaped": %d, "peak": %d}\n'
    os.write(status, report % (code, killed_by, escaped, peak))


def _become_subreaper() -> bool:
    if sys.platform != "linux":
        return False
    import ctypes

    return bool(ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0) == 0)


def _let_go_of_pipes(outbox: int) -> None:
    """Leaves the pipes to the worker, so that their end of file means what it says. Standard error stays."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    os.close(outbox)


def _watch(pid: int, lifeline: int, wake: int) -> "tuple[int, int, int]":
    """Waits for the worker and passes signals on: exit code, signal, peak memory in kB."""
    poll = select.poll()
    poll.register(lifeline, select.POLLIN | select.POLLHUP)
    poll.register(wake, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == wake:
                os.read(wake, 4096)
                continue
            orders = os.read(lifeline, 64)
            if not orders:
                poll.unregister(lifeline)
            if not orders or b"K" in orders:
                _signal(pid, signal.SIGKILL)
            elif b"T" in orders:
                _signal(pid, signal.SIGTERM)
                _signal(pid, signal.SIGCONT)
        while True:
            ended, how, usage = os.wait4(-1, os.WNOHANG)
            if ended == pid:
                code = os.waitstatus_to_exitcode(how)
                peak = usage.ru_maxrss if sys.platform == "linux" else usage.ru_maxrss // 1024
                return max(code, 0), max(-code, 0), peak
            if not ended:
                break


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _end_group(group: int) -> int:
    _signal(group, signal.SIGKILL)
    return 0


def _sweep(group: int) -> int:
    """Ends everything below this process until `wait` finds no child; how many of them had left the worker's
    group.

    Helpers that end by themselves when the worker is gone (multiprocessing has one) get a moment to do so.
    """
    start, escaped = time.monotonic(), set()
    while time.monotonic() < start + SWEEP:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            break
        if time.monotonic() > start + LINGER:
            for pid, itsgroup in _below(os.getpid()):
                if itsgroup != group:
                    escaped.add(pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return len(escaped)


def _below(root: int) -> "list[tuple[int, int]]":
    """Process id and group of every living descendant, from /proc."""
    children: dict[int, list[tuple[int, int]]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # The command's name, in brackets, may itself hold brackets and spaces.
                state, parent, group = file.read().rpartition(b")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if state != b"Z":
            children.setdefault(int(parent), []).append((int(name), int(group)))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [pid for pid, _ in below]
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
