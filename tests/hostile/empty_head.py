"""Empties HEAD."""

from pathlib import Path

Path(project, ".git/HEAD").write_text("")
