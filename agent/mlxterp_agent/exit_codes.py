"""The exit codes of the command, the error classes of this package, and the exit code of each error."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar, NamedTuple

from mlxterp.autointerpret.contract import STATE_DIR_ENV
from mlxterp.errors import ContractError, CorruptLog, MlxterpError, ModelError
from mlxterp_agent.text import plain

FINISHED = 0
OUR_BUG = 1
USAGE = 2
PROJECT = 3
CONTRACT = 4
RESEARCHER = 5
MACHINE = 6
NOTHING_RAN = 7
INVALID = 8
LOCKED = 75
INTERRUPTED = 130

MEANING = {
    FINISHED: "finished: a budget was reached, the question is answered, STOP, or nothing is left to try",
    OUR_BUG: "a bug of autointerp itself; the message names the file with the details",
    USAGE: "the command line cannot be understood",
    PROJECT: "the project cannot be used: not an investigation, setup.py missing or raising, unknown model",
    CONTRACT: "the contract was violated: twice in one run, or found by `verify` or at start",
    RESEARCHER: "the researcher failed or is not available",
    MACHINE: "the machine: disk full, git unusable, no jail, a directory that cannot be written",
    NOTHING_RAN: "`run` ran nothing: the budget is used up, or there is a file STOP",
    INVALID: "`run`: the experiment is invalid (it raised, took too long, changed nothing); see its line",
    LOCKED: "another supervisor works in this directory",
    INTERRUPTED: "interrupted by Ctrl-C, SIGTERM or SIGHUP; everything is saved",
}


class Ended(NamedTuple):
    """Why a run ended, the exit code for it, and which of `endings.ENDINGS` it is."""

    reason: str
    exit_code: int
    ending: str = "researcher"


class UsageError(ValueError):
    """An option with a value that cannot be used."""

    exit_code: ClassVar[int] = USAGE


class AgentError(MlxterpError):
    """Base of the errors of `mlxterp_agent`; `exit_code` is the one the command ends with."""

    exit_code: ClassVar[int] = OUR_BUG


class Locked(AgentError):
    """Another supervisor holds the project's lock.

    Attributes:
        pid: its process id, or None if it has not written it yet.
        since: when it started, in seconds since 1970, or None.
    """

    exit_code = LOCKED

    def __init__(self, message: str, *, pid: int | None, since: float | None) -> None:
        super().__init__(message)
        self.pid = pid
        self.since = since


class SetupChanged(AgentError):
    """The project's setup.py differs from the sealed one."""

    exit_code = PROJECT


class BadLimit(AgentError):
    """A limit of the budget that is zero, negative or not a number."""

    exit_code = USAGE


class GitUnavailable(AgentError):
    """git is missing, cannot read the repository, refuses, or does not answer in time."""

    exit_code = MACHINE


class GitMissing(GitUnavailable):
    """git is not installed."""


class StateUnavailable(AgentError):
    """The directory that holds lock, seal and journal cannot be used."""

    exit_code = MACHINE


class SandboxUnavailable(AgentError):
    """There is no jail for experiments on this machine, and running without one was not allowed."""

    exit_code = MACHINE


class DiskFull(AgentError):
    """No space is left on the device that holds this path."""

    exit_code = MACHINE


class ResearcherUnavailable(AgentError):
    """The requested researcher is not part of this version, not installed, or its key is refused."""

    exit_code = RESEARCHER


_LIBRARY_CODES = ((CorruptLog, CONTRACT), (ContractError, PROJECT), (ModelError, PROJECT))

_MACHINE_FAULTS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.EACCES,
        errno.EPERM,
        errno.EMFILE,
        errno.ENFILE,
    }
)


def epilog() -> str:
    """The table of exit codes, as `autointerp --help` prints it."""
    # The first character keeps the line breaks when the help is formatted.
    return "\b\nExit codes:\n" + "\n".join(f"{code:5}  {meaning}" for code, meaning in MEANING.items())


def machine_fault(error: OSError) -> bool:
    """Whether the machine caused an OSError (disk full, read-only, no rights) rather than a mistake of
    ours."""
    return error.errno in _MACHINE_FAULTS


def end_of(command: Callable[[], object]) -> int:
    """Runs the command and gives its exit code; whatever it raises becomes a message on standard error."""
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FINISHED
    except UsageError as problem:
        return _report(str(problem), problem.exit_code)
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output is gone; a second failure while Python closes it would only add noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINISHED
    except MlxterpError as problem:
        return _report(str(problem), exit_code_of(problem))
    except OSError as problem:
        if problem.errno is None:
            return _bug()
        where = f" ({problem.filename})" if problem.filename else ""
        return _report(
            f"the machine refuses: {problem.strerror}{where}. Everything logged is safe. "
            "Correct that, then start again.",
            MACHINE,
        )
    except MemoryError:
        return _report(
            "there is not enough memory. Everything logged is safe. Free some, then start again.", MACHINE
        )
    except Exception as problem:  # noqa: BLE001 - the one place where a bug of ours becomes a message
        if isinstance(problem, RuntimeError) and "can't start new thread" in str(problem):
            return _report(
                "the machine starts no more threads (see ulimit -u). Everything logged is safe.", MACHINE
            )
        return _bug()
    return FINISHED


def exit_code_of(problem: MlxterpError) -> int:
    """The exit code of an error that is raised on purpose."""
    if isinstance(problem, AgentError):
        return problem.exit_code
    return next((code for kind, code in _LIBRARY_CODES if isinstance(problem, kind)), OUR_BUG)


def _report(message: str, exit_code: int) -> int:
    sys.stderr.write(f"error: {plain(message)}\n")
    return exit_code


def _bug() -> int:
    details = traceback.format_exc()
    last = plain(details.strip().splitlines()[-1])
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
    try:
        where = _crash_folder() / f"crash-{stamp}-{os.getpid()}.txt"
        where.write_text(details, encoding="utf-8")
        kept = f"The details are in {where}; please report them."
    except OSError:
        kept = f"The details could not be kept:\n{plain(details)}"
    return _report(
        f"autointerp itself failed, and should not have: {last}. Everything logged is safe; start again to "
        f"continue. {kept}",
        OUR_BUG,
    )


def _crash_folder() -> Path:
    import platformdirs

    root = os.environ.get(STATE_DIR_ENV)
    folder = Path(root) if root else platformdirs.user_state_path("autointerp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir())
    return folder
