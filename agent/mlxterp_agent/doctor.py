"""`autointerp doctor`: what protects a run on this machine, what does not, and what would stop a night.

Each check looks at the real thing (takes a lock, asks git, closes a jail) and changes nothing that stays.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from mlxterp.autointerpret.contract import state_dir
from mlxterp_agent.researchers.claude_code import TESTED_VERSION
from mlxterp_agent.researchers.select import find_claude
from mlxterp_agent.sandbox.jail import linux, protection
from mlxterp_agent.storage.git import Committer
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


_TRY_DEVICE = """
import numpy as np
import mlx.core as mx
a = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
exact = a.astype(np.float64) @ a.astype(np.float64)
one, two = (np.array(mx.array(a) @ mx.array(a)) for _ in range(2))
worst = float(np.abs(one - exact).max() / np.abs(exact).max())
print(mx.default_device(), worst, bool((one == two).all()))
"""
_LARGEST_ERROR = 1e-5
"""Sums of 256 products in float32 stay far below; with 10 bits of mantissa (TF32) it is 1e-3."""

_BATTERIES = Path("/sys/class/power_supply")


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
    state = state_dir(here)
    beside = next(path for path in (state, *state.parents) if path.is_dir())
    return [
        *_jail(),
        _git(directory),
        *(_lock(name, path) for name, path in (("directory", here), ("state", beside))),
        *(_disk(name, path) for name, path in (("directory", here), ("state", beside))),
        *_file_system(directory, here),
        _sleep(),
        _numerics(),
        _packages(),
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
    trouble = Committer(directory).trouble() if (directory / ".git").exists() else None
    if trouble is not None:
        return Finding("git", "problem", f"the repository of {directory} cannot be used: {trouble}")
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


def _sleep() -> Finding:
    """Whether the machine may fall asleep while nobody watches."""
    if sys.platform == "darwin":
        lines = [line.split() for line in (_text(["pmset", "-g"]) or "").splitlines()]
        minutes = next((line[1] for line in lines if len(line) > 1 and line[0] == "sleep"), None)
        if minutes == "0":
            return Finding("sleep", "ok", "this machine does not sleep by itself")
        after = "an unknown time" if minutes is None else f"{minutes} minutes"
        why = f"it sleeps after {after} without a person; start a night with: caffeinate -i autointerp start"
        return Finding("sleep", "note", why)
    if any(_BATTERIES.glob("BAT*")):
        why = "it has a battery and may sleep; keep it plugged in, and start a night with: systemd-inhibit "
        return Finding("sleep", "note", f"{why}--what=sleep:handle-lid-switch autointerp start")
    return Finding("sleep", "ok", "it has no battery; nothing is known that would put it to sleep")


def _numerics() -> Finding:
    """What the device that mlx computes on makes of a product in float32."""
    said = _output([sys.executable, "-c", _TRY_DEVICE])
    if said is None:
        return Finding(
            "numerics", "problem", "mlx cannot multiply two matrices here: python -c 'import mlx.core'"
        )
    device, worst, same = said.rsplit(maxsplit=2)
    if float(worst) > _LARGEST_ERROR:
        why = f"{device}: a float32 product is off by {float(worst):.0e} of its largest value, more than "
        return Finding("numerics", "problem", f"{why}rounding explains; set MLX_ENABLE_TF32=0")
    if same != "True":
        return Finding("numerics", "note", f"{device}: the same product twice has other bits")
    return Finding("numerics", "ok", f"{device}: a float32 product is off by {float(worst):.0e}, twice alike")


def _packages() -> Finding:
    found = {name: _version(name) for name in ("mlx", "mlx-lm", "numpy", "anthropic", "GitPython")}
    said = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    return Finding("packages", "ok" if all(found.values()) else "problem", said)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _claude_code() -> Finding:
    program = find_claude()
    if program is None:
        return Finding("Claude Code", "note", "not found; needed only for --agent claude")
    said = _output([program, "--version"])
    if said is None:
        return Finding("Claude Code", "note", f"{program} does not say its version")
    if not said.startswith(TESTED_VERSION):
        return Finding("Claude Code", "note", f"{said} at {program}; tested with {TESTED_VERSION}")
    return Finding("Claude Code", "ok", f"{said} at {program}")


def _output(command: list[str]) -> str | None:
    """The first line that a program prints; None if it cannot be started or fails."""
    said = _text(command)
    lines = (said or "").strip().splitlines()
    return None if said is None else one_line(lines[0], 100) if lines else ""


def _text(command: list[str]) -> str | None:
    """What a program prints; None if it cannot be started or fails."""
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if ended.returncode else ended.stdout
