"""Makes a ring of requests, which a filter of system calls does not see."""

import ctypes

parameters = ctypes.create_string_buffer(120)
assert ctypes.CDLL(None, use_errno=True).syscall(425, 1, parameters) >= 0
