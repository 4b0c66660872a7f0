"""Rewrites the budget."""

from pathlib import Path

Path(project, ".autointerp/config.json").write_text("{}")
