"""Stands between the supervisor and a process it does not trust: starts it, signals its group, ends what it
leaves behind, reports how it ended.

Run as a program, standard library only:

    python warden.py LIFELINE STATUS OUTBOX kill|ask COMMAND ...

It never loads anything of the command's. It is as small as it can be, because it is the one process that must
outlive the command. On Linux it is the *subreaper*: whatever the command starts, also a daemon that forked
twice and took its own session, becomes its child, and `wait` tells when none is left. Elsewhere it ends the
process group, and the supervisor looks for the rest.

LIFELINE is a pipe whose writing end only the supervisor has. A byte on it is an order: "I" interrupts the
command (SIGINT), "T" asks its group to end, "K" ends it. Its end of file, which comes when the supervisor
ends, however it ends, kills the group at once ("kill") or asks it first ("ask").

STATUS is a pipe that gets one line with the command's process id when it starts and one with how it ended, or
"-": then the warden ends as the command did. OUTBOX is a pipe that only the command shall hold, or "-".

Covers: everything the command starts that does not kill its warden first. Does not cover: that.
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
WARDEN_ENV = "AUTOINTERP_WARDEN"
WHEN_ALONE = {"kill": ((0.0, "K"),), "ask": ((0.0, "I"), (2.0, "T"), (3.0, "K"))}
"""What the end of the lifeline does: orders, each after so many seconds."""


def main(lifeline: int, status: "int | None", outbox: "int | None", alone: str, command: "list[str]") -> None:
    for fd in (lifeline, status):
        if fd is not None:
            os.set_inheritable(fd, False)  # noqa: FBT003
    subreaper = _become_subreaper()
    wake, waker = os.pipe()
    for fd in (wake, waker):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    environment = {**os.environ, WARDEN_ENV: str(os.getpid())}
    pid = os.posix_spawnp(command[0], command, environment, setpgroup=0)
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    if status is not None:
        os.write(status, b'{"pid": %d}\n' % pid)
    _let_go_of_pipes(outbox)
    code, killed_by, peak, computed = _watch(pid, lifeline, wake, WHEN_ALONE[alone])
    escaped = _sweep(pid) if subreaper else _end_group(pid)
    if status is not None:
        report = b'{"code": %d, "signal": %d, "escaped": %d, "peak": %d, "cpu": %.2f}\n'
        os.write(status, report % (code, killed_by, escaped, peak, computed))
        return
    if killed_by:
        if killed_by != signal.SIGKILL:
            signal.signal(killed_by, signal.SIG_DFL)
        os.kill(os.getpid(), killed_by)
    sys.exit(code)


def _become_subreaper() -> bool:
    if sys.platform != "linux":
        return False
    import ctypes

    return bool(ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0) == 0)


def _let_go_of_pipes(outbox: "int | None") -> None:
    """Leaves the pipes to the command, so that their end of file means what it says. Standard error stays."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    if outbox is not None:
        os.close(outbox)


def _watch(
    pid: int, lifeline: int, wake: int, when_alone: "tuple[tuple[float, str], ...]"
) -> "tuple[int, int, int, float]":
    """Waits for the command and carries out orders: exit code, signal, peak memory in kB, seconds of CPU."""
    poll = select.poll()
    poll.register(lifeline, select.POLLIN | select.POLLHUP)
    poll.register(wake, select.POLLIN)
    due: list[tuple[float, str]] = []
    while True:
        pause = 1000 * max(0.0, due[0][0] - time.monotonic()) if due else None
        for fd, _ in poll.poll(pause):
            if fd == wake:
                os.read(wake, 4096)
                continue
            orders = os.read(lifeline, 64).decode("ascii", "replace")
            for order in orders:
                _carry_out(order, pid)
            if not orders:
                poll.unregister(lifeline)
                due = [(time.monotonic() + after, order) for after, order in when_alone]
        while due and due[0][0] <= time.monotonic():
            _carry_out(due.pop(0)[1], pid)
        while True:
            ended, how, usage = os.wait4(-1, os.WNOHANG)
            if ended == pid:
                code = os.waitstatus_to_exitcode(how)
                peak = usage.ru_maxrss if sys.platform == "linux" else usage.ru_maxrss // 1024
                return max(code, 0), max(-code, 0), peak, usage.ru_utime + usage.ru_stime
            if not ended:
                break


def _carry_out(order: str, pid: int) -> None:
    if order == "I":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGINT)
    elif order == "T":
        _signal(pid, signal.SIGTERM)
        _signal(pid, signal.SIGCONT)
    elif order == "K":
        _signal(pid, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _end_group(group: int) -> int:
    _signal(group, signal.SIGKILL)
    return 0


def _sweep(group: int) -> int:
    """Ends everything below this process until `wait` finds no child; how many of them had left the command's
    group.

    Helpers that end by themselves when the command is gone (multiprocessing has one) get a moment to do so.
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
    fds = [None if each == "-" else int(each) for each in sys.argv[1:4]]
    assert fds[0] is not None
    main(fds[0], fds[1], fds[2], sys.argv[4], sys.argv[5:])
