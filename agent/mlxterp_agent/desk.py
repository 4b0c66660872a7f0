"""What one supervised run works with: everything that stays the same from its lock to its last line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlxterp.autointerpret.contract import Project
from mlxterp_agent.budget import Budget
from mlxterp_agent.clock import Clock
from mlxterp_agent.drivers import BudgetState, Driver
from mlxterp_agent.guard import Guard
from mlxterp_agent.ledger import Ledger
from mlxterp_agent.live import Emit
from mlxterp_agent.options import Options
from mlxterp_agent.overview import budget_of
from mlxterp_agent.runner import Runner
from mlxterp_agent.signals import Signals
from mlxterp_agent.state import Sealed


@dataclass(frozen=True, kw_only=True)
class Desk:
    """The rooms of one supervised run, by name."""

    project: Project
    sealed: Sealed
    ledger: Ledger
    guard: Guard
    budget: Budget
    runner: Runner
    driver: Driver
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
