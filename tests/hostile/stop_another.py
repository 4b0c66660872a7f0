"""Stops another process."""

import os
import signal

os.kill(victim, signal.SIGSTOP)
os.kill(victim, signal.SIGCONT)
