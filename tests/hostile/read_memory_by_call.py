"""Reads the memory of another process by a system call."""

import ctypes

with open(f"/proc/{victim}/maps") as maps:
    start = int(maps.readline().split("-")[0], 16)
buffer = ctypes.create_string_buffer(4)


class Span(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


here, there = Span(ctypes.addressof(buffer), 4), Span(start, 4)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.process_vm_readv(victim, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) == 4
