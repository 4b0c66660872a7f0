"""Puts a link in the place of findings/."""

import os

os.rmdir(f"{project}/findings")
os.symlink(home, f"{project}/findings")
