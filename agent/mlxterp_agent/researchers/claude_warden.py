"""Stands between the supervisor and `claude`, so that an agent does not go on, and cost money, without one.

Run as a program (`python claude_warden.py LIFELINE COMMAND ...`), standard library only. The lifeline is a
pipe whose writing end only the supervisor has: its end of file says that the supervisor is gone, however that
went. Signals are passed on, and the end is that of the command.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading

PATIENCE = ((signal.SIGINT, 2.0), (signal.SIGTERM, 1.0))


def main(lifeline: int, command: "list[str]") -> None:
    os.set_inheritable(lifeline, False)  # noqa: FBT003
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: child.send_signal(number))
    threading.Thread(target=end_with, args=(lifeline, child), daemon=True).start()
    code = child.wait()
    if code < 0:
        if -code in (signal.SIGINT, signal.SIGTERM):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def end_with(lifeline: int, child: "subprocess.Popen[bytes]") -> None:
    select.select([lifeline], [], [])
    for number, seconds in PATIENCE:
        child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
            break
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
