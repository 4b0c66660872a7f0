"""What a researcher writes down for its next turn: at most 1 kB a note, shown in STATE.md.

The notes are in the state directory, one JSON line each. They are data: nothing is decided by them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from mlxterp.autointerpret.contract import state_dir
from mlxterp_agent.exit_codes import AgentError
from mlxterp_agent.platform import read_or_none
from mlxterp_agent.storage.state_dir import open_state
from mlxterp_agent.text import plain

LIMIT = 1000
"""Bytes of a note."""

MOST = 200
"""Notes of an investigation; STATE.md shows the newest."""

_FILE = "notes.jsonl"


class NoteRefused(AgentError):
    """A note that is empty, too long, or one too many."""


def add_note(project: Path, text: str) -> str:
    """Keeps a note, and says so.

    Raises:
        NoteRefused: it has nothing to read, more than 1 kB, or there are too many.
    """
    kept = " ".join(plain(text).split())
    size = len(kept.encode())
    if not kept:
        raise NoteRefused("the note is empty. Write what your next turn must know.")
    if size > LIMIT:
        raise NoteRefused(f"the note has {size:,} bytes, and a note has at most {LIMIT:,}. Shorten it.")
    there = notes_of(project)
    if len(there) >= MOST:
        raise NoteRefused(f"there are {MOST} notes already. STATE.md shows the newest only.")
    if kept in there:
        return "noted before, in the same words"
    line = json.dumps(kept) + "\n"
    fd = os.open(
        open_state(project).root / _FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)
    return "noted; STATE.md shows it after the next experiment, and each turn begins with it"


def notes_of(project: Path) -> list[str]:
    """The notes, oldest first."""
    data = read_or_none(state_dir(project) / _FILE) or b""
    return [
        str(json.loads(line)) for line in data.decode("utf-8", "replace").splitlines() if line.endswith('"')
    ]
