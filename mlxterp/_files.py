"""Files of the package, and files written so that a crash leaves the old content or the new, never a part.

Lives here: where `templates/` and `scaffolds/` are, atomic writes, fsync that reaches the disk. Does not live
here: what the files mean (`mlxterp.autointerpret`, `mlxterp.reports`).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Literal

from mlxterp.errors import MlxterpError


def locate(kind: Literal["templates", "scaffolds"]) -> Path:
    """The directory of this name: inside an installed package, else at the top of the checkout."""
    package = Path(__file__).resolve().parent
    places = (package / "_data" / kind, package.parent / kind)
    for place in places:
        if place.is_dir():
            return place
    raise MlxterpError(
        f"the {kind} of mlxterp are not installed; looked in {' and '.join(str(p) for p in places)}. "
        "Install the package again: python -m pip install --force-reinstall mlxterp."
    )


def sync(fd: int) -> None:
    """Pushes what was written to `fd` onto the disk, on macOS also out of the drive's own cache."""
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError:  # network and exFAT volumes do not know it
            os.fsync(fd)
    else:
        os.fsync(fd)


def sync_directory(path: Path) -> None:
    """Makes a created, renamed or removed name in this directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Writes every byte: a full disk makes `os.write` return short before it raises."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replaces `path` by `data` in one step: a file beside it, fsync, rename, fsync of the directory."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            write_all(fd, data)
            sync(fd)
        finally:
            os.close(fd)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def replace_directory(path: Path, new: Path) -> None:
    """Puts the directory `new` at `path` in one step, then removes the directory that was there.

    The two names are exchanged where the system can (Linux and macOS on their usual file systems), so that at
    every moment `path` is the old directory or the new one. Elsewhere the old one is first renamed aside, and
    renamed back if `new` cannot take its place.
    """
    try:
        os.replace(new, path)  # succeeds where there is no directory, or an empty one
        return
    except OSError:
        if not path.is_dir():
            raise
    if _exchanged(new, path):
        shutil.rmtree(new)
        return
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    os.replace(path, aside)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(aside, path)
        raise
    shutil.rmtree(aside)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the system exchanged the two names; False where it has no such call."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(one), os.fsencode(other))
    if sys.platform == "darwin":
        call, arguments = getattr(libc, "renamex_np", None), (*names, ctypes.c_uint(2))  # RENAME_SWAP
    else:
        here = ctypes.c_int(-100)  # AT_FDCWD: paths are from the working directory
        call, arguments = (
            getattr(libc, "renameat2", None),
            (here, names[0], here, names[1], ctypes.c_uint(2)),  # RENAME_EXCHANGE
        )
    return call is not None and call(*arguments) == 0


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path as a person writes it, `~` being their home. A name that begins with `~` and is no user's stays
    as it is, where `Path.expanduser` raises RuntimeError."""
    return Path(os.path.expanduser(text))
