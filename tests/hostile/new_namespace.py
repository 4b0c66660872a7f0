"""Makes a user namespace, where it would be root."""

import ctypes

assert ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0
