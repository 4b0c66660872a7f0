"""Plants code that every Python in this directory would run."""

from pathlib import Path

Path(project, "sitecustomize.py").write_text("")
