"""Sends a datagram."""

import socket

assert socket.socket(type=socket.SOCK_DGRAM).sendto(b"secret", ("127.0.0.1", port))
