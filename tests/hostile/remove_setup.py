"""Removes setup.py."""

import os

os.unlink(f"{project}/setup.py")
