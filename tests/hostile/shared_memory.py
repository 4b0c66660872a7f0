"""Makes shared memory that others of the same user can attach."""

import ctypes

libc = ctypes.CDLL(None, use_errno=True)
identifier = libc.shmget(0, 4096, 0o1600)
assert identifier >= 0
libc.shmctl(identifier, 0, None)
