"""Plants attributes that run a filter."""

from pathlib import Path

Path(project, ".gitattributes").write_text("* filter=x\n")
