"""Every way in which the command can end: one message, one number, never a traceback in the user's face."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from mlxterp.autointerpret.contract import STATE_DIR_ENV
from mlxterp.errors import ContractError, CorruptLog, MlxterpError, ModelError
from mlxterp_agent import exit_codes as exits
from mlxterp_agent.errors import (
    BadLimit,
    DiskFull,
    GitUnavailable,
    Locked,
    ResearcherUnavailable,
    SetupChanged,
    StateUnavailable,
)
from mlxterp_agent.run_config import UsageError
from mlxterp_agent.text import plain

_NUMBERS: tuple[tuple[type[MlxterpError], int], ...] = (
    (Locked, exits.LOCKED),
    (BadLimit, exits.USAGE),
    (SetupChanged, exits.PROJECT),
    (ResearcherUnavailable, exits.RESEARCHER),
    (GitUnavailable, exits.MACHINE),
    (StateUnavailable, exits.MACHINE),
    (DiskFull, exits.MACHINE),
    (CorruptLog, exits.CONTRACT),
    (ContractError, exits.PROJECT),
    (ModelError, exits.PROJECT),
)


def end_of(command: Callable[[], object]) -> int:
    """Runs the command and gives its exit code; whatever it raises becomes a message on standard error."""
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else exits.FINISHED
    except UsageError as problem:
        return _said(str(problem), exits.USAGE)
    except KeyboardInterrupt:
        return _said("interrupted", exits.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output is gone; a second failure while Python closes it would only add noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FINISHED
    except MlxterpError as problem:
        return _said(str(problem), number_of(problem))
    except OSError as problem:
        if exits.machine_fault(problem):
            where = f" ({problem.filename})" if problem.filename else ""
            words = f"the machine refuses: {problem.strerror}{where}. Everything logged is safe. "
            return _said(f"{words}Correct that, then start again.", exits.MACHINE)
        return _bug()
    except Exception:  # noqa: BLE001 - the one place where a bug of ours becomes a message
        return _bug()
    return exits.FINISHED


def number_of(problem: MlxterpError) -> int:
    """The exit code of an error that is raised on purpose."""
    return next((number for kind, number in _NUMBERS if isinstance(problem, kind)), exits.OUR_BUG)


def _said(words: str, number: int) -> int:
    sys.stderr.write(f"error: {plain(words)}\n")
    return number


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
    words = f"autointerp itself failed, and should not have: {last}. Everything logged is safe; "
    return _said(f"{words}start again to go on. {kept}", exits.OUR_BUG)


def _crash_folder() -> Path:
    import platformdirs

    root = os.environ.get(STATE_DIR_ENV)
    folder = Path(root) if root else platformdirs.user_state_path("autointerp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir())
    return folder
