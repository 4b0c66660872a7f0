"""Starts many processes at once (bounded)."""

import os

pids = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pids.append(pid)
for pid in pids:
    os.waitpid(pid, 0)
