"""Writes to setup.py by way of /proc/self/root."""

from pathlib import Path

Path(f"/proc/self/root{project}/setup.py").write_text("easier = True\n")
