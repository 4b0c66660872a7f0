"""Starts a program by posix_spawn."""

import os

pid = os.posix_spawn("/bin/true", ["true"], {})
os.waitpid(pid, 0)
