"""Ends another process by the number of its thread."""

import ctypes

assert ctypes.CDLL(None, use_errno=True).tgkill(victim, victim, 9) == 0
