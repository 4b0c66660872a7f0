"""Renames a file of the scratch directory over setup.py."""

import os
from pathlib import Path

Path(scratch, "new.py").write_text("easier = True\n")
os.replace(f"{scratch}/new.py", f"{project}/setup.py")
