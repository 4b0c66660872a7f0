"""Removes the sealed copy of setup.py."""

import os

os.unlink(f"{state}/setup.py")
