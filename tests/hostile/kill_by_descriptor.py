"""Ends another process by a process descriptor."""

import os
import signal

signal.pidfd_send_signal(os.pidfd_open(victim), signal.SIGKILL)
