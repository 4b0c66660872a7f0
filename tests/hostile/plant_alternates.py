"""Lends the repository the objects of another."""

from pathlib import Path

Path(project, ".git/objects/info").mkdir(parents=True, exist_ok=True)
Path(project, ".git/objects/info/alternates").write_text(other)
