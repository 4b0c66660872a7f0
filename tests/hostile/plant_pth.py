"""Plants a file that every Python of the library runs."""

from pathlib import Path

Path(library, "evil.pth").write_text("import os\n")
