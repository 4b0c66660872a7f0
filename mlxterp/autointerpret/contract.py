"""The contract's files: their names and owners, and what makes a directory an investigation.

Lives here: the names, digests of bytes, the project's configuration, where a project keeps its private state.
Does not live here: the log (`log.py`), the starting files (`scaffold.py`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxterp._files import write_atomically
from mlxterp.autointerpret.encoding import LineError, decode_object
from mlxterp.errors import ProjectError

CONFIG_SCHEMA = "autointerp-config/1"
STATE_DIR_ENV = "AUTOINTERP_STATE_DIR"

SETUP = "setup.py"
EXPERIMENT = "experiment.py"
PROGRAM = "program.md"
LOG = "results.jsonl"
FINDINGS = "findings"
STEER = "steer.md"
STATE = "STATE.md"
PRIVATE = ".autointerp"
CONFIG = f"{PRIVATE}/config.json"


@dataclass(frozen=True)
class ContractFile:
    """One file of an investigation: who writes it, and under which rule."""

    name: str
    owner: str
    rule: str
    required: bool = False


FILES: Mapping[str, ContractFile] = {
    each.name: each
    for each in (
        ContractFile(
            SETUP, "human", "loads model, metrics and dataset; sealed when a run starts", required=True
        ),
        ContractFile(EXPERIMENT, "agent", "the only file the agent writes", required=True),
        ContractFile(
            PROGRAM, "human", "question, constraints, when to stop; editable between runs", required=True
        ),
        ContractFile(STEER, "human", "optional guidance, read between experiments"),
        ContractFile(LOG, "supervisor", "append-only log, one JSON object a line"),
        ContractFile("CLAUDE.md", "generated", "how to work here"),
        ContractFile("AGENTS.md", "generated", "the same, for agents that read this name"),
        ContractFile(STATE, "generated", "what is known so far; rewritten each turn"),
        ContractFile(FINDINGS, "supervisor", "a directory for each kept finding"),
        ContractFile(PRIVATE, "supervisor", "configuration and copies of what ran; ignored by git"),
    )
}
"""Every name of the contract, in the order an investigation is read."""


def digest(data: bytes) -> str:
    """SHA-256 in hex. Files are compared by content, never by time: times are easily set."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ProjectConfig:
    """The settings of a run besides the three files. `extra` holds keys of other versions."""

    max_experiments: int = 100
    time_per_experiment: float = 120.0
    scaffold: str = ""
    model: str = ""
    question: str = ""
    created: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.max_experiments) is not int or self.max_experiments < 1:
            raise ProjectError(f"max_experiments is {self.max_experiments!r}. Give a whole number from 1 up.")
        seconds = self.time_per_experiment
        if type(seconds) not in (int, float) or not (math.isfinite(seconds) and seconds > 0):
            raise ProjectError(f"time_per_experiment is {seconds!r}. Give seconds, a number above 0.")
        for name in ("scaffold", "model", "question"):
            if not isinstance(getattr(self, name), str):
                raise ProjectError(f"{name} is {getattr(self, name)!r}. Give a text.")


@dataclass(frozen=True)
class Project:
    """A directory that keeps the contract, and its configuration."""

    path: Path
    config: ProjectConfig

    @property
    def log_path(self) -> Path:
        return self.path / LOG


_SETTINGS = ("max_experiments", "time_per_experiment", "scaffold", "model", "question", "created")


def read_config(project: Path) -> ProjectConfig:
    """The project's configuration; a clone, whose private directory git ignores, has the defaults."""
    path = Path(project) / CONFIG
    try:
        data = _read_file(path)
    except FileNotFoundError:
        return ProjectConfig()
    except OSError as problem:
        raise ProjectError(
            f"{path} cannot be read: {problem.strerror}. Put a regular file there, or remove it to have the "
            "defaults."
        ) from None
    return parse_config(data, path)


def parse_config(raw: bytes, path: str | Path) -> ProjectConfig:
    """The configuration in these bytes; `path` is where they are from, for messages."""
    try:
        data = decode_object(raw)
    except LineError as problem:
        raise ProjectError(
            f"{path} cannot be read: {problem}. Correct it, or remove it to have the defaults."
        ) from None
    if data.pop("schema", None) != CONFIG_SCHEMA:
        raise ProjectError(f"{path} is not of schema {CONFIG_SCHEMA!r}. Remove it to have the defaults.")
    known = {name: data.pop(name) for name in _SETTINGS if name in data}
    try:
        return ProjectConfig(**known, extra=data)
    except ProjectError as problem:
        raise ProjectError(f"{path}: {problem}") from None


def _read_file(path: Path) -> bytes:
    """The bytes of a regular file; a link is not followed, and a pipe is not waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.read()


SCAFFOLD_EXPERIMENT = "scaffold_experiment"
"""The key of the configuration that holds the digest of the experiment.py that the scaffold brought."""

EXAMPLE_SETUP = "example_setup"
"""The key of the configuration that holds the digest of a setup.py with the scaffold's own example."""


def scaffold_experiment(project: Path) -> str | None:
    """The digest of the experiment.py that the project's scaffold brought; None if unknown."""
    known = read_config(project).extra.get(SCAFFOLD_EXPERIMENT)
    return known if isinstance(known, str) else None


def write_config(project: Path, config: ProjectConfig) -> Path:
    """Writes the configuration in one step; a crash leaves the old one or the new one."""
    path = Path(project) / CONFIG
    path.parent.mkdir(exist_ok=True)
    values = {"schema": CONFIG_SCHEMA, **{name: getattr(config, name) for name in _SETTINGS}, **config.extra}
    write_atomically(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())
    return path


def state_dir(project: Path) -> Path:
    """Where the supervisor keeps lock, journal and sealed files, outside the project. Not created here.

    The name comes from the directory's own identity and its real path: a symlink to the project leads to the
    same place, and a project that is made where another was moved away does not inherit its state.
    `AUTOINTERP_STATE_DIR` moves the root.
    """
    resolved = Path(project).resolve(strict=True)
    identity = resolved.stat()
    key = digest(f"{identity.st_dev}:{identity.st_ino}:".encode() + os.fsencode(resolved))[:16]
    root = os.environ.get(STATE_DIR_ENV)
    if root:
        return Path(root).resolve() / key
    import platformdirs

    return platformdirs.user_state_path("autointerp") / key


def load_project(path: str | Path) -> Project:
    """The investigation in this directory; ProjectError names what is missing and how to make one."""
    directory = Path(path)
    if not directory.is_dir():
        there = "it is a file" if directory.exists() else "it does not exist"
        raise ProjectError(
            f"no investigation in {str(directory)!r}: {there}. Make one with `autointerp init {directory}`."
        )
    required = [each.name for each in FILES.values() if each.required]
    missing = [name for name in required if not os.path.lexists(directory / name)]
    if missing:
        found = [name for name in required if name not in missing]
        raise ProjectError(
            f"{str(directory)!r} is not an investigation: {_listed(missing)} missing "
            f"(found: {', '.join(found) if found else 'none of its files'}). "
            "Name the directory of one, or make a new one with `autointerp init NEW_DIRECTORY`."
        )
    odd = [name for name in required if (directory / name).is_symlink() or not (directory / name).is_file()]
    if odd:
        raise ProjectError(
            f"{', '.join(odd)} in {str(directory)!r} must be a regular file, not a link or a directory: "
            "its bytes are what is sealed and run. Put the file itself there."
        )
    return Project(directory, read_config(directory))


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return f"{every[0]} is" if len(every) == 1 else f"{', '.join(every[:-1])} and {every[-1]} are"
