"""Reads the salt of the held-out split."""

from pathlib import Path

assert Path(state, "salt").read_text()
