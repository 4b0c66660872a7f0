"""Writes over the sealed copy of setup.py."""

from pathlib import Path

Path(state, "setup.py").write_text("model = None\n")
