"""Reads a key in the home directory."""

from pathlib import Path

assert Path(home, ".ssh/id_ed25519").read_text()
