"""Plants a library where another program would load it."""

from pathlib import Path

Path(other, "lib.so").write_text("")
