"""Exchanges the project with a copy of its own."""

import os
import shutil

shutil.copytree(project, f"{project}-new")
os.rename(project, f"{project}-old")
os.rename(f"{project}-new", project)
