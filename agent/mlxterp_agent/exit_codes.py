"""How the command ends: one number for each reason, and which error ends with which number."""

from __future__ import annotations

import errno
from typing import NamedTuple

FINISHED = 0
OUR_BUG = 1
USAGE = 2
PROJECT = 3
CONTRACT = 4
RESEARCHER = 5
MACHINE = 6
LOCKED = 75
INTERRUPTED = 130

MEANING = {
    FINISHED: "finished: a budget was reached, the question is answered, STOP, or nothing is left to try",
    OUR_BUG: "a bug of autointerp itself; the message names the file with the details",
    USAGE: "the command line cannot be understood",
    PROJECT: "the project cannot be used: not an investigation, setup.py missing or raising, unknown model",
    CONTRACT: "the contract was violated: twice in one run, or found by `verify` or at start",
    RESEARCHER: "the researcher failed or is not available",
    MACHINE: "the machine: disk full, git unusable, a directory that cannot be written",
    LOCKED: "another supervisor works in this directory",
    INTERRUPTED: "interrupted by Ctrl-C, SIGTERM or SIGHUP; everything is saved",
}

_DISK = frozenset(
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


class Ended(NamedTuple):
    """Why a run ended, in words, and the exit code that says so."""

    reason: str
    exit_code: int


def epilog() -> str:
    """The table of exit codes, as `autointerp --help` prints it."""
    # The first character keeps the line breaks when the help is formatted.
    return "\b\nExit codes:\n" + "\n".join(f"{code:5}  {meaning}" for code, meaning in MEANING.items())


def machine_fault(error: OSError) -> bool:
    """Whether an OSError is the machine's (disk full, read-only, no rights) rather than our own mistake."""
    return error.errno in _DISK
