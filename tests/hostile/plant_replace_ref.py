"""Plants a ref that replaces a commit."""

from pathlib import Path

Path(project, ".git/refs/replace").mkdir()
Path(project, ".git/refs/replace/" + "1" * 40).write_text("2" * 40)
