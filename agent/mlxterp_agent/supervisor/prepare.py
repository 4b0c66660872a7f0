"""What the command does before and around a supervised run: the directory, the screen, the report."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlxterp.autointerpret.contract import CONFIG
from mlxterp.autointerpret.scaffold import init_autointerpret
from mlxterp_agent.display.notify import Notices, Target
from mlxterp_agent.events import (
    Event,
    JsonLines,
    PlainLines,
    Printer,
)
from mlxterp_agent.exit_codes import INTERRUPTED, Ended
from mlxterp_agent.researchers.base import Researcher
from mlxterp_agent.run_config import Options
from mlxterp_agent.storage.git import Committer
from mlxterp_agent.supervisor import report_process as reporting
from mlxterp_agent.supervisor.loop import run
from mlxterp_agent.supervisor.project_files import initial_files

DEFAULT_DIRECTORY = "investigation"


class Supervised(NamedTuple):
    """How a run ended, and why there is no report; None if there is one."""

    ended: Ended
    report_failed: str | None


def supervised(
    directory: Path,
    driver: Researcher,
    options: Options,
    who: str,
    *,
    as_json: bool,
    notify: Sequence[Target] = (),
) -> Supervised:
    """Runs the investigation behind a screen, and has the report written when it has ended.

    Args:
        notify: who is told of the few things that are worth it, besides the screen.
    """
    screen = _Guarded(_printer(as_json=as_json))
    try:
        with Notices(screen, notify, project=directory.resolve().name) as emit:
            ended = run(directory, driver, options, emit, researcher=who)
    finally:
        screen.close()
    return Supervised(ended, reporting.refresh_report(directory, wait=ended.exit_code != INTERRUPTED))


def target_of(directory: Path | None) -> Path:
    """The directory of `start`: the one that is named, else the one we stand in, else ./investigation."""
    if directory is not None:
        return directory
    return Path() if Path(CONFIG).is_file() else Path(DEFAULT_DIRECTORY)


def make(directory: Path, *, scaffold: str, model: str | None, question: str | None, **budget: Any) -> Path:
    """A new investigation, in a git repository of its own."""
    made = init_autointerpret(
        directory, model_name=model, research_question=question, scaffold=scaffold, **budget
    )
    Committer(made).ensure_repo(initial_files(made))
    return made


class _Guarded:
    """A printer that ends no investigation when its terminal is gone."""

    def __init__(self, printer: Printer) -> None:
        self._printer: Printer | None = printer

    def __call__(self, event: Event) -> None:
        if self._printer is not None:
            try:
                self._printer(event)
            except OSError:
                self._printer = None

    def close(self) -> None:
        if self._printer is not None:
            try:
                self._printer.close()
            except OSError:
                self._printer = None


def _printer(*, as_json: bool) -> Printer:
    if as_json:
        return JsonLines()
    if not sys.stdout.isatty():
        return PlainLines()
    from mlxterp_agent.display.terminal import LiveScreen

    return LiveScreen()


def check(name: str, *, as_json: bool) -> int:
    """Prints which hook points and parts a model has, and gives the exit code.

    Loads the model in a child process, which may download it: the supervisor's side never loads mlx.
    """
    options = ["--json"] if as_json else []
    # `--` because a name is somebody's text and may begin with a dash.
    return subprocess.run(
        [sys.executable, "-m", "mlxterp.core.capabilities", *options, "--", name], check=False
    ).returncode
