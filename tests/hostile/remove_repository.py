"""Removes the repository."""

import shutil

shutil.rmtree(f"{project}/.git")
