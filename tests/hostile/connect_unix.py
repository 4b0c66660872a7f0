"""Connects to a socket in the file system."""

import socket

socket.socket(socket.AF_UNIX).connect(f"{other}/socket")
