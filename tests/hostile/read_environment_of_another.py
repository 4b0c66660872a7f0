"""Reads the environment of another process."""

from pathlib import Path

assert Path(f"/proc/{victim}/environ").read_bytes()
