"""The supervisor: it lets a researcher take its turns, notices what is new in experiment.py, and knows when
to end.

Here is the order in which things happen, and nothing else. `run` is one supervised run from the lock to the
last event; the life of one experiment is `experiment.py`; what is written when is `storage/results_log.py`;
what a crash leaves is repaired by `storage/recovery.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from mlxterp.autointerpret.contract import PRIVATE, load_project, scaffold_experiment
from mlxterp.autointerpret.scaffold import example_caution
from mlxterp.errors import ProjectError
from mlxterp_agent.endings import end
from mlxterp_agent.events import (
    Emit,
    Progress,
    Repaired,
    SetupReady,
    Spending,
    Started,
    Stopped,
    Turn,
    Waiting,
)
from mlxterp_agent.exit_codes import (
    FINISHED,
    Ended,
    GitMissing,
    GitUnavailable,
)
from mlxterp_agent.integrity.guard import Guard
from mlxterp_agent.judge.closing import close_investigation
from mlxterp_agent.judge.held_out import read_items, salt_of, take_items
from mlxterp_agent.judge.judge import Judge
from mlxterp_agent.platform import Clock, Signals, SystemClock, boot_id, explain_disk_full
from mlxterp_agent.researchers.base import (
    Done,
    Failed,
    Idle,
    Researcher,
    ResearcherState,
    Situation,
    Working,
)
from mlxterp_agent.researchers.external import Once
from mlxterp_agent.run_config import Options
from mlxterp_agent.sandbox.measuring import Measurer, Place
from mlxterp_agent.sandbox.runner import Runner
from mlxterp_agent.state_md import overview_of_index, write_state
from mlxterp_agent.storage.budget import Budget, bound_open_calls
from mlxterp_agent.storage.git import Committer
from mlxterp_agent.storage.heartbeat import Heartbeat, last_beat, uncounted_seconds
from mlxterp_agent.storage.history import History, read_history, store_history
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.storage.log_index import LogIndex
from mlxterp_agent.storage.project_files import ASIDE, make_folder
from mlxterp_agent.storage.recovery import reconcile, set_aside_damage
from mlxterp_agent.storage.results_log import ResultsLog
from mlxterp_agent.storage.state_dir import ProjectLock, open_state, restore_config, seal
from mlxterp_agent.supervisor.experiment import ExperimentPipeline, RunContext
from mlxterp_agent.supervisor.guidance import Guidance
from mlxterp_agent.supervisor.prepare import choose_isolation, fetch_model, initial_files, no_jail
from mlxterp_agent.supervisor.watcher import SCAFFOLD_TEXT, STOP, Candidate, ExperimentFile, FileWatcher
from mlxterp_agent.text import duration, line_in, one_line, plain

GRACE = 0.7
"""Seconds between SIGTERM and SIGKILL for an experiment: with it, a run ends within two seconds of its time
box."""

SHOWN_KEPT = 5
"""Kept entries that a screen shows."""

_TICK = 0.25
_CLOCK_EVERY = 60.0
_SAY_EVERY = 20.0
_EMPTY_TURNS = 3
_INSTRUMENT_FAILURES = 2


def run(
    directory: Path,
    researcher: Researcher,
    options: Options,
    emit: Emit,
    *,
    description: str = "",
    closes: bool = True,
    clock: Clock | None = None,
    began: float | None = None,
) -> Ended:
    """Supervises one investigation until something ends it, and returns what did.

    1. Take the project's lock: one supervisor for each directory. Find the jail that experiments run in.
    2. Make it a git repository of its own; seal setup.py, or check that it is the sealed one.
    3. Reconcile: finish what an earlier end left open.
    4. Import setup.py in a child that stays warm.
    5. Until a budget, the researcher or a person ends it: let the researcher take its turn, run what is new.
    6. End the child, write down why.

    Args:
        description: who investigates and why it was chosen, for the screen.
        closes: an end that nothing interrupted closes the investigation: its held-out numbers are shown.
        began: when the command began, on the clock's `elapsed`; by default now.

    Raises:
        MlxterpError: the project, its setup.py, git or the machine cannot be used. Everything logged is safe.
    """
    project = load_project(directory.resolve())
    clock = clock or SystemClock()
    began = clock.elapsed() if began is None else began
    state = open_state(project.path)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        stack.enter_context(ProjectLock(state))
        isolation = choose_isolation(allow_unsandboxed=options.allow_unsandboxed)
        journal = stack.enter_context(contextlib.closing(Journal(state.journal_path, clock=clock)))
        committer = Committer(project.path, scratch=state.tmp_dir)
        notices = journal.open()
        history = read_history(journal)
        notices += _open_repository(committer, project.path, history.head)
        notices += set_aside_damage(journal, state)
        violations = history.violations
        bounded = bound_open_calls(history, last_beat(state))
        sealed = seal(state, project.path, reseal=options.reseal or not history.measured)
        if (put_back := restore_config(project.path, sealed)) is not None:
            notices.append(put_back)
        journal.append(
            "start",
            config=options.to_dict(),
            driver=researcher.name,
            pid=os.getpid(),
            boot=boot_id(),
            uncounted_s=round(uncounted_seconds(state, history, clock, began=began), 3),
        )
        journal.append("seal", setup_sha=sealed.setup_sha)
        index = stack.enter_context(contextlib.closing(LogIndex.open(state.index_path, project.log_path)))
        results = ResultsLog(
            project.path,
            journal,
            committer,
            emit,
            history=history,
            index=index,
            setup_sha=sealed.setup_sha,
        )
        repairs = reconcile(results, state, clock)
        store_history(history, journal)
        config, who = project.config, description or researcher.name
        kept = tuple(results.entries.at(sorted(index.newest(SHOWN_KEPT, kept=True))))
        emit(
            Started(
                str(project.path),
                config.question,
                config.model,
                who,
                len(results.entries),
                index.tally(),
                kept,
            )
        )
        for what in (*notices, *repairs.done):
            emit(Repaired(what))
        for each in bounded:
            details = {"left_open": True, "by": "the time until the last heartbeat"}
            journal.append("charge", usd=each.usd, tokens=each.tokens, call=each.call, details=details)
            emit(Repaired(f"a call that a kill left open was charged ${each.usd:.4f}, its most by then"))
        if (open_calls := _open_calls(history)) is not None:
            emit(Waiting(open_calls))
        if repairs.broken is not None:
            ended = end("log", repairs.broken)
        else:
            fetch_model(config.model, sealed.setup_bytes, emit, signals)
            runner = Runner(project.path, sealed.setup, state, isolation=isolation, grace=GRACE, clock=clock)
            stack.enter_context(contextlib.closing(runner))
            stack.enter_context(contextlib.closing(researcher))
            taken = take_items(project.path, state, reseal=options.reseal or not history.measured)
            if taken is not None:
                emit(Repaired(taken))
            place = Place(project=project.path, state=state, setup=sealed.setup, isolation=isolation)
            measurer = stack.enter_context(contextlib.closing(Measurer(place)))
            judge = Judge(
                measurer=measurer,
                journal=journal,
                clock=clock,
                setup_sha=sealed.setup_sha,
                salt=salt_of(state),
                items=read_items(state),
            )
            context = RunContext(
                project=project,
                setup_sha=sealed.setup_sha,
                results=results,
                guard=Guard(state, sealed, results, violations=violations),
                budget=Budget(options.limits(), clock, journal, history),
                runner=runner,
                guidance=Guidance(project.path, state.root, jailed=isolation != "none"),
                judge=judge,
                researcher=researcher,
                options=options,
                emit=emit,
                signals=signals,
                clock=clock,
                heartbeat_path=state.heartbeat_path,
            )
            with explain_disk_full(project.path):
                ended = _Supervision(context).supervise()
                if closes and ended.exit_code == FINISHED:
                    close_investigation(results, sealed.setup_sha)
        journal.append("stop", reason=ended.reason, exit_code=ended.exit_code)
        store_history(history, journal)
        emit(Stopped(ended.reason, ended.exit_code))
    return ended


def _open_calls(history: History) -> str | None:
    """What is said of calls of the researcher whose end an earlier supervisor did not live to record."""
    usd = sum(held.usd or 0.0 for held in history.held.values())
    if not usd:
        return None
    return (
        f"{len(history.held)} calls that a kill left open count as spent, ${usd:.4f}: the service may have "
        "answered them. If its bill shows less, raise --max-usd by the difference"
    )


def _open_repository(committer: Committer, project: Path, head: str | None) -> list[str]:
    """Makes the project a repository, or repairs the one that is there. Trouble with git is reported, and
    ends nothing: what is kept is committed once git is well.

    Raises:
        GitUnavailable: git is not installed.
    """
    done: list[str] = []
    try:
        done += committer.repair(head, make_folder(project, f"{PRIVATE}/{ASIDE}", notice=done.append))
        committer.ensure_repo(initial_files(project))
    except GitMissing:
        raise
    except GitUnavailable as problem:
        done.append(f"nothing can be committed now: {problem}")
    return done


class _Supervision:
    """The turns of one supervised run: whether the researcher works, what is new, when it ends."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._pipeline = ExperimentPipeline(context, self._stop_now)
        self._ended: Ended | None = None
        self._turns = 0
        self._empty_turns = 0
        self._handled: str | None = None
        self._experiment = ExperimentFile(context.path)
        self._found = _key(self._experiment.read())
        # A person who asks for one run of what is there has seen it.
        once = isinstance(context.researcher, Once)
        self._scaffold_text = None if once else scaffold_experiment(context.path)
        self._doing = ""
        self._word = ""
        self._last_was_run = False
        self._heartbeat = Heartbeat(context.heartbeat_path, context.clock)
        self._clock_at = context.clock.elapsed()

    def supervise(self) -> Ended:
        """Turn by turn, until something ends it."""
        self._context.emit(Spending(self._context.budget_state()))
        self._import_setup()
        self._write_state()
        with FileWatcher(self._context.path) as watcher:
            if watcher.polling:
                self._context.emit(Waiting(watcher.polling))
            while (ended := self._why_to_end()) is None:
                state = self._context.researcher.poll()
                self._show(state)
                candidate = self._proposal(state, watcher)
                if candidate is None:
                    self._turn(state, watcher)
                else:
                    self._try(candidate, state)
        self._context.results.commit_pending(last=True)
        self._write_state()
        return ended

    def _stop_now(self) -> str | None:
        """Called ten times a second while something runs: why it must end now, or None."""
        self._heartbeat.beat()
        if self._context.clock.elapsed() - self._clock_at >= _CLOCK_EVERY:
            self._clock_at = self._context.clock.elapsed()
            self._context.results.journal.append(
                "clock", active_s=round(self._context.budget.spent().seconds, 1)
            )
        return self._context.signals.reason()

    def _import_setup(self) -> None:
        """Waits until the first child has imported setup.py, unless a signal interrupts."""
        if self._context.signals.received:
            return
        progress = _SetupProgress(self._context.emit, self._context.clock, self._context.project.config.model)
        report = self._context.runner.check_setup(stop=self._stop_now, progress=progress)
        if self._context.signals.received:
            return
        if report.jail_error is not None:
            raise no_jail(report.jail_error)
        if not report.ok:
            where = line_in(report.traceback, "setup.py")
            raise ProjectError(
                f"setup.py of {self._context.path} could not be imported{f' ({where})' if where else ''}: "
                f"{plain(report.error or 'no reason was given')}\n"
                "Every experiment imports it, in a jail without network; `autointerp models check NAME` "
                "fetches a model. Correct it, then start again."
            )
        config = self._context.project.config
        self._pipeline.facts = report.facts
        if caution := example_caution(self._context.path, config):
            asked = str(report.facts.get("question") or config.question)
            self._pipeline.facts = {**report.facts, "question": f"[{caution}] {asked}"}
        evidence = self._context.judge.divide(report.facts).describe()
        model = str(report.facts.get("model") or config.model)
        self._context.emit(SetupReady(model, report.seconds, report.facts.get("blas"), evidence))

    def _why_to_end(self) -> Ended | None:
        """The first reason to end, checked between any two steps."""
        interrupted, budget = self._context.signals.reason(), self._context.budget.reached()
        if interrupted is not None:
            return end("interrupted", interrupted)
        if self._context.guard.too_many:
            return end("violated", "the contract was violated twice; paused until a person has looked")
        if self._pipeline.instrument_failures >= _INSTRUMENT_FAILURES:
            return end(
                "instrument",
                "the instrument failed twice in a row: with this setup.py nothing can be measured; see the "
                "reasons of the last lines",
            )
        if self._ended is not None:
            return self._ended
        if os.path.lexists(self._context.path / STOP):
            return end("stop", f"there is a file {STOP}; remove it to go on")
        if self._context.results.journal.low_on_disk:
            return end("disk", "the disk is full; free some space, then start again")
        return None if budget is None else self._answered_or(end(budget.ending, budget.reason))

    def _answered_or(self, ended: Ended) -> Ended:
        """The end of a run; a failure, if its researcher was asked and the service never answered."""
        researcher = self._context.researcher
        if self._turns == 0 or researcher.answered:
            return ended
        said = f", and the service never answered: {self._word or 'no word of it'}"
        return end("service", ended.reason + ("" if ended.ending == "service_for_now" else said))

    def _proposal(self, state: ResearcherState, watcher: FileWatcher) -> Candidate | None:
        """What experiment.py holds, if it is new, whole and not run yet. Each content is handled once."""
        if self._turns == 0 and isinstance(state, Idle):
            return None
        if isinstance(state, Working | Done) and not state.offers:
            return None
        if self._last_was_run:
            # A researcher that has finished proposed one experiment, whatever that did to its own file.
            return None
        candidate = self._experiment.read()
        if isinstance(state, Working) and _key(candidate) != self._handled:
            watcher.settle()
            candidate = self._experiment.read()
        if _key(candidate) == self._handled:
            return None
        self._handled = _key(candidate)
        at_work = isinstance(state, Working | Idle)
        if candidate.sha == self._scaffold_text:
            if isinstance(state, Working) and self._turns:
                self._context.researcher.tell(self._pipeline.refuse(SCAFFOLD_TEXT))
            return None
        if candidate.error is None and candidate.sha not in self._context.results.tried:
            # A researcher that has finished proposed what it wrote, not what it found there.
            return candidate if at_work or _key(candidate) != self._found else None
        if at_work:
            outcome = (
                self._pipeline.refuse(candidate.error)
                if candidate.error
                else self._pipeline.repeat_outcome(candidate)
            )
            self._context.researcher.tell(outcome)
        return None

    def _try(self, candidate: Candidate, state: ResearcherState) -> None:
        """Runs a proposal, if the time that is left pays for it."""
        budget = self._context.budget
        time_box = budget.reserve(self._context.options.time_per_experiment)
        if time_box is None:
            # The researcher's turn may have used up a limit at the moment in which it made the proposal.
            reached = budget.reached()
            self._ended = (
                end("too_short", "the time that is left is too short for another experiment")
                if reached is None
                else end(reached.ending, reached.reason)
            )
            return
        self._last_was_run = not isinstance(state, Working | Idle)
        outcome = self._pipeline.run(candidate, time_box)
        if outcome.run is not None:
            self._empty_turns = 0
            if candidate.sha not in self._context.results.tried:
                # It was refused because of what happened before it; all is restored, so it may run now.
                self._handled = None
        self._context.emit(Spending(self._context.budget_state()))
        self._write_state()
        self._context.researcher.tell(outcome)

    def _turn(self, state: ResearcherState, watcher: FileWatcher) -> None:
        """Lets the researcher continue, or ends the run because it has finished."""
        match state:
            case Working():
                watcher.wait(_TICK)
                self._stop_now()
                self._context.results.commit_pending()
            case Idle() if self._empty_turns >= _EMPTY_TURNS:
                why = f"nothing is left to try: {_EMPTY_TURNS} turns in a row brought no new experiment"
                self._ended = end("nothing_new", why)
            case Idle():
                self._turns += 1
                self._empty_turns += 1
                self._handled = None
                self._context.researcher.begin_turn(self._situation())
            case Done(reason):
                self._ended = self._answered_or(end(state.ending, one_line(reason, 300)))
            case Failed(reason):
                self._ended = end(state.ending, one_line(reason, 500))

    def _show(self, state: ResearcherState) -> None:
        """Shows what the researcher is doing, whenever that changes."""
        if isinstance(state, Working) and state.doing != self._doing:
            self._doing = state.doing
            self._word = state.doing or self._word
            self._context.emit(Turn(state.doing))

    def _situation(self) -> Situation:
        entries = self._context.results.entries
        return Situation(
            project=self._context.path,
            entries=entries,
            budget=self._context.budget_state(),
            last=entries[-1] if entries else None,
            deadline_left=self._context.budget.seconds_left(),
            steer=self._context.guidance.for_turn(),
            facts=self._pipeline.facts,
            charge=self._charge,
            hold=self._context.budget.hold,
            budget_now=self._context.budget_state,
            note=self._note,
        )

    def _note(self, text: str) -> None:
        self._context.results.journal.append("note", text=one_line(text, 500))
        self._context.emit(Waiting(one_line(text, 500)))

    def _charge(
        self,
        usd: float | None,
        tokens: int | None,
        *,
        call: str | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        self._context.budget.charge(usd, tokens, call=call, details=details)
        self._context.emit(Spending(self._context.budget_state()))
        self._doing = ""

    def _write_state(self) -> None:
        config = self._context.project.config
        write_state(
            self._context.path,
            question=str(self._pipeline.facts.get("question") or config.question),
            model=str(self._pipeline.facts.get("model") or config.model),
            log=overview_of_index(self._context.results.index),
            budget=self._context.budget_state(),
            notice=self._context.results.note_moved,
        )


class _SetupProgress:
    """Says what the import of setup.py does: what it prints, and from time to time that it goes on."""

    def __init__(self, emit: Emit, clock: Clock, model: str) -> None:
        self._emit, self._clock = emit, clock
        self._began = self._said = clock.monotonic()
        self._line = f"importing setup.py, which loads {model}" if model else "importing setup.py"
        emit(Progress(f"{self._line} …"))

    def __call__(self, line: str) -> None:
        """Gets what setup.py printed last, ten times a second."""
        now = self._clock.monotonic()
        if line and line != self._line:
            self._line, self._said = line, now
            self._emit(Progress(line))
        elif now - self._said >= _SAY_EVERY:
            self._said = now
            self._emit(Progress(f"{self._line} ({duration(now - self._began)} so far)"))


def _key(candidate: Candidate) -> str:
    return candidate.sha or candidate.error or ""
