"""Fills the state directory."""

from pathlib import Path

for number in range(100):
    Path(state, f"junk{number}").write_text("x")
