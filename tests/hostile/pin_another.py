"""Pins another process to one core."""

import os

os.sched_setaffinity(victim, {0})
