"""Which files an experiment may read and write: everything a computation needs, nothing that is somebody's
secret.

Landlock can only allow, so what is hidden is left out of the list: the state directory, other people's
temporary files, and what stands in the home directory under a name that begins with a dot. Lives here: the
list. Does not live here: how it is enforced (`linux.py`, `macos.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxterp.models.fetch import cache_dir

_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "opt", "nix", "snap")
_OWN = "/proc/self"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_KERNEL = (
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/filesystems", "/proc/version"),
    *("/proc/sys/vm", "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm"),
)
_NEVER = ("boot", "dev", "home", "lost+found", "proc", "root", "run", "sys", "tmp", "Users", "private", "var")
"""Top-level directories that are not data: the kernel's, temporary ones, and those of which only parts are
read."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What one run may do with files.

    Attributes:
        read: files and directories it may read and load code from.
        write: directories it may also write to, and remove from.
        hide: what it must not see, also inside a directory of `read`.
        prepares: it makes caches, which may be as large as a model.
    """

    read: tuple[str, ...]
    write: tuple[str, ...]
    hide: tuple[str, ...]
    prepares: bool = False

    def roots(self) -> tuple[str, ...]:
        """`read` without `hide`: a directory that holds something hidden is listed entry by entry."""
        hidden = [os.path.realpath(path) for path in self.hide]
        roots = [
            root for path in self.read if path != _OWN for root in _without(os.path.realpath(path), hidden)
        ]
        # Resolved here, /proc/self would be the directory of this process and not of the jailed one.
        return tuple(dict.fromkeys([*roots, *(path for path in self.read if path == _OWN)]))


def experiment_policy(
    *,
    project: Path,
    state: Path,
    scratch: Path,
    caches: Sequence[Path],
    home: Path | None = None,
    prepare: bool = False,
) -> Policy:
    """The policy of one run.

    Args:
        project: the investigation, read-only.
        state: the supervisor's state directory, hidden.
        scratch: the run's own directory, writable.
        caches: of models, tokenizers and stores: read-only, or writable while they are prepared.
        home: the user's home directory; by default that of this process.
        prepare: whether this run makes caches and runs no code of an agent.
    """
    home = Path.home() if home is None else home
    read = [
        *(path for path in _installation() if not home.is_relative_to(path)),
        *_kernel_and_devices(),
        _OWN,
        *_data_directories(),
        *_visible_entries(home),
        str(project),
        *(str(cache) for cache in caches),
    ]
    write = [str(scratch), "/dev/null", _OWN, *(str(cache) for cache in caches if prepare)]
    return Policy(read=tuple(read), write=tuple(write), hide=(str(state),), prepares=prepare)


def caches() -> tuple[Path, ...]:
    """Where models, data sets and what is computed from them once are stored, by this library and by Hugging
    Face's. Hugging Face's own directory is not among them: it holds the token of its user."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    face = Path(os.environ.get("HF_HOME") or os.path.join(home, "huggingface")).expanduser()
    hub, sets = os.environ.get("HF_HUB_CACHE"), os.environ.get("HF_DATASETS_CACHE")
    return (cache_dir(), Path(hub) if hub else face / "hub", Path(sets) if sets else face / "datasets")


def _installation() -> Iterator[str]:
    """Python, its packages, and this library: also where they stand in a hidden directory of the home."""
    yield from (f"/{name}" for name in _SYSTEM)
    yield from dict.fromkeys((sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(sys.executable)))
    yield os.path.dirname(os.path.realpath(sys.executable))
    yield from (path for path in sys.path if path and os.path.isabs(path))


def _kernel_and_devices() -> Iterator[str]:
    yield from _KERNEL
    yield from _DEVICES


def _data_directories() -> Iterator[str]:
    """Top-level directories in which people keep models and data sets, as /data and /mnt."""
    for entry in _entries("/"):
        if entry.name not in (*_SYSTEM, *_NEVER) and entry.is_dir(follow_symlinks=False):
            yield entry.path


def _visible_entries(home: Path) -> Iterator[str]:
    for entry in _entries(str(home)):
        if not entry.name.startswith(".") and not entry.is_symlink():
            yield entry.path


def _without(path: str, hidden: Sequence[str]) -> Iterator[str]:
    """The largest files and directories at or below `path` that hold nothing hidden."""
    if any(path == each or path.startswith(each + os.sep) for each in hidden):
        return
    inside = [each for each in hidden if each.startswith(path.rstrip(os.sep) + os.sep)]
    if not inside:
        yield path
        return
    for entry in _entries(path):
        if not entry.is_symlink():
            yield from _without(entry.path, inside)


def _entries(path: str) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(path) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError:  # a directory that cannot be listed has nothing to allow
        return ()
