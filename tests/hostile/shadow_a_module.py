"""Plants a module that shadows one of the standard library."""

from pathlib import Path

Path(project, "json.py").write_text("")
