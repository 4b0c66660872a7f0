"""Sends a signal to every process it may."""

import os
import signal

signal.signal(signal.SIGURG, signal.SIG_IGN)
os.kill(victim, signal.SIGURG)
