"""Plants bytecode that would take the place of setup.py."""

import os
from pathlib import Path

os.makedirs(f"{project}/__pycache__", exist_ok=True)
Path(project, "__pycache__/setup.cpython-311.pyc").write_bytes(b"")
