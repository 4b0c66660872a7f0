"""Puts another file in the place of setup.py."""

import os
from pathlib import Path

Path(project, "new.py").write_text("easier = True\n")
os.replace(f"{project}/new.py", f"{project}/setup.py")
