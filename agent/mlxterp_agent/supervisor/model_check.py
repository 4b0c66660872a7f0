"""Questions about a model, asked in a process of its own: the supervisor's side never loads mlx."""

from __future__ import annotations

import subprocess
import sys


def check(name: str, *, as_json: bool) -> int:
    """Prints which hook points and parts a model has, and gives the exit code.

    Loads the model in a child process, which may download it.
    """
    options = ["--json"] if as_json else []
    # `--` because a name is somebody's text and may begin with a dash.
    return subprocess.run(
        [sys.executable, "-m", "mlxterp.core.capabilities", *options, "--", name], check=False
    ).returncode
