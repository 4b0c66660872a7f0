"""Plants a hook that the next commit would run."""

from pathlib import Path

Path(project, ".git/hooks").mkdir(exist_ok=True)
Path(project, ".git/hooks/pre-commit").write_text("#!/bin/sh\n")
