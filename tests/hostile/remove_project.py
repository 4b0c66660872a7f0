"""Removes the whole investigation."""

import shutil

shutil.rmtree(project)
