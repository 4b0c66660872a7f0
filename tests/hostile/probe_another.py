"""Asks whether another process is there."""

import os

os.kill(victim, 0)
