"""Writes another question."""

from pathlib import Path

Path(project, "program.md").write_text("# Easy?\n")
