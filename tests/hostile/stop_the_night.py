"""Writes the file that stops the run."""

from pathlib import Path

Path(project, "STOP").write_text("")
