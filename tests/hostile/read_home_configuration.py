"""Reads a configuration in the home directory."""

from pathlib import Path

assert Path(home, ".bashrc").read_text()
