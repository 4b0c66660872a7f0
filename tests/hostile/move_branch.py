"""Moves the branch to another commit."""

from pathlib import Path

Path(project, ".git/refs/heads/main").write_text("0" * 40)
