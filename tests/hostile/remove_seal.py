"""Removes the sealed copy of setup.py."""

from pathlib import Path

sealed = list(Path(state).rglob("setup.py"))
assert sealed, "the attack found nothing"
for path in sealed:
    path.unlink()
