"""Reads the memory map of another process."""

from pathlib import Path

assert Path(f"/proc/{victim}/maps").read_text()
