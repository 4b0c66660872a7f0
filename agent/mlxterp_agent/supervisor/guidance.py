"""The guidance in steer.md, and when a researcher gets it: at the beginning of each turn, and with the next
outcome once it has changed.

An outcome carries it as a block of its own, beside the text that an experiment can write into. A steer.md
that changed while an experiment ran outside a jail is not delivered: the experiment may have written it. It
is again once it changes while none runs. In a jail an experiment cannot write it. Does not cover: an agent
with a shell, which can write what its user can.
"""

from __future__ import annotations

from pathlib import Path

from mlxterp._files import write_atomically
from mlxterp.autointerpret.contract import STEER, digest
from mlxterp_agent.platform import read_or_none
from mlxterp_agent.text import cut, plain

LIMIT = 4000
"""Bytes of steer.md that are delivered with an outcome."""

_TURN_LIMIT = 8000
_FOLDER = "guidance"
_DELIVERED = "delivered"


def guidance_of(state: Path, run: object) -> str:
    """What was delivered with the outcome of this run; "" if nothing."""
    if not isinstance(run, str) or not run.isdigit():
        return ""
    return (read_or_none(state / _FOLDER / f"{run}.md") or b"").decode("utf-8", "replace")


class Guidance:
    """The steer.md of one project under one supervisor.

    Args:
        state: the state directory, where what was delivered is remembered.
        jailed: whether experiments run in a jail.
    """

    def __init__(self, project: Path, state: Path, *, jailed: bool) -> None:
        self._path = project / STEER
        self._folder = state / _FOLDER
        self._jailed = jailed
        self._refused = ""
        self._before_run = ""

    def for_turn(self) -> str:
        """What a turn begins with: the whole guidance, also if it was delivered before."""
        sha, text = self._read()
        if sha == self._refused:
            return ""
        self._remember(sha)
        return cut(text, _TURN_LIMIT)

    def before_run(self) -> None:
        """An experiment is about to run."""
        self._before_run = self._read()[0]

    def after_run(self) -> str | None:
        """The experiment has ended. A sentence if it may have written steer.md."""
        sha = self._read()[0]
        if self._jailed or sha == self._before_run:
            return None
        self._refused = sha
        return f"{STEER} changed while an experiment ran without a jail, so it is not given to the researcher"

    def if_changed(self, run: int | None = None) -> str:
        """What an outcome carries: the guidance, if it has changed since it was last delivered; else "".

        Args:
            run: the run whose outcome it is, under which others find it (`guidance_of`).
        """
        sha, text = self._read()
        delivered = (read_or_none(self._folder / _DELIVERED) or b"").decode()
        if sha in (delivered, self._refused) or not text.strip():
            return ""
        text = cut(text, LIMIT)
        if run is not None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_atomically(self._folder / f"{run:04d}.md", text.encode())
        self._remember(sha)
        return text

    def _read(self) -> tuple[str, str]:
        data = read_or_none(self._path) or b""
        return digest(data), plain(data.decode("utf-8", "replace"))

    def _remember(self, sha: str) -> None:
        if (read_or_none(self._folder / _DELIVERED) or b"").decode() != sha:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_atomically(self._folder / _DELIVERED, sha.encode())
