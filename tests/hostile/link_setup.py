"""Puts a symbolic link in the place of setup.py."""

import os

os.unlink(f"{project}/setup.py")
os.symlink("/dev/null", f"{project}/setup.py")
