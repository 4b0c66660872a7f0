"""What one supervised run works with: everything that stays the same from its lock to its last line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlxterp.autointerpret.contract import Project
from mlxterp_agent.events import Emit
from mlxterp_agent.integrity.guard import Guard
from mlxterp_agent.platform import Clock, Signals
from mlxterp_agent.researchers.base import BudgetState, Researcher
from mlxterp_agent.run_config import Options
from mlxterp_agent.sandbox.runner import Runner
from mlxterp_agent.storage.budget import Budget
from mlxterp_agent.storage.results_log import Ledger
from mlxterp_agent.storage.state_dir import Sealed
from mlxterp_agent.supervisor.project_view import budget_of


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The rooms of one supervised run, by name."""

    project: Project
    sealed: Sealed
    ledger: Ledger
    guard: Guard
    budget: Budget
    runner: Runner
    driver: Researcher
    options: Options
    emit: Emit
    signals: Signals
    clock: Clock

    @property
    def path(self) -> Path:
        return self.project.path

    def budget_state(self) -> BudgetState:
        """What is spent and left at this moment."""
        return budget_of(self.budget.spent(), self.budget.limits, self.budget.seconds_left())
