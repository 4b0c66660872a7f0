"""Changes an installed library."""

from pathlib import Path

Path(library, "module.py").write_text("")
