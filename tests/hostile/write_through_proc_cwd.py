"""Writes to setup.py by way of /proc/self/cwd."""

import os
from pathlib import Path

os.chdir(project)
Path("/proc/self/cwd/setup.py").write_text("easier = True\n")
