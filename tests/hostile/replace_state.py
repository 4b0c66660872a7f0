"""Puts another directory in the place of the state directory."""

import os
from pathlib import Path

os.rename(state, f"{state}-old")
Path(state).mkdir()
