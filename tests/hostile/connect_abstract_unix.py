"""Connects to an abstract socket."""

import socket

socket.socket(socket.AF_UNIX).connect("\0autointerp-hostile-" + str(victim))
