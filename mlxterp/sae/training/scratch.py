"""Folders for what is not finished yet, removed at the end; those of processes that were killed, by the next.

Lives here: making such a folder, and telling whose process is dead. Does not live here: what is written to it
(`activations.py`), builds that go on after a kill (`shards.py`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlxterp.models.fetch import SCRATCH

_LOCK = "lock"


@contextmanager
def scratch(home: Path) -> Iterator[Path]:
    """A folder in `home` that is there while the block runs, first removing those of dead processes.

    A process holds a lock on a file in its folder, which the system drops when the process ends, however it
    ends. A folder gets its name only when the lock is held, so one with a lock that nobody holds is of a dead
    process. One without a lock, or on a file system without locks, is left alone.
    """
    for folder in home.glob(f"{SCRATCH}*"):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=".begun-", dir=home))
    lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        if not _locked(lock):
            (made / _LOCK).unlink()
        made = made.rename(made.with_name(made.name.replace(".begun-", SCRATCH, 1)))
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _is_abandoned(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _locked(lock)
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    """Whether this file descriptor got the lock: nobody else holds it, and there are locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
