"""What a supervisor keeps outside the project, away from experiments: lock, seal, journal, quarantine.

Lives here: the directory, the lock, the sealed copy of setup.py. Does not live here: the journal's events
(`journal.py`), what is compared with the seal after each experiment (`integrity/guard.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from mlxterp._files import write_all, write_atomically
from mlxterp.autointerpret.contract import (
    CONFIG,
    PROGRAM,
    SETUP,
    STATE_DIR_ENV,
    Project,
    ProjectConfig,
    digest,
    parse_config,
    state_dir,
)
from mlxterp.errors import ProjectError
from mlxterp_agent.exit_codes import Locked, SetupChanged, StateUnavailable
from mlxterp_agent.platform import NotRegular, explain_disk_full, read_regular
from mlxterp_agent.storage.project_files import write_in_project

_LOCK_TRIES = 10
_LOCK_PAUSE = 0.02
_CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class State:
    """The private directory of one project; its subdirectories exist and are the user's alone."""

    root: Path

    @property
    def lock_path(self) -> Path:
        return self.root / "lock"

    @property
    def journal_path(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def index_path(self) -> Path:
        return self.root / "log_index.sqlite"

    @property
    def heartbeat_path(self) -> Path:
        return self.root / "heartbeat"

    @property
    def sealed_dir(self) -> Path:
        return self.root / "sealed"

    @property
    def tmp_dir(self) -> Path:
        return self.root / "tmp"

    @property
    def quarantine_dir(self) -> Path:
        return self.root / "quarantine"


def open_state(project: Path) -> State:
    """The project's private directory, made if it is missing.

    Raises:
        StateUnavailable: it cannot be made or written.
    """
    state = State(state_dir(project))
    try:
        with explain_disk_full(state.root):
            state.root.mkdir(parents=True, exist_ok=True)
            for directory in (state.root, state.sealed_dir, state.tmp_dir, state.quarantine_dir):
                directory.mkdir(exist_ok=True)
                directory.chmod(0o700)
    except OSError as problem:
        raise StateUnavailable(
            f"lock, seal and journal of {project} belong in {state.root}, which cannot be used: "
            f"{problem.strerror}. Make it writable, or name another place in {STATE_DIR_ENV}."
        ) from problem
    return state


@dataclass(frozen=True)
class Holder:
    """Who holds the lock; None where the holder has not written it yet."""

    pid: int | None
    started: float | None
    host: str | None


class ProjectLock:
    """One supervisor per project. The kernel frees the lock when the holder ends, however it ends.

    The file descriptor is not inherited by children, so an orphan cannot keep the lock.
    """

    def __init__(self, state: State) -> None:
        self._path = state.lock_path
        self._fd: int | None = None

    def acquire(self) -> None:
        """Takes the lock, or raises Locked naming who has it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self._path, flags, 0o600)
        except OSError as problem:
            raise StateUnavailable(
                f"the lock {self._path} cannot be opened: {problem.strerror}. Remove what is there, then "
                "start again."
            ) from None
        try:
            if not _flock(fd):
                self._refuse()
            os.ftruncate(fd, 0)
            facts = {"pid": os.getpid(), "started": time.time(), "host": socket.gethostname()}
            with explain_disk_full(self._path):
                write_all(fd, json.dumps(facts).encode())
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        """Releases the lock, if it is held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> ProjectLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _refuse(self) -> None:
        holder = _read_holder(self._path)
        who = f"process {holder.pid}" if holder.pid else "another process"
        since = f" since {datetime.fromtimestamp(holder.started):%Y-%m-%d %H:%M}" if holder.started else ""
        end = f"stop it with `kill {holder.pid}`" if holder.pid else "stop it"
        raise Locked(
            f"this investigation is already supervised: {who} works on it{since}. Let it finish, or {end} "
            "(it saves everything first), then start again.",
            pid=holder.pid,
            since=holder.started,
        )


def holder(state: State) -> Holder | None:
    """Who supervises the project now, or None. Asks the lock itself: a process id may have been reused."""
    try:
        fd = os.open(state.lock_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(state.lock_path)
    else:
        return None
    finally:
        os.close(fd)


def _flock(fd: int) -> bool:
    # `holder` takes a shared lock for an instant, so one refusal proves nothing.
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE)
        except OSError as problem:
            raise StateUnavailable(
                f"the state directory is on a file system without locks ({problem.strerror}), so two "
                f"supervisors could not be kept apart. Name a directory on a local disk in {STATE_DIR_ENV}."
            ) from None
        else:
            return True
    return False


def _read_holder(path: Path) -> Holder:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        facts = json.loads(path.read_bytes())
        return Holder(int(facts["pid"]), float(facts["started"]), str(facts["host"]))
    return Holder(None, None, None)


@dataclass(frozen=True)
class Sealed:
    """The setup.py that every experiment of the investigation runs against.

    Attributes:
        setup: where the sealed copy lies.
        setup_bytes, setup_sha: its content and digest.
        config_bytes: the project's configuration as it was sealed; b"" if there was none.
        program_sha: digest of program.md as it is now; it may change between experiments. None if there is
        none.
    """

    setup: Path
    setup_bytes: bytes
    setup_sha: str
    config_bytes: bytes
    program_sha: str | None


def seal(state: State, project: Path, *, reseal: bool = False) -> Sealed:
    """Copies setup.py out of the project at the first start; later, checks that it is still the same.

    Args:
        reseal: take what is there now. Right when the person asks for it, and while nothing has been measured
            with the old one (the journal holds no intent): a setup.py that did not import may be corrected.

    Raises:
        SetupChanged: setup.py differs from the sealed copy.
        ProjectError: setup.py is missing or not a regular file.
    """
    current = _read(project / SETUP)
    sealed = state.sealed_dir / SETUP
    kept = None if reseal else _kept(sealed)
    if kept is not None and kept != current:
        when = datetime.fromtimestamp(sealed.stat().st_mtime)
        raise SetupChanged(
            f"{project / SETUP} is not the one this investigation began with: its digest is "
            f"{digest(current)[:12]}, and {digest(kept)[:12]} was sealed on {when:%Y-%m-%d %H:%M}. Results "
            "measured with two setups cannot be compared. Put the sealed one back "
            f"(cp '{sealed}' '{project / SETUP}'), begin a new investigation, or take the new one "
            "with --reseal."
        )
    with explain_disk_full(sealed):
        if kept is None:
            write_atomically(sealed, current)
        config = None if reseal else _kept(state.sealed_dir / _CONFIG_NAME)
        if config is None:
            config = _kept(project / CONFIG) or b""
            write_atomically(state.sealed_dir / _CONFIG_NAME, config)
        program = _kept(project / PROGRAM)
        if program is not None:
            write_atomically(state.sealed_dir / PROGRAM, program)
    return Sealed(sealed, current, digest(current), config, None if program is None else digest(program))


def restore_config(project: Path, sealed: Sealed) -> str | None:
    """Puts the sealed configuration back, and says so; None if it is there.

    Limits are raised by the command, which is logged: a file can be changed by anybody.
    """
    if (_kept(project / CONFIG) or b"") == sealed.config_bytes:
        return None
    if sealed.config_bytes:
        write_in_project(project, CONFIG, sealed.config_bytes)
    else:
        (project / CONFIG).unlink()
    return (
        f"{CONFIG} was changed since the start and was put back; options of the command, such as "
        "--max-experiments, change a limit"
    )


def sealed_config(project: Project) -> ProjectConfig:
    """The configuration that the investigation began with; before the first start, the one that is there."""
    kept = _kept(State(state_dir(project.path)).sealed_dir / _CONFIG_NAME)
    return project.config if not kept else parse_config(kept, CONFIG)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise ProjectError(
            f"{path} is missing, and every experiment imports it. Put it back, or name the directory of an "
            "investigation."
        ) from None
    except NotRegular as problem:
        raise ProjectError(f"{path} is {problem}. Put the file itself there.") from None


def _kept(path: Path) -> bytes | None:
    try:
        return read_regular(path)
    except (FileNotFoundError, NotRegular):
        return None
