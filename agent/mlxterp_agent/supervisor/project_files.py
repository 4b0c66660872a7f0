"""Small dealings with the files of a project: freezing what runs, reading guidance, what a new repository
holds.

Foreign hands write in the project, so nothing here follows a link.
"""

from __future__ import annotations

import os
from pathlib import Path

from mlxterp._files import write_atomically
from mlxterp.autointerpret.contract import EXPERIMENT, FILES, FINDINGS, PRIVATE, PROGRAM, STATE, STEER, digest
from mlxterp.errors import ProjectError
from mlxterp_agent.platform import NotRegular, read_regular
from mlxterp_agent.storage.record import RUNS
from mlxterp_agent.text import cut, plain

_STEER_LIMIT = 8000
_MORE = (".gitignore", f"{FINDINGS}/.gitkeep")


def initial_files(project: Path) -> list[str]:
    """What the first commit of an investigation's own repository holds: the files of the contract that are
    there."""
    names = [name for name in FILES if name not in (STATE, FINDINGS, PRIVATE, STEER)]
    own = sorted(
        path.relative_to(project).as_posix() for path in (project / ".claude").rglob("*") if path.is_file()
    )
    return [name for name in (*names, *_MORE, ".mcp.json", *own) if (project / name).is_file()]


def freeze(project: Path, run: int, source: bytes) -> Path:
    """A copy of the bytes that will run, in `.autointerp/runs/NNNN/experiment.py`. These are run, judged,
    committed.

    Raises:
        ProjectError: `.autointerp` or a folder in it is a link or a file.
    """
    folder = project
    for name in (*RUNS.split("/"), f"{run:04d}"):
        folder = folder / name
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise ProjectError(
                f"run {run:04d} was to be kept in {project / RUNS}, but {folder} is a link or a file. "
                "Remove it; nothing that counts is stored there."
            )
        folder.mkdir(exist_ok=True)
    frozen = folder / EXPERIMENT
    write_atomically(frozen, source)
    return frozen


def program_digest(project: Path) -> str | None:
    """The digest of program.md as it is now; None if it cannot be read."""
    try:
        return digest(read_regular(project / PROGRAM))
    except (OSError, NotRegular):
        return None


def steer_text(project: Path) -> str:
    """The guidance in steer.md, cut to 8 kB; "" if there is none."""
    try:
        text = read_regular(project / STEER).decode("utf-8", "replace")
    except (OSError, NotRegular):
        return ""
    return cut(plain(text), _STEER_LIMIT)


def stop_file(project: Path, name: str) -> bool:
    """Whether somebody put a file of this name there."""
    return os.path.lexists(project / name)
