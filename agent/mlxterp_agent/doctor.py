"""`autointerp doctor`: what protects a run on this machine, what does not, and what would stop a night.

Each check looks at the real thing (takes a lock, asks git, closes a jail) and changes nothing that stays.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from mlxterp.autointerpret.contract import state_dir
from mlxterp_agent.sandbox.jail import linux, protection
from mlxterp_agent.text import one_line

_ENOUGH_GB = 2.0
_CLOUD = ("Dropbox", "OneDrive", "Google Drive", "GoogleDrive", "iCloud", "Mobile Documents", "CloudStorage")
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "9p", "fuse.sshfs", "webdav")

_TRY_JAIL = """
import runpy
import sys
secret, module = sys.argv[1:]
runpy.run_path(module)["close"](["/usr", "/lib", "/lib64", sys.base_prefix], [])
try:
    open(secret).close()
except OSError:
    print("holds")
"""


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: in one or two words.
        result: "note" is worth knowing and stops nothing.
        text: what was found, and what to do about a problem.
    """

    name: str
    result: Literal["ok", "note", "problem"]
    text: str


def examine(directory: Path) -> list[Finding]:
    """Everything about this machine and this directory (which need not be an investigation yet)."""
    directory = directory.resolve()
    here = next(path for path in (directory, *directory.parents) if path.is_dir())
    state = state_dir(directory)
    beside = next(path for path in (state, *state.parents) if path.is_dir())
    return [
        *_jail(),
        _git(directory),
        *(_lock(name, path) for name, path in (("directory", here), ("state", beside))),
        *(_disk(name, path) for name, path in (("directory", here), ("state", beside))),
        *_file_system(directory, here),
        _claude_code(),
    ]


def _jail() -> Iterator[Finding]:
    offered = protection()
    if offered.kind == "none":
        why = f"none: {offered.reason}; experiments run only with --allow-unsandboxed"
        yield Finding("jail", "problem", why)
        return
    if sys.platform == "linux" and (problem := _jail_problem()) is not None:
        yield Finding("jail", "problem", f"{offered.kind} does not hold: {problem}")
        return
    yield Finding("jail", "ok", f"{offered.kind}: project read-only, state hidden, no network, no processes")
    if offered.reason:
        yield Finding("jail", "note", offered.reason)
    if sys.platform == "darwin":
        yield Finding("jail", "note", "services behind Mach messages and the GPU's memory are not covered")


def _jail_problem() -> str | None:
    """Closes a jail around a process of its own, and tries to read a file outside."""
    with tempfile.NamedTemporaryFile() as secret:
        command = [sys.executable, "-I", "-c", _TRY_JAIL, secret.name, linux.__file__]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.stdout.strip() == "holds":
        return None
    return one_line(tried.stderr.strip().splitlines()[-1], 300) if tried.stderr.strip() else "a file was read"


def _git(directory: Path) -> Finding:
    said = _output(["git", "--version"])
    if said is None:
        return Finding("git", "problem", "git is not installed or does not start; install it")
    with tempfile.TemporaryDirectory() as place:
        made = _output(["git", "init", "--quiet", place])
    if made is None:
        return Finding("git", "problem", f"{said} cannot make a repository")
    if (directory / ".git").exists() and _output(["git", "-C", str(directory), "rev-parse", "HEAD"]) is None:
        return Finding("git", "problem", f"the repository of {directory} cannot be read; see git fsck there")
    return Finding("git", "ok", said)


def _lock(name: str, place: Path) -> Finding:
    """Takes the lock that keeps two supervisors apart, on a file that is removed again."""
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".autointerp-doctor-") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        why = f"{place} cannot be written and locked: {error.strerror}; use a directory on a local disk"
        return Finding(f"lock in {name}", "problem", why)
    return Finding(f"lock in {name}", "ok", f"files in {place} can be locked")


def _disk(name: str, place: Path) -> Finding:
    free = shutil.disk_usage(place).free / 1e9
    if free < _ENOUGH_GB:
        why = f"{free:.1f} GB are free; a night may need {_ENOUGH_GB:g}"
        return Finding(f"disk of {name}", "problem", why)
    return Finding(f"disk of {name}", "ok", f"{free:.0f} GB are free")


def _file_system(directory: Path, here: Path) -> Iterator[Finding]:
    import psutil

    synced = next((part for part in directory.parts if any(part.startswith(each) for each in _CLOUD)), None)
    if synced is not None:
        why = f"{synced} looks like a folder that is synchronised; its copies may conflict with the log"
        yield Finding("file system", "note", why)
    mounts = [m for m in psutil.disk_partitions(all=True) if here.is_relative_to(m.mountpoint)]
    mount = max(mounts, key=lambda m: len(m.mountpoint), default=None)
    if mount is not None and mount.fstype in _NETWORK:
        why = f"{mount.fstype} at {mount.mountpoint} is a network's; use a directory on a local disk"
        yield Finding("file system", "note", why)


def _claude_code() -> Finding:
    program = shutil.which("claude")
    if program is None:
        return Finding("Claude Code", "note", "not found; needed only for --agent claude")
    said = _output([program, "--version"])
    if said is None:
        return Finding("Claude Code", "note", f"{program} does not say its version")
    return Finding("Claude Code", "ok", f"{said} at {program}")


def _output(command: list[str]) -> str | None:
    """The first line that a program prints; None if it cannot be started or fails."""
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = ended.stdout.strip().splitlines()
    return None if ended.returncode else one_line(lines[0], 100) if lines else ""
