"""A project as it is now, read without taking its lock: for `status`, `log`, `report`, `run` beside a
supervisor.

Nothing is written here, and nothing is repaired.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxterp.autointerpret.contract import Project, load_project, state_dir
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.log import ExperimentLog
from mlxterp_agent.platform import Clock, SystemClock
from mlxterp_agent.researchers.base import BudgetState
from mlxterp_agent.run_config import Options
from mlxterp_agent.storage.budget import Budget, Limits, Spent, budget_state
from mlxterp_agent.storage.journal import Event, Journal
from mlxterp_agent.storage.state_dir import Holder, State, holder


@dataclass(frozen=True)
class Overview:
    """One project as it is now.

    Attributes:
        entries: the lines of the log.
        events: the journal; empty if no supervisor on this machine has worked here.
        options: how the newest run was limited; None before the first.
        spent: by the journal.
        holder: who supervises it at this moment, or None.
    """

    project: Project
    state: State
    entries: list[ExperimentEntry]
    events: list[Event]
    options: Options | None
    spent: Spent
    holder: Holder | None

    @property
    def stop_reason(self) -> str:
        """Why the newest run ended, or that it is still running."""
        if self.holder is not None:
            return "still running"
        ends = [event for event in self.events if event["event"] in ("start", "stop")]
        if not ends:
            return "no supervised run yet"
        if ends[-1]["event"] == "start":
            return "ended without a reason (a crash or a kill); `autointerp start` continues"
        return str(ends[-1]["reason"])

    def budget(self) -> BudgetState:
        """What is spent and left; without a supervised run yet, by the project's configuration."""
        options = self.options or Options(max_experiments=self.project.config.max_experiments)
        left = None if options.seconds is None else max(0.0, options.seconds - self.spent.seconds)
        return budget_state(self.spent, options.limits(), left)

    def report_config(self) -> dict[str, Any]:
        """What the report says about the question and the limits."""
        config, options = self.project.config, self.options or Options(max_experiments=None)
        return {
            "question": config.question,
            "model": config.model,
            "max_experiments": options.max_experiments or config.max_experiments,
            "hours": None if options.seconds is None else options.seconds / 3600,
            "max_usd": options.usd,
            "max_tokens": options.tokens,
        }


def read_project(directory: Path, *, clock: Clock | None = None) -> Overview:
    """The project in this directory, as it is now."""
    project = load_project(directory)
    state = State(state_dir(project.path))
    journal = Journal(state.journal_path)
    events = journal.events()
    starts = [event for event in events if event["event"] == "start"]
    return Overview(
        project=project,
        state=state,
        entries=ExperimentLog(project.log_path).entries(),
        events=events,
        options=Options.from_dict(starts[-1]["config"]) if starts else None,
        spent=Budget(Limits(), clock or SystemClock(), journal).spent(),
        holder=holder(state),
    )
