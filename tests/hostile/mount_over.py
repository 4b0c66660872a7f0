"""Mounts an empty file system over the project."""

import ctypes

libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0
assert libc.mount(b"none", project.encode(), b"tmpfs", 0, None) == 0
