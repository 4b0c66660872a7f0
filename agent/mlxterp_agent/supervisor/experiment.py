"""The life of one experiment, from the bytes that were noticed to what the researcher is told.

Freeze, pre-flight, register, run, decide, log, commit, tell: the order is here, each step lives in its own
room. The steps that only a declared claim goes through (controls, held-out confirmation, replay) belong in
`evidence.py`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.hypothesis import read_hypothesis
from mlxterp.errors import DeclarationError
from mlxterp_agent.events import Running, Waiting
from mlxterp_agent.faults import point
from mlxterp_agent.judge.evidence import interrupted, judge_plain
from mlxterp_agent.messages import outcome_text
from mlxterp_agent.researchers.base import ExperimentOutcome
from mlxterp_agent.sandbox.runner import Outcome
from mlxterp_agent.storage.record import (
    Cost,
    Execution,
    Intent,
    JudgedEntry,
    claim_of,
    entry_without_report,
    how_it_ended,
    verdicted,
)
from mlxterp_agent.supervisor.context import RunContext
from mlxterp_agent.supervisor.project_files import freeze, program_digest
from mlxterp_agent.supervisor.watcher import Candidate


class Trials:
    """Puts one experiment after another on trial, in one project.

    Attributes:
        facts: what setup.py offers; set once it is imported.
    """

    def __init__(self, context: RunContext, stop: Callable[[], str | None]) -> None:
        self.facts: Mapping[str, Any] = {}
        self._context = context
        self._stop = stop
        self._charged = self._cost_so_far()

    def experiment(self, candidate: Candidate, time_box: float) -> ExperimentOutcome:
        """Runs what was proposed, once, for at most `time_box` seconds."""
        try:
            declared = read_hypothesis(candidate.source)
        except DeclarationError as problem:
            return self.refused(str(problem))
        intent = Intent(
            run=self._context.ledger.last_run + 1,
            uid=uuid.uuid4().hex,
            source=candidate.source.decode("utf-8"),
            time_box=time_box,
            digests={
                "setup": self._context.sealed.setup_sha,
                "program": program_digest(self._context.path),
                "experiment": candidate.sha,
            },
            declared=None if declared is None else declared.declared(),
            driver={
                "name": self._context.driver.name,
                "model": self._context.driver.model,
                "session": self._context.driver.session,
            },
        )
        frozen = freeze(self._context.path, intent.run, candidate.source)
        violations = self._context.guard.between_runs()
        self._context.ledger.intend(intent)
        if violations:
            execution = Execution(
                status="refused", error="not run: the contract was violated before it began"
            )
            return self._settled(intent, execution, (), violations)
        before = self._context.guard.marks(frozen)
        self._context.emit(Running(intent.run, intent.sha, time_box, claim_of(intent)))
        outcome = self._context.runner.run(
            frozen, intent.run, time_box=time_box, run_dir=frozen.parent, stop=self._stop
        )
        point("after-run")
        violations = self._context.guard.after(before, frozen, outcome)
        if outcome.status != "interrupted":
            self._context.runner.warm()
        reported = [ExperimentEntry.from_dict(fields).plain() for fields in outcome.entries]
        return self._settled(intent, _execution(outcome), reported, violations, printed=outcome.stdout_tail)

    def refused(self, why: str) -> ExperimentOutcome:
        """What cannot run is not logged; it costs no experiment."""
        self._context.emit(Waiting(f"not run: {why}"))
        return ExperimentOutcome(None, (), f"not run: {why}")

    def ran_before(self, candidate: Candidate) -> ExperimentOutcome:
        """The same bytes are not run again: what came of them is told again."""
        ids = self._context.ledger.tried[candidate.sha]
        entries = tuple(entry for entry in self._context.ledger.entries if entry.experiment_id in ids)
        self._context.emit(Waiting(f"not run: experiment.py is what ran as {', '.join(ids)}; change it"))
        text = f"not run: these bytes ran before as {', '.join(ids)}. Change experiment.py.\n"
        return ExperimentOutcome(None, entries, text + outcome_text(entries, self._context.budget_state()))

    def _settled(
        self,
        intent: Intent,
        execution: Execution,
        entries: Sequence[ExperimentEntry],
        violations: Sequence[str],
        *,
        printed: str = "",
    ) -> ExperimentOutcome:
        """Decides every line of the run, logs and commits them, and says so."""
        if not entries:
            because = violations[0] if violations else how_it_ended(execution, intent.time_box)
            entries = [entry_without_report(intent, execution, because=because, printed=printed)]
        lines = self._decided(intent, execution, entries, violations)
        # A run that never came to an end, or never began, proves nothing about these bytes.
        again = execution.status in ("interrupted", "refused")
        logged = self._context.ledger.settle(intent, lines, again=again)
        self._context.guard.remember()
        return ExperimentOutcome(intent.run, logged, outcome_text(logged, self._context.budget_state()))

    def _decided(
        self,
        intent: Intent,
        execution: Execution,
        entries: Sequence[ExperimentEntry],
        violations: Sequence[str],
    ) -> list[JudgedEntry]:
        spent, total = self._context.budget.spent(), self._cost_so_far()
        cost, self._charged = _difference(total, self._charged), total
        lines: list[JudgedEntry] = []
        for number, entry in enumerate(entries, 1):
            if execution.status == "interrupted" and not violations:
                judgement = interrupted(f"{execution.error}; the same experiment may run again")
            else:
                judgement = judge_plain(
                    entry,
                    status=execution.status,
                    violations=tuple(violations),
                    identical_to=self._context.ledger.same_numbers(entry, intent.sha),
                    declared=intent.declared is not None,
                )
            lines.append(
                verdicted(
                    entry,
                    judgement,
                    intent=intent,
                    number=number,
                    execution=execution,
                    facts=self.facts,
                    cost=cost if number == 1 else Cost(),
                    spent=spent,
                    wall=self._context.clock.wall(),
                )
            )
        return lines

    def _cost_so_far(self) -> Cost:
        spent = self._context.budget.spent()
        return Cost(spent.usd, spent.tokens)


def _execution(outcome: Outcome) -> Execution:
    return Execution(
        status=outcome.status,
        exit_code=outcome.exit_code,
        seconds=round(outcome.seconds, 3),
        peak_mb=None if outcome.peak_mb is None else round(outcome.peak_mb, 1),
        warm=outcome.warm,
        signal=outcome.signal_name,
        error=outcome.error,
        traceback=outcome.traceback,
        bad_frames=outcome.bad_frames,
    )


def _difference(now: Cost, before: Cost) -> Cost:
    return Cost(
        None if now.usd is None else now.usd - (before.usd or 0.0),
        None if now.tokens is None else now.tokens - (before.tokens or 0),
    )
