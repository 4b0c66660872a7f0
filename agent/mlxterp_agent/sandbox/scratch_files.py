"""Copies what an experiment wrote into its scratch directory to the folder of its run.

The experiment decided what is there, so nothing is followed: only regular files are read, each opened
relative to its directory, and only so many bytes.
"""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mlxterp_agent.exit_codes import DiskFull
from mlxterp_agent.storage.project_files import write_in_project

MAX_BYTES = 20_000_000
MAX_FILES = 200
_MAX_DEPTH = 10
_MAX_LOOKED_AT = 10_000


@dataclass(frozen=True)
class WrittenFiles:
    """What an experiment left behind.

    Attributes:
        kept: paths below the run's folder `files`, in alphabetical order.
        left_out: how many files were not copied: too large, too many, or not readable.
    """

    kept: tuple[str, ...] = ()
    left_out: int = 0


def copy_written_files(scratch: Path, target: Path) -> WrittenFiles:
    """Copies the regular files below `scratch` to `target`, at most 20 MB and 200 files; no link is followed.

    `target` is made anew, and only if there is something to copy. A copy for people: what cannot be written
    there is counted as left out.
    """
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.is_dir():
        remove_tree(target)
    kept: list[str] = []
    room, left_out, looked_at = MAX_BYTES, 0, 0
    try:
        walk = os.fwalk(scratch, follow_symlinks=False)
        for directory, folders, names, fd in walk:
            folders.sort()
            looked_at += len(names) + 1
            if looked_at > _MAX_LOOKED_AT:
                left_out += len(names)
                break
            if len(Path(directory).relative_to(scratch).parts) >= _MAX_DEPTH:
                left_out += len(folders)
                folders.clear()
            for name in sorted(names):
                path = os.path.relpath(os.path.join(directory, name), scratch)
                data = _read(name, fd, room) if len(kept) < MAX_FILES else None
                if data is None:
                    left_out += not stat.S_ISLNK(os.lstat(name, dir_fd=fd).st_mode)
                    continue
                try:
                    write_in_project(target.parent, f"{target.name}/{path}", data, flush=False)
                except (OSError, ValueError, DiskFull):
                    left_out += 1
                    continue
                room -= len(data)
                kept.append(os.fsencode(path).decode("utf-8", "replace"))
    except OSError:
        # It was removed while it was read, by a process that outlived its experiment.
        left_out += 1
    return WrittenFiles(tuple(sorted(kept)), left_out)


def remove_tree(path: Path) -> None:
    """Removes a directory as far as it can be; also one that is nested too deep for `shutil.rmtree`."""
    command = ["/bin/rm", "-rf", "--", str(path)]
    subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _read(name: str, directory: int, room: int) -> bytes | None:
    """The bytes of a regular file; None for everything else, and for more bytes than there is room for."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > room:
            return None
        data = file.read(room + 1)
    return data if len(data) <= room else None
