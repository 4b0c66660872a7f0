"""The jail around an experiment: which protection this machine offers, and what it may read and write.

`policy.py` says which files; `linux.py` (Landlock and seccomp) and `macos.py` (sandbox-exec) enforce it.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from typing import Literal

from mlxterp_agent.sandbox.jail import linux, macos
from mlxterp_agent.sandbox.jail.policy import Policy, caches, experiment_policy

__all__ = ["Isolation", "Policy", "Protection", "caches", "experiment_policy", "protection"]

Isolation = Literal["landlock+seccomp", "sandbox-exec", "none"]


@dataclass(frozen=True)
class Protection:
    """What stands between an experiment and this machine.

    Attributes:
        kind: the mechanism; "none" if there is none.
        reason: why there is none, or what is not covered; "" if there is nothing to say.
    """

    kind: Isolation
    reason: str = ""


def protection() -> Protection:
    """The protection that this machine offers, without trying it."""
    if sys.platform == "darwin":
        if os.access(macos.PROGRAM, os.X_OK):
            return Protection("sandbox-exec")
        return Protection("none", f"{macos.PROGRAM} is not there")
    if sys.platform != "linux":
        return Protection("none", f"there is no jail for {sys.platform}")
    if linux.machine() is None:
        return Protection("none", f"the system calls of a {platform.machine()} are not known")
    abi = linux.landlock_abi()
    if abi < linux.MINIMUM_ABI:
        return Protection("none", "this kernel does not offer Landlock, or it is switched off")
    gaps = [what for since, what in ((3, "truncating files"), (4, "TCP")) if abi < since]
    return Protection("landlock+seccomp", f"not covered by Landlock {abi}: {', '.join(gaps)}" if gaps else "")
