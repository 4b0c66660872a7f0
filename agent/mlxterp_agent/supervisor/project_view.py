"""A project as it is now, read without taking its lock: for `status`, `log`, `report`, `run` beside a
supervisor.

Nothing is written here, and nothing is repaired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxterp.autointerpret.contract import Project, load_project, state_dir
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.scaffold import example_caution
from mlxterp_agent.platform import Clock, SystemClock
from mlxterp_agent.researchers.base import BudgetState
from mlxterp_agent.run_config import Options
from mlxterp_agent.storage.budget import Budget, Limits, Spent, budget_state
from mlxterp_agent.storage.history import History, read_history
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.storage.log_index import LoggedEntries, LogIndex
from mlxterp_agent.storage.state_dir import Holder, State, holder

_NAMED = 10


@dataclass(frozen=True)
class Overview:
    """One project as it is now.

    Attributes:
        index: of the log, as it is now.
        history: of the journal; empty if no supervisor on this machine has worked here.
        options: how the newest run was limited; None before the first.
        spent: by the journal.
        holder: who supervises it at this moment, or None.
    """

    project: Project
    state: State
    index: LogIndex
    history: History
    options: Options | None
    spent: Spent
    holder: Holder | None

    @property
    def entries(self) -> LoggedEntries:
        """The lines of the log, each read when it is asked for."""
        return self.index.entries

    @property
    def tally(self) -> Mapping[str, int]:
        """How many lines ended with each verdict."""
        return self.index.tally()

    @property
    def kept_count(self) -> int:
        """How many lines were kept."""
        return self.index.kept()

    def kept(self) -> Iterator[ExperimentEntry]:
        """The lines that were kept, oldest first."""
        return self.entries.at(reversed(self.index.newest(len(self.entries), kept=True)))

    def lines_of(self, sha: str) -> tuple[ExperimentEntry, ...]:
        """The lines of the experiment.py with this digest."""
        return tuple(self.entries.at(self.index.numbers_of(sha)))

    @property
    def uncommitted(self) -> str | None:
        """Which kept lines have no commit yet, as a sentence; None if all have one."""
        ids = sorted(self.history.ids)
        if not ids:
            return None
        named = ", ".join(ids[:_NAMED]) + (f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else "")
        return (
            f"{named} {'is' if len(ids) == 1 else 'are'} logged and not committed yet: git could not; the "
            "next start commits what is missing"
        )

    @property
    def stop_reason(self) -> str:
        """Why the newest run ended, or that it is still running."""
        if self.holder is not None:
            return "still running"
        if self.history.stop is not None:
            return self.history.stop[0]
        if self.history.config is None:
            return "no supervised run yet"
        return "ended without a reason (a crash or a kill); `autointerp start` continues"

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
            "caution": example_caution(self.project.path, config),
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
    history = read_history(journal)
    index = LogIndex.read_only(state.index_path, project.log_path)
    return Overview(
        project=project,
        state=state,
        index=index,
        history=history,
        options=None if history.config is None else Options.from_dict(history.config),
        spent=Budget(Limits(), clock or SystemClock(), journal, history).spent(),
        holder=holder(state),
    )
