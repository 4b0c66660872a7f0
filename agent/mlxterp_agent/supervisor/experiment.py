"""The life of one experiment, from a changed experiment.py to the answer to the researcher.

Freeze, announce, run, judge, log, commit: the order is here, and each step is in its own module. One value,
the `Experiment` of `storage/record.py`, goes through them and is extended by each.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxterp.autointerpret.contract import EXPERIMENT, PROGRAM, Project, digest
from mlxterp.autointerpret.hypothesis import read_hypothesis
from mlxterp.autointerpret.prediction import read_predictions
from mlxterp.errors import DeclarationError
from mlxterp_agent.crash_points import AFTER_JUDGEMENT, point
from mlxterp_agent.events import Emit, Running, Waiting
from mlxterp_agent.integrity.guard import Guard
from mlxterp_agent.judge.evidence import Known, judge_experiment, may_be_judged
from mlxterp_agent.judge.judge import Judge
from mlxterp_agent.outcome import outcome_text, repeat_text
from mlxterp_agent.platform import Clock, Signals, read_or_none
from mlxterp_agent.researchers.base import BudgetState, ExperimentOutcome, Researcher
from mlxterp_agent.run_config import Options
from mlxterp_agent.sandbox.runner import Runner
from mlxterp_agent.storage.budget import Budget
from mlxterp_agent.storage.project_files import move_other_spellings, write_in_project
from mlxterp_agent.storage.record import RUNS, Cost, Execution, Experiment, verdict_of
from mlxterp_agent.storage.results_log import ResultsLog
from mlxterp_agent.supervisor.guidance import Guidance
from mlxterp_agent.supervisor.watcher import Candidate
from mlxterp_agent.text import one_line

FREE_ERRORS = 10
"""Experiments of an investigation that cost nothing because they failed before a model ran."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What one supervised run works with: everything that stays the same from its lock to its last line."""

    project: Project
    setup_sha: str
    results: ResultsLog
    guard: Guard
    budget: Budget
    runner: Runner
    guidance: Guidance
    judge: Judge
    researcher: Researcher
    options: Options
    emit: Emit
    signals: Signals
    clock: Clock
    heartbeat_path: Path

    @property
    def path(self) -> Path:
        return self.project.path

    def budget_state(self) -> BudgetState:
        """What is spent and left at this moment."""
        return self.budget.state()


class ExperimentPipeline:
    """Takes one experiment after another through its life, in one project.

    Attributes:
        facts: what setup.py offers; set once it is imported.
        instrument_failures: experiments in a row with which nothing could be measured.
    """

    def __init__(self, context: RunContext, stop: Callable[[], str | None]) -> None:
        self.facts: Mapping[str, Any] = {}
        self.instrument_failures = 0
        self._context = context
        self._stop = stop
        self._charged = self._cost_so_far()

    def run(self, candidate: Candidate, time_box: float) -> ExperimentOutcome:
        """Runs what was proposed, once, for at most `time_box` seconds."""
        try:
            experiment = self._experiment(candidate, time_box)
        except DeclarationError as problem:
            return self.refuse(str(problem))
        context = self._context
        move_other_spellings(context.path, EXPERIMENT, notice=lambda what: context.emit(Waiting(what)))
        frozen = _freeze(context, experiment)
        violations = context.guard.between_runs()
        context.results.announce(experiment)
        if violations:
            why = "not run: the contract was violated before it began"
            return self._settle(experiment, Execution(status="refused", error=why), violations)
        before = context.guard.marks(frozen)
        context.guidance.before_run()
        context.emit(Running(experiment.run, experiment.sha, time_box, experiment.claim))
        execution = context.runner.run(
            frozen,
            experiment.run,
            time_box=time_box,
            stop=self._stop,
            explore=context.judge.held_out.explore,
        )
        point("after-run")
        if (doubtful := context.guidance.after_run()) is not None:
            context.emit(Waiting(doubtful))
        violations = context.guard.after(before, frozen, execution)
        if execution.status != "interrupted":
            context.runner.warm()
        return self._settle(experiment, execution, violations)

    def refuse(self, why: str) -> ExperimentOutcome:
        """What cannot run is not logged, and costs no experiment."""
        self._context.emit(Waiting(f"not run: {why}"))
        return ExperimentOutcome(None, (), f"not run: {why}", self._context.guidance.if_changed())

    def repeat_outcome(self, candidate: Candidate) -> ExperimentOutcome:
        """The same bytes are not run again: the researcher gets what came of them before."""
        ids = self._context.results.tried[candidate.sha]
        entries = self._context.results.lines_of(candidate.sha)
        self._context.emit(Waiting(f"not run: experiment.py is what ran as {', '.join(ids)}; change it"))
        text = repeat_text(entries, self._context.budget_state(), self._context.path)
        return ExperimentOutcome(None, entries, text, self._context.guidance.if_changed())

    def _experiment(self, candidate: Candidate, time_box: float) -> Experiment:
        declared, researcher = read_hypothesis(candidate.source), self._context.researcher
        read_predictions(candidate.source)
        program = read_or_none(self._context.path / PROGRAM)
        return Experiment(
            run=self._context.results.last_run + 1,
            uid=uuid.uuid4().hex,
            source=candidate.source.decode("utf-8"),
            time_box=time_box,
            digests={
                "setup": self._context.setup_sha,
                "program": None if program is None else digest(program),
                "experiment": candidate.sha,
            },
            declared=None if declared is None else declared.declared(),
            driver={"name": researcher.name, "model": researcher.model, "session": researcher.session},
        )

    def _settle(
        self, experiment: Experiment, execution: Execution, violations: list[str]
    ) -> ExperimentOutcome:
        """Judges every entry of the run, logs and commits them, and says what came of them."""
        context, charged = self._context, self._charged
        self._charged = self._cost_so_far()
        executed = replace(
            experiment,
            execution=execution,
            violations=tuple(violations),
            facts=self.facts,
            cost=_difference(self._charged, charged),
            spent=context.budget.spent(),
            ended_at=context.clock.wall(),
        )
        if execution.held_out:
            context.judge.note_seen(experiment.run, execution.held_out)
            why = f"run {experiment.run:04d} measured held-out pairs: no later claim is judged on them"
            context.emit(Waiting(why))
        claim = None
        if may_be_judged(executed):
            context.emit(Waiting(f"judging: {one_line(executed.claim, 100)}"))
            claim = context.judge.judge(executed, self._stop)
            point(AFTER_JUDGEMENT)
            if claim.interrupted:
                broken_off = replace(execution, status="interrupted", error=claim.interrupted)
                executed = replace(executed, execution=broken_off)
            executed = replace(executed, ended_at=context.clock.wall(), spent=context.budget.spent())
        known = Known(
            identical_to=lambda entry: context.results.same_numbers(entry, experiment.sha),
            entries=context.results.entries,
            mirrored=context.judge.held_out.mirrored,
            copied=context.judge.held_out.copied,
        )
        # Before the lines: who waits for them in the log finds the guidance there already.
        guidance = context.guidance.if_changed(experiment.run)
        free = self._is_free(execution, violations)
        lines = judge_experiment(executed, known, claim)
        logged = context.results.settle(executed, lines, free=free)
        context.guard.remember()
        broken = any(verdict_of(entry) == "invalid:instrument" for entry in logged)
        self.instrument_failures = self.instrument_failures + 1 if broken else 0
        text = outcome_text(logged, context.budget_state(), printed=execution.stdout_tail)
        if free:
            used = context.results.history.free
            text = f"free: it failed before a model ran ({used} of {FREE_ERRORS} such errors)\n{text}"
        return ExperimentOutcome(experiment.run, logged, text, guidance)

    def _is_free(self, execution: Execution, violations: list[str]) -> bool:
        used = self._context.results.history.free
        return execution.failed_before_measuring and not violations and used < FREE_ERRORS

    def _cost_so_far(self) -> Cost:
        spent = self._context.budget.spent()
        return Cost(spent.usd, spent.tokens)


def _freeze(context: RunContext, experiment: Experiment) -> Path:
    """A copy of the bytes that will run, in `.autointerp/runs/NNNN/experiment.py`. These are run, judged,
    committed."""
    name = f"{RUNS}/{experiment.run:04d}/{EXPERIMENT}"
    write_in_project(context.path, name, experiment.source.encode(), notice=context.results.note_moved)
    return context.path / name


def _difference(now: Cost, before: Cost) -> Cost:
    return Cost(
        None if now.usd is None else now.usd - (before.usd or 0.0),
        None if now.tokens is None else now.tokens - (before.tokens or 0),
    )
