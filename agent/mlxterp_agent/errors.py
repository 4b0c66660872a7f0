"""Every error the machinery raises on purpose.

A message has three parts: what was asked, what is there, what to do. The command line prints it and ends with
the exit code of its class (`exit_codes.py`).

    MlxterpError
    └── AgentError
        ├── Locked             another supervisor works in this directory
        ├── SetupChanged       setup.py is not the one that was sealed
        ├── BadLimit           a budget that limits nothing, or that is no number
        ├── GitUnavailable     git is missing, cannot read the repository, or does not answer
        ├── StateUnavailable   the user state directory cannot be used, or was changed under the supervisor
        ├── DiskFull           no space is left where something must be written
        └── ResearcherUnavailable  the researcher that was asked for cannot be had
"""

from __future__ import annotations

from mlxterp.errors import MlxterpError


class AgentError(MlxterpError):
    """Base of the machinery's errors."""


class Locked(AgentError):
    """Another supervisor holds the project's lock.

    Attributes:
        pid: its process id, or None if it has not written it yet.
        since: when it started, in seconds since 1970, or None.
    """

    def __init__(self, message: str, *, pid: int | None, since: float | None) -> None:
        super().__init__(message)
        self.pid = pid
        self.since = since


class SetupChanged(AgentError):
    """The project's setup.py differs from the sealed one."""


class BadLimit(AgentError):
    """A limit of the budget that is zero, negative or not a number."""


class GitUnavailable(AgentError):
    """git is missing, cannot read the repository, refuses, or does not answer in time."""


class StateUnavailable(AgentError):
    """The directory that holds lock, seal and journal cannot be used."""


class DiskFull(AgentError):
    """No space is left on the device that holds this path."""


class ResearcherUnavailable(AgentError):
    """The researcher that was asked for is not part of this version, not installed, or refuses its key."""
