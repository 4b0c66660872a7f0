"""Reads a temporary file of another program."""

from pathlib import Path

assert Path(other, "session").read_text()
