"""Plants a conftest.py in the project."""

from pathlib import Path

Path(project, "conftest.py").write_text("raise SystemExit\n")
