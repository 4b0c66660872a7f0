"""Starts a daemon that outlives the run."""

import os

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os._exit(0)
    os._exit(0)
os.wait()
