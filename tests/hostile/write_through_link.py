"""Writes to setup.py through a symbolic link in the scratch directory."""

import os
from pathlib import Path

os.symlink(f"{project}/setup.py", f"{scratch}/link")
Path(scratch, "link").write_text("easier = True\n")
