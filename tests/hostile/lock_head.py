"""Leaves a lock of HEAD behind."""

from pathlib import Path

Path(project, ".git/HEAD.lock").write_text("")
