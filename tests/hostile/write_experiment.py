"""Writes the next proposal itself."""

from pathlib import Path

Path(project, "experiment.py").write_text("x = 1\n")
