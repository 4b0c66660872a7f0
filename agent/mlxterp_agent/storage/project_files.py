"""Every file that the supervisor writes into a project goes through here, so that nothing an experiment
planted there is followed, opened or waited for.

Directories are opened one below the other, and no link is followed; a file is written beside its place under
a name that did not exist, and renamed there. What stands in the way (a link, a FIFO, a directory where a file
belongs, a file where a directory belongs, a name that differs only in its case) is moved into
`.autointerp/aside` and reported. Does not live here: the log, which is appended to
(`mlxterp.autointerpret.log_file`), and the state directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from mlxterp._files import sync, write_all
from mlxterp.autointerpret.contract import PRIVATE
from mlxterp_agent.platform import explain_disk_full

ASIDE = "aside"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _say_nothing(_: str) -> None:
    """For callers without a screen."""


def write_in_project(
    project: Path,
    name: str,
    data: bytes,
    *,
    flush: bool = True,
    notice: Callable[[str], None] = _say_nothing,
) -> None:
    """Writes one file of the project in one step: a reader sees the old content or the new.

    Args:
        name: from the project's top, with "/". Its directories are made if they are missing.
        flush: whether to wait until it is on the disk; not needed for what is written again every turn.
        notice: gets a sentence for everything that stood in the way and was moved aside.

    Raises:
        DiskFull: no space is left.
        OSError: the directory cannot be written.
    """
    path = PurePosixPath(name)
    with explain_disk_full(project / name), _opened(project, path.parent.parts, notice) as folder:
        _clear_place(project, folder, path, notice)
        beside = f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        fd = os.open(beside, _NEW, 0o666, dir_fd=folder)
        try:
            try:
                write_all(fd, data)
                if flush:
                    sync(fd)
            finally:
                os.close(fd)
            os.rename(beside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=folder)
            raise
        if flush:
            os.fsync(folder)


def make_folder(project: Path, name: str, *, notice: Callable[[str], None] = _say_nothing) -> Path:
    """Makes a directory of the project; what stands in its way is moved aside."""
    with _opened(project, PurePosixPath(name).parts, notice):
        return project / name


def create_in_project(project: Path, name: str) -> int:
    """A descriptor of a new file of the project, for writing to while a run goes on; an old file of that
    name is replaced."""
    path = PurePosixPath(name)
    with _opened(project, path.parent.parts, _say_nothing) as folder:
        _clear_place(project, folder, path, _say_nothing)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=folder)
        return os.open(path.name, _NEW, 0o666, dir_fd=folder)


def clear_for_file(project: Path, name: str, *, notice: Callable[[str], None] = _say_nothing) -> None:
    """Moves aside whatever stands where another function is going to write a file, unless it is a file."""
    path = PurePosixPath(name)
    with _opened(project, path.parent.parts, notice) as folder:
        _clear_place(project, folder, path, notice)


def clear_for_folder(project: Path, name: str, *, notice: Callable[[str], None] = _say_nothing) -> None:
    """Moves aside whatever stands where another function is going to make a directory, unless it is one."""
    path = PurePosixPath(name)
    with _opened(project, path.parent.parts, notice) as folder:
        _move_case_variants(project, folder, path, notice)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode):
                _move_aside(project, folder, path, notice)


def move_other_spellings(project: Path, name: str, *, notice: Callable[[str], None] = _say_nothing) -> None:
    """Moves aside what differs from `name` in its case only, on every file system: `EXPERIMENT.PY` beside
    experiment.py is nobody's file."""
    with _opened(project, (), notice) as folder:
        for other in os.listdir(folder):
            if other == name or other.casefold() != name.casefold():
                continue
            if not (project / name).exists() or not os.path.samefile(project / name, project / other):
                _move_aside(project, folder, PurePosixPath(other), notice)


@contextlib.contextmanager
def _opened(project: Path, parts: tuple[str, ...], notice: Callable[[str], None]) -> Iterator[int]:
    """A descriptor of the directory at these parts below the project."""
    fds = [os.open(project, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for depth in range(1, len(parts) + 1):
            here = PurePosixPath(*parts[:depth])
            fds.append(_enter(project, fds[-1], here, notice))
        yield fds[-1]
    finally:
        for fd in fds:
            os.close(fd)


def _enter(project: Path, folder: int, path: PurePosixPath, notice: Callable[[str], None]) -> int:
    _move_case_variants(project, folder, path, notice)
    try:
        return os.open(path.name, _DIRECTORY, dir_fd=folder)
    except FileNotFoundError:
        pass
    except OSError as problem:
        if problem.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK, errno.ENXIO):
            raise
        _move_aside(project, folder, path, notice)
    os.mkdir(path.name, dir_fd=folder)
    os.fsync(folder)
    return os.open(path.name, _DIRECTORY, dir_fd=folder)


def _clear_place(project: Path, folder: int, path: PurePosixPath, notice: Callable[[str], None]) -> None:
    _move_case_variants(project, folder, path, notice)
    try:
        mode = os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        _move_aside(project, folder, path, notice)


def _move_case_variants(
    project: Path, folder: int, path: PurePosixPath, notice: Callable[[str], None]
) -> None:
    """On a file system that ignores case, another spelling of a name is the same file, and would keep its
    spelling."""
    if sys.platform != "darwin":
        return
    for other in os.listdir(folder):
        if other != path.name and other.casefold() == path.name.casefold():
            _move_aside(project, folder, path.with_name(other), notice)


def _move_aside(project: Path, folder: int, path: PurePosixPath, notice: Callable[[str], None]) -> None:
    """Out of the way, kept for people to look at, and reported."""
    kind = _kind(os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode)
    name = f"{uuid.uuid4().hex[:8]}-{path.name}"[:200]
    with _aside_folder(project, path) as aside:
        os.rename(path.name, name, src_dir_fd=folder, dst_dir_fd=aside)
    where = f"{PRIVATE}/{ASIDE}/{name}" if path.parts[0] != PRIVATE or len(path.parts) > 2 else name
    notice(f"{path} was {kind}; it was moved to {where}, and what belongs there was written")


@contextlib.contextmanager
def _aside_folder(project: Path, path: PurePosixPath) -> Iterator[int]:
    """`.autointerp/aside`; the project itself if that or `.autointerp` is what stands in the way."""
    top = os.open(project, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if str(path) in (PRIVATE, f"{PRIVATE}/{ASIDE}"):
            yield top
            return
        with _opened(project, (PRIVATE, ASIDE), _say_nothing) as aside:
            yield aside
    finally:
        os.close(top)


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"))
    return next((words for test, words in kinds if test(mode)), "a file")
