"""The jail of an experiment's process on macOS: a profile for `sandbox-exec`.

Files outside the policy cannot be written and hidden ones not read; there is no network, no new process, and
no signal to another process. Reading is allowed by default, because Metal reads in many places that differ
from version to version. What this cannot do: services reached through Mach messages stay reachable, and the
memory of the GPU is not limited.

Lives here: the profile and the command that applies it. Does not live here: the paths (`policy.py`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mlxterp_agent.sandbox.jail.policy import Policy

PROGRAM = "/usr/bin/sandbox-exec"

_SECRETS = (
    *(".ssh", ".aws", ".gnupg", ".config", ".netrc", ".docker", ".kube", ".azure", ".claude", ".claude.json"),
    *(
        "Library/Keychains",
        "Library/Cookies",
        "Library/Application Support",
        "Library/Messages",
        "Library/Mail",
    ),
)

_DEVICES_AND_CACHES = r"""(literal "/dev/null") (regex #"^/private/var/folders/.*/C/com\.apple\.metal")"""
"""Written by every program, and by Metal, which ends a process whose cache it cannot write."""


def command(policy: Policy, program: list[str]) -> list[str]:
    """The command line that runs `program` in the jail."""
    return [PROGRAM, "-p", profile(policy), *program]


def profile(policy: Policy) -> str:
    """The profile of a policy. Paths are resolved, because rules do not see through links such as /tmp.

    The last rule that matches decides: the scratch directory may be inside a hidden one. `sandbox-exec`
    starts Python after the profile is in force, and a framework's Python replaces itself once more; without
    fork, replacing itself is all that is possible.
    """
    writable = [path for path in policy.write if not path.startswith(("/dev/", "/proc/"))]
    write = " ".join(f"(subpath {_quoted(path)})" for path in writable)
    above = dict.fromkeys(str(each) for path in writable for each in Path(os.path.realpath(path)).parents)
    pass_through = " ".join(f"(literal {_quoted(path)})" for path in above)
    python = f"(literal {_quoted(sys.executable)}) (subpath {_quoted(sys.base_prefix)})"
    hidden = [*policy.hide, *(os.path.join(os.path.expanduser("~"), name) for name in _SECRETS)]
    hide = " ".join(f"(subpath {_quoted(path)})" for path in hidden)
    return "\n".join(
        [
            "(version 1)",
            "(allow default)",
            "(deny network*)",
            "(deny process-fork)",
            "(deny process-exec*)",
            f"(allow process-exec* {python})",
            "(deny file-write*)",
            f"(deny file-read* file-write* {hide})",
            f"(allow file-read-metadata {pass_through})",
            f"(allow file-read* {write})",
            f"(allow file-write* {write} {_DEVICES_AND_CACHES})",
            "(deny signal)",
            "(allow signal (target self))",
            "(deny process-info* (target others))",
            "(deny mach-priv-task-port)",
            "(deny appleevent-send)",
            "(deny lsopen)",
            "(deny job-creation)",
            "",
        ]
    )


def _quoted(path: str) -> str:
    """A path as a string of the profile's language.

    Raises:
        ValueError: it holds a line break or another control character, which the language cannot spell.
    """
    resolved = os.path.realpath(path)
    if any(ord(character) < 32 for character in resolved):
        raise ValueError(
            f"{path!r} has a control character in its name. Move the investigation to another directory."
        )
    return '"' + resolved.replace("\\", "\\\\").replace('"', '\\"') + '"'
