"""Calls git for one working tree: a fixed environment and configuration, a time limit, named errors.

What is committed, and how, is in `git.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlxterp_agent.exit_codes import DiskFull, GitMissing, GitUnavailable

TIMEOUT = 10.0
"""Seconds that one call of git may take; during it a signal has to wait."""

_OPTIONS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.bare=false",
    "core.fsync=all",
    "core.filesRefLockTimeout=100",
    "gc.auto=0",
    "maintenance.auto=false",
    "commit.gpgSign=false",
    "log.showSignature=false",
    "i18n.commitEncoding=UTF-8",
)

ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_AUTHOR_NAME": "autointerp",
    "GIT_AUTHOR_EMAIL": "autointerp@localhost",
    "GIT_COMMITTER_NAME": "autointerp",
    "GIT_COMMITTER_EMAIL": "autointerp@localhost",
    "LC_ALL": "C",
}

_PASSED_ON = ("PATH", "HOME", "TMPDIR", "TZ", "DEVELOPER_DIR", "SDKROOT")


class Reply(NamedTuple):
    """How a call of git ended, and what it wrote."""

    status: int
    out: bytes
    err: str

    def text(self) -> str:
        return self.out.decode("utf-8", "replace").strip()


class GitDirs(NamedTuple):
    """`own` holds HEAD and the index; `common` holds objects, refs and config. They differ in a linked
    worktree."""

    own: Path
    common: Path


class GitDriver:
    """Calls git for the repository whose working tree is exactly `project`."""

    def __init__(self, project: Path) -> None:
        self.project = project.resolve()
        self._git = _gitpython(self.project)

    def ask(self, *arguments: str, index: Path | None = None) -> Reply:
        """One call of git. Failure is in the reply's status.

        Raises:
            GitUnavailable: git is not installed, or does not end within 10 seconds.
            DiskFull: git reports it.
        """
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= ENVIRONMENT
        environment |= {"GIT_DIR": str(self.project / ".git"), "GIT_WORK_TREE": str(self.project)}
        if index is not None:
            environment["GIT_INDEX_FILE"] = str(index)
        status, out, err = self._execute(environment, arguments)
        if "No space left on device" in err or "Disk quota exceeded" in err:
            raise DiskFull(
                f"git could not write into {self.project}: no space is left. Nothing that was logged is "
                "lost. Free some space there, then start again; what is missing in git is committed then."
            )
        return Reply(status, out, err.strip())

    def tell(self, *arguments: str, index: Path | None = None) -> Reply:
        """One call of git that must succeed.

        Raises:
            GitUnavailable: it did not; with git's own message.
        """
        reply = self.ask(*arguments, index=index)
        if reply.status != 0:
            raise GitUnavailable(
                f"`git {arguments[0]}` failed in {self.project}: {reply.err or f'exit code {reply.status}'}. "
                "The log and the findings are safe; correct the repository and start again: what is missing "
                "is committed then."
            )
        return reply

    def _execute(self, environment: Mapping[str, str], arguments: tuple[str, ...]) -> tuple[int, bytes, str]:
        options = [part for option in _OPTIONS for part in ("-c", option)]
        settings = [f"{name}={value}" for name, value in environment.items()]
        command = ["env", "-i", *settings, self._git.GIT_PYTHON_GIT_EXECUTABLE, *options, *arguments]
        from git.exc import GitCommandNotFound

        try:
            status, out, err = self._git.execute(
                command,
                with_extended_output=True,
                with_exceptions=False,
                stdout_as_string=False,
                strip_newline_in_stdout=False,
                kill_after_timeout=TIMEOUT,
            )
        except GitCommandNotFound:
            raise _missing() from None
        if status == 127:
            raise _missing()
        if err.startswith("Timeout:"):
            raise GitUnavailable(
                f"`git {arguments[0]}` in {self.project} did not end within {TIMEOUT:g} seconds and was "
                "stopped. Look for a hanging file system; the log is safe, and what is missing is committed "
                "at the next start."
            )
        return status, out, err


def git_dirs(project: Path) -> GitDirs | None:
    """Where the repository at the top of `project` keeps its files, read without running git; None if there
    is none."""
    marker = project / ".git"
    if marker.is_dir():
        own = marker
    elif marker.is_file():
        text = marker.read_text(encoding="utf-8", errors="surrogateescape")
        if not text.startswith("gitdir:"):
            return None
        own = (project / text.removeprefix("gitdir:").strip()).resolve()
    else:
        return None
    shared = own / "commondir"
    common = (own / shared.read_text(encoding="utf-8").strip()).resolve() if shared.is_file() else own
    return GitDirs(own, common)


def _gitpython(project: Path) -> Any:
    try:
        import git
    except ImportError as problem:
        # GitPython starts git once, and says the same whatever prevented it.
        if shutil.which("git") is None:
            raise _missing() from None
        raise GitUnavailable(
            "git is installed and does not start; see `git --version`, and the limits of open files and "
            "processes (ulimit -a)"
        ) from problem
    return git.Git(str(project))


def _missing() -> GitMissing:
    return GitMissing(
        "findings are committed with git, and no `git` is found on the PATH. Install it (Debian: apt "
        "install git; macOS: xcode-select --install), then start again."
    )
