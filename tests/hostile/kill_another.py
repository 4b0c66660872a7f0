"""Ends another process."""

import os
import signal

os.kill(victim, signal.SIGKILL)
