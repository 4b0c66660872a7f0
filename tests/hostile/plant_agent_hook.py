"""Plants a hook of the agent's settings."""

from pathlib import Path

Path(project, ".claude").mkdir()
Path(project, ".claude/settings.json").write_text("{}")
