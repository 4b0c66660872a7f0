"""Gives setup.py another time of modification."""

import os

os.utime(f"{project}/setup.py", (1, 1))
assert os.stat(f"{project}/setup.py").st_mtime == 1
