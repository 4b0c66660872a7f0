"""Leaves a lock of the branch behind."""

from pathlib import Path

Path(project, ".git/refs/heads/main.lock").write_text("")
